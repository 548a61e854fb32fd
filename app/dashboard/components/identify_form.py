"""The form that starts a study: which model, on which prompts, how."""

import streamlit as st

from analysis.requests import IdentifyRequest, parse_request
from app.dashboard.components.choose import choose_model
from app.dashboard.components.job import launch_from_page, shown_on_top
from app.dashboard.components.text import failure
from toolkit.errors import SafeNeuronError


def identify_form(expanded: bool) -> None:
    """The form, in an expander; a job it starts is put into the address."""
    usual = IdentifyRequest.model_fields
    with (
        st.expander("Identify the safety neurons of a model", expanded, icon=":material/search:"),
        st.form("identify", border=False),
    ):
        model = choose_model()
        left, right = st.columns(2)
        harmful = left.text_input("Harmful prompts", usual["harmful"].default)
        harmless = right.text_input(
            "Harmless prompts",
            usual["harmless"].default,
            help="A known set, a slice such as advbench[:100], a file, or several with +.",
        )
        a, b, c, d = st.columns(4)
        position = a.selectbox(
            "Token position",
            ["last", "mean", "max"],
            help="Where a prompt's activation is taken: at the token from which the answer's first "
            "word is predicted, or the mean or the largest over the user's own tokens.",
        )
        backend = b.selectbox(
            "Backend",
            ["torch", "transformerlens", "nnsight"],
            help="What captures activations; all three give the same numbers.",
        )
        top = c.number_input("Top share, %", 0.05, 50.0, 1.0, 0.05)
        batch = d.number_input("Prompts at a time", 1, 512, usual["batch_size"].default)
        if st.form_submit_button("Identify", type="primary", icon=":material/play_arrow:"):
            values = {"model": model or "", "harmful": harmful, "harmless": harmless}
            values |= {"position": position, "backend": backend}
            values |= {"top": round(top / 100, 6), "batch_size": int(batch)}
            start_identifying(values)


def start_identifying(values: dict[str, object]) -> None:
    """Launch an identification and show it, or say why not."""
    if not values.get("model"):
        failure(SafeNeuronError("choose a model, or type the name of one"))
        return
    try:
        request = parse_request(IdentifyRequest, values)
    except SafeNeuronError as error:
        failure(error)
        return
    if launch_from_page("identify", request):
        shown_on_top()
