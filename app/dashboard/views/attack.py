"""Attack: what a model still refuses without its safety neurons."""

import streamlit as st

from analysis.robustness import AttackResult
from app.dashboard import data
from app.dashboard.components.attack_form import attack_form
from app.dashboard.components.attack_view import show_attacks, show_provenance, show_responses
from app.dashboard.components.choose import choose_many
from app.dashboard.components.gate import admit
from app.dashboard.components.job import asked_job, job_panel
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from app.jobs.events import result_of
from app.jobs.folder import UNFINISHED, Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError


def _read(keys: list[str]) -> dict[str, AttackResult]:
    chosen = [entries[key] for key in keys]
    results: dict[str, AttackResult] = {}
    for name, entry in zip(data.attack_names(chosen), chosen, strict=True):
        try:
            results[name] = data.attack_result(entry.file("attack.json"))
        except SafeNeuronError as error:
            failure(error)
    return results


def _job() -> Job | None:
    """The attack that the address names, else the newest that is not over."""
    asked = asked_job()
    if asked is not None:
        return asked if asked.verb == "attack" else None
    attacks = (job for job in list_jobs() if job.verb == "attack")
    return next((job for job in attacks if state_of(job).state in UNFINISHED), None)


admit()
heading(
    "Attack",
    "The same prompts answered with and without the neurons of a mask. A model whose safety hangs "
    "on few neurons stops refusing; random neurons show what removal alone does.",
)
entries = {entry.key: entry for entry in data.attacks()}
job = _job()
if job is not None:
    with st.container(border=True):
        job_panel(job)
    made = (result_of(job) or {}).get("entry")
    shown = st.session_state.get("attacks-choices")
    if made in entries and st.session_state.get("attack-of-run") != job.id:
        # A fresh result is what one came to see.
        st.session_state["attack-of-run"] = job.id
        st.session_state["attacks-choices"] = [*(shown or []), made][-2:] if shown else [made]
if not entries:
    nothing_yet("attack", "start one below: it needs a model and a mask")
else:
    labels = {key: data.attack_label(entry) for key, entry in entries.items()}
    chosen = choose_many(
        "attacks",
        "Results",
        list(entries),
        lambda key: labels[key],
        help="Several are shown side by side.",
    )
    results = _read(chosen)
    if results:
        show_attacks(results, "attack")
        show_provenance(results)
        st.subheader("Responses")
        for place, (name, result) in enumerate(results.items()):
            if len(results) > 1:
                st.markdown(f"**{plain(name)}**")
            show_responses(result, str(place))
    else:
        st.info("Choose a result.")
attack_form(expanded=not entries or "mask" in st.query_params)
