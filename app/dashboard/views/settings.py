"""Settings: where things are kept, on what jobs run, what is installed. All of it is read-only."""

import pandas as pd
import streamlit as st

from analysis.listing import size_in_words
from app.about import Place, devices_now, places, queue_place, versions, workers_now
from app.commands.settings import described
from app.dashboard.components.downloads import file_button
from app.dashboard.components.gate import admit
from app.dashboard.components.text import failure, heading, plain
from toolkit.errors import SafeNeuronError
from toolkit.home import home

SHOWN_FOR = 30  # seconds that the sizes of folders are kept


@st.cache_data(ttl=SHOWN_FOR, show_spinner=False)
def _places(root: str) -> list[Place]:
    return places()


def _store() -> None:
    st.subheader("Store")
    found = _places(str(home().absolute()))
    st.code(str(home().absolute()), language=None)
    by_name = {place.name: place for place in found}
    with st.container(horizontal=True):
        for label, size in (
            ("In all", sum(place.size for place in found)),
            ("Results", by_name["store"].size),
            ("Jobs and their models", by_name["runs"].size),
        ):
            st.metric(label, size_in_words(size), border=True, width=200)
    st.dataframe(
        pd.DataFrame(
            [(p.name, p.holds, size_in_words(p.size), p.files) for p in found],
            columns=["folder", "holds", "size", "files"],
        ),
        hide_index=True,
    )
    st.caption(
        "`SAFENEURON_HOME` moves it. `safeneuron cache` lists results, checks them and removes "
        "those that are not needed."
    )


def _devices() -> None:
    st.subheader("Devices and workers")
    left, right = st.columns(2)
    left.dataframe(pd.DataFrame(devices_now()), hide_index=True)
    running = workers_now()
    if running:
        right.dataframe(pd.DataFrame(running), hide_index=True)
    else:
        right.warning(
            "No worker runs, so jobs wait: `safeneuron worker` or `safeneuron serve` starts one.",
            icon=":material/hourglass_empty:",
        )
    st.caption("One heavy job runs on each device; the others wait.")


def _settings() -> None:
    st.subheader("Settings")
    rows = described()
    for row in rows:
        if row["setting"] == "queue":
            row["value"] = queue_place()
    # A line each: of a table of so many words the last would be out of view on a narrow screen.
    for row in rows:
        told = {name: plain(str(value)) for name, value in row.items()}
        st.markdown(f"**{told['setting']}** {told['value'] or 'none'} ({told['from']})")
        st.caption(told["meaning"])
    st.caption(
        "Pages do not change them: a launcher is a command that this machine runs. "
        "`safeneuron settings set NAME VALUE` does, or the environment: `SAFENEURON_` and the name."
    )


def _versions() -> None:
    st.subheader("Versions")
    found = versions()
    st.dataframe(pd.DataFrame(list(found.items()), columns=["package", "version"]), hide_index=True)
    told = "\n".join(f"{name} {number}" for name, number in found.items())
    file_button("versions.txt", told.encode, "text/plain", label="Versions as text")


admit()
heading(
    "Settings",
    "Where results are kept, what jobs run on, and what is installed: "
    + plain("the same as 'safeneuron settings about' tells in a terminal."),
)
for part in (_store, _devices, _settings, _versions):
    try:
        part()
    except SafeNeuronError as error:
        failure(error)
