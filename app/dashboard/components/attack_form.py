"""The form that starts attacks, and the options all attacks share."""

from pathlib import Path
from typing import Any

import streamlit as st

from analysis.requests import ALL_SETTINGS, PAPER_SETTINGS, AttackRequest, parse_request
from app.dashboard.components.job import launch_from_page, shown_on_top
from app.dashboard.components.model_and_mask import model_and_mask
from app.dashboard.components.text import failure
from app.dashboard.data import Choice
from toolkit.errors import SafeNeuronError

SETTINGS_HELP = (
    "What is removed. ORI: nothing. ES, SAS: what that score chose. FULL: the whole mask. "
    "RANDOM: as many other neurons in each layer, once a seed; RANDOM-ACTIVATION: alike in mean "
    "activation too. AGAIN: the set found again on this model. SWEEP: ever larger shares. HOLD: "
    "the mask held at constants. SINGLE: one neuron at its worst constant. ADAPTIVE: found again "
    "after each round. NEUROSTRIKE, TWINBREAK: other ways to find the set. DIRECTION: the "
    "refusal direction projected out."
)
PROMPTS_HELP = "A known set, a slice such as strongreject[:100], a file, or several with + between."
FIND_FIRST = "first"
USUAL = {name: field.default for name, field in AttackRequest.model_fields.items()}
SCORES = ("es+sas", "es", "sas")
DTYPES = ("bfloat16", "float32", "float16")


def attack_options(keep: bool = False) -> dict[str, Any]:
    """Widgets for the options of an attack; their values as request fields."""
    asked, how, judged = st.tabs(["Prompts and settings", "Parameters of settings", "Judging"])
    with asked:
        values = _asked(keep)
    with how:
        values |= _parameters()
    with judged:
        values |= _judged()
    return values


def _asked(keep: bool) -> dict[str, Any]:
    left, right = st.columns(2)
    harmful = left.text_input("Harmful prompts", USUAL["harmful"], help=PROMPTS_HELP)
    harmless = right.text_input("Harmless prompts", USUAL["harmless"], help=PROMPTS_HELP)
    settings = st.multiselect("Settings", ALL_SETTINGS, PAPER_SETTINGS, help=SETTINGS_HELP)
    a, b, c = st.columns([2, 1, 1])
    over_refusal = a.text_input(
        "Over-refusal prompts",
        placeholder="none",
        help="A .csv such as XSTest's, with columns prompt and label: its safe prompts, which only "
        "sound harmful, are answered too.",
    )
    seeds = b.number_input(
        "Random seeds", 1, 100, USUAL["seeds"], help="Random sets that each control draws."
    )
    tokens = c.number_input("Answer tokens", 1, 4096, USUAL["max_new_tokens"])
    costs = st.toggle(
        "Measure what each setting costs",
        help="KL from the whole model and perplexity, on its own answers to the harmless prompts.",
    )
    responses = st.toggle("Keep the responses, to read them later", keep)
    return {
        "harmful": harmful,
        "harmless": harmless,
        "settings": settings,
        "over_refusal": over_refusal.strip() or None,
        "seeds": int(seeds),
        "max_new_tokens": int(tokens),
        "costs": costs,
        "keep_responses": responses,
    }


def _parameters() -> dict[str, Any]:
    left, right = st.columns(2)
    find_harmful = left.text_input(
        "Harmful prompts to find neurons on",
        USUAL["find_harmful"],
        help="For settings that look for neurons; those attacked are left out.",
    )
    find_harmless = right.text_input("Harmless prompts to find neurons on", USUAL["find_harmless"])
    a, b = st.columns([1, 2])
    sweep_score = a.selectbox("SWEEP: score", SCORES, help="What SWEEP ranks neurons by.")
    shares = b.text_input(
        "SWEEP: shares", _listed(USUAL["sweep_shares"]), help="Of all neurons, 0 to 1, by commas."
    )
    a, b, c = st.columns(3)
    factors = a.text_input(
        "HOLD: factors",
        _listed(USUAL["hold_factors"]),
        help="How many times a neuron's shift is undone; 1 holds it at its harmless mean.",
    )
    at = b.text_input("HOLD: constants", _listed(USUAL["hold_at"]), placeholder="none")
    rounds = c.number_input("ADAPTIVE: rounds", 1, 50, USUAL["rounds"])
    return {
        "find_harmful": find_harmful,
        "find_harmless": find_harmless,
        "sweep_score": sweep_score,
        "sweep_shares": _numbers(shares),
        "hold_factors": _numbers(factors),
        "hold_at": _numbers(at),
        "rounds": int(rounds),
    }


def _judged() -> dict[str, Any]:
    a, b = st.columns(2)
    judge = a.text_input(
        "Judge of harm",
        placeholder="none: the refusal judge alone",
        help="Asked about answers that are not refused: guard:MODEL or rubric:MODEL.",
    )
    limit = b.number_input(
        "Perplexity limit",
        0.0,
        1e6,
        USUAL["perplexity_limit"],
        help="An answer that the whole model finds less likely is degenerate; 0 for no limit.",
    )
    a, b, c = st.columns(3)
    cost_tokens = a.number_input("Tokens that costs are measured on", 1, 4096, USUAL["cost_tokens"])
    batch = b.number_input("Prompts at a time", 1, 1024, USUAL["batch_size"])
    dtype = c.selectbox("Arithmetic", DTYPES)
    return {
        "harm_judge": judge.strip() or None,
        "perplexity_limit": limit or None,
        "cost_tokens": int(cost_tokens),
        "batch_size": int(batch),
        "dtype": dtype,
    }


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _numbers(text: str) -> list[str]:
    """The parts of a list, which the request makes numbers of or says why not."""
    return [part.strip() for part in text.split(",") if part.strip()]


def attack_form(expanded: bool) -> None:
    """The form that attacks a model with a mask."""
    with st.expander("Attack a model", expanded, icon=":material/bolt:"):
        found_first = Choice(FIND_FIRST, "found first, on this model")
        model, mask, force = model_and_mask("Mask", found_first)
        with st.form("attack", border=False):
            values = attack_options()
            pressed = st.form_submit_button("Attack", type="primary", icon=":material/play_arrow:")
        if pressed and not model:
            failure(SafeNeuronError("choose a model, or type the name of one"))
        elif pressed and model:
            chosen = None if mask == FIND_FIRST else mask
            start_attack(model, chosen, {**values, "force": force}, rerun=True)


def start_attack(model: str, mask: str | None, values: dict[str, Any], rerun: bool = False) -> bool:
    """Launch an attack job, with a mask or one that is found first; whether it was accepted."""
    try:
        if not values["settings"]:
            raise SafeNeuronError("choose at least one setting")
        path = Path(mask) if mask else None
        request = parse_request(AttackRequest, {"model": model, "mask": path, **values})
    except SafeNeuronError as error:
        failure(error)
        return False
    if launch_from_page("attack", request) is None:
        return False
    if rerun:
        shown_on_top()
    return True
