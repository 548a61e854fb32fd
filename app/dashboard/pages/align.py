"""Align: train a model with its safety neurons frozen, and compare before and after."""

from pathlib import Path
from typing import Any

import streamlit as st

from analysis.requests import AlignRequest, parse_request
from app.dashboard import data
from app.dashboard.components.attack_form import attack_options, start_attack
from app.dashboard.components.attack_view import show_attacks
from app.dashboard.components.choose import choose_one, from_choices
from app.dashboard.components.gate import admit
from app.dashboard.components.job import asked_job, job_panel, launch_from_page
from app.dashboard.components.text import failure, heading, plain
from app.jobs.events import result_of
from app.jobs.folder import Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import RECIPES, RecipeName

ORDER: tuple[RecipeName, ...] = ("safeneuron", "adaptive")
OWN = "the recipe's"
CHOICES = (*ORDER, *(name for name in RECIPES if name not in ORDER))


def _form(expanded: bool) -> None:
    usual = {name: field.default for name, field in AlignRequest.model_fields.items()}
    with (
        st.expander("Start an alignment", expanded, icon=":material/shield:"),
        st.form("align", border=False),
    ):
        model = from_choices("Model", data.model_choices(), "model", new=True)
        mask = from_choices("Mask to freeze", data.mask_choices(), "mask")
        left, right = st.columns(2)
        recipe = left.selectbox("Recipe", CHOICES, format_func=lambda name: RECIPES[name].title)
        zero = right.toggle(
            "Zero the frozen neurons while training",
            usual["zero"],
            help="Algorithm 1, step 3: the model learns to refuse without them.",
        )
        left, right = st.columns(2)
        harmful = left.text_input("Harmful prompts for pairs", usual["harmful"])
        harmless = right.text_input("Harmless prompts for pairs", usual["harmless"])
        values: dict[str, Any] = {"recipe": recipe}
        if RECIPES[recipe].mask == "freeze":
            values["zero"] = zero
        values |= {"harmful": harmful, "harmless": harmless}
        a, b, c, d = st.columns(4)
        # What is left empty is the recipe's own.
        numbers = {
            "steps": a.number_input("Steps", 1, 100_000, None, placeholder=OWN),
            "batch_size": b.number_input("Pairs a step", 1, 512, None, placeholder=OWN),
            "learning_rate": c.number_input(
                "Learning rate", 1e-8, 1.0, None, format="%.1e", placeholder=OWN
            ),
            "beta": a.number_input(
                "Beta",
                0.001,
                10.0,
                None,
                placeholder=OWN,
                help="How close DPO holds to the model before.",
            ),
            "sft_weight": b.number_input(
                "SFT weight",
                0.0,
                10.0,
                None,
                placeholder=OWN,
                help="Of the loss on chosen answers.",
            ),
        }
        values |= {name: number for name, number in numbers.items() if number is not None}
        values["seed"] = int(d.number_input("Seed", 0, 2**31 - 1, usual["seed"]))
        values["answer_tokens"] = int(
            c.number_input("Answer tokens", 1, 4096, usual["answer_tokens"])
        )
        saves = d.number_input(
            "Steps between saves", 1, 100_000, None, placeholder="a quarter of the run"
        )
        values["save_every"] = None if saves is None else int(saves)
        looks = a.number_input(
            "Steps between held-out looks",
            1,
            100_000,
            None,
            placeholder="never",
            help="Margin, divergence and refusals on 16 pairs and some prompts set aside.",
        )
        values["evaluate_every"] = None if looks is None else int(looks)
        if st.form_submit_button("Align", type="primary", icon=":material/play_arrow:"):
            _start(model, mask, values)


def _start(model: str | None, mask: str | None, values: dict[str, Any]) -> None:
    if not model:
        failure(SafeNeuronError("choose a model, or type the name of one"))
        return
    if RECIPES[values["recipe"]].needs_mask and mask is None:
        failure(SafeNeuronError("this recipe needs a mask: identify one on the Safety map first"))
        return
    chosen = Path(mask) if mask else None
    try:
        request = parse_request(AlignRequest, {"model": model, "mask": chosen, **values})
    except SafeNeuronError as error:
        failure(error)
        return
    job = launch_from_page("align", request)
    if job is not None:
        st.session_state["run-next"] = job.id
        st.rerun()


def _finished(job: Job) -> None:
    """Attack the result, and hold it against the model it was made from."""
    result = result_of(job) or {}
    before, after = str(job.request.get("model")), str(result.get("model", job.folder))
    st.subheader("Before and after")
    mask = job.request.get("mask")
    if mask is None:
        mask = from_choices("Mask to attack with", data.mask_choices(), "mask")
        if mask is None:
            st.info("An attack needs a mask: identify one on the Safety map.")
            return
    with st.expander("Options of the attack", icon=":material/tune:"):
        values = attack_options()
    first, second, _ = st.columns([1, 1, 2])
    run = job.id
    if first.button("Attack the result", icon=":material/bolt:", width="stretch"):
        started = start_attack(after, mask, values)
        st.query_params["run"] = run
        if started:
            st.rerun()
    if second.button("Compare before/after", icon=":material/compare:", width="stretch"):
        started = start_attack(before, mask, values) and start_attack(after, mask, values)
        st.query_params["run"] = run
        if started:
            st.rerun()
    _compared(before, after, mask)


def _compared(before: str, after: str, mask: str) -> None:
    """The newest attacks on both models with this mask, as far as they are."""
    results = {}
    for name, model in (("before", before), ("after", after)):
        jobs = data.attack_jobs(model, mask)
        if jobs and state_of(jobs[0]).state != "done":
            st.caption(f"The attack on the model {name}:")
            with st.container(border=True):
                job_panel(jobs[0])
        for job in jobs:
            try:
                result = data.attacked_by(job)
            except SafeNeuronError as error:
                failure(error)
                continue
            if result is not None:
                results[name] = result
                break
    if len(results) == 2 and _questions(results["before"]) != _questions(results["after"]):
        st.warning("The two attacks used different prompts or lengths; start the comparison anew.")
    if results:
        show_attacks(results, "before-after")


def _questions(result: Any) -> tuple[Any, ...]:
    prompts = tuple(sorted((side, info.sha256) for side, info in result.prompts.items()))
    return (*prompts, result.generation.max_new_tokens, result.judge)


admit()
heading(
    "Align",
    "Preference optimisation (DPO) with the safety neurons frozen, so that the model must learn to "
    "refuse with others; then the same attack again.",
)
jobs = {job.id: job for job in list_jobs() if job.verb == "align"}
asked_job()  # says so when the address names none
if jobs:
    labels = {
        name: f"{data.job_label(job)} · {asked.get('recipe')} · {asked.get('steps')} steps"
        for name, job in jobs.items()
        for asked in [job.request]
    }
    job = jobs[choose_one("run", "Run", list(jobs), lambda name: labels[name])]
    with st.container(border=True):
        job_panel(job)
    if state_of(job).state == "done":
        facts = [f"{k}: {v}" for k, v in (result_of(job) or {}).items() if not isinstance(v, dict)]
        st.caption(plain(" · ".join(facts)))
        _finished(job)
else:
    st.info(
        "No alignment yet: start one below. It needs a model and a mask, which the Safety map "
        "makes, or `safeneuron demo` in a terminal.",
        icon=":material/explore:",
    )
_form(expanded=not jobs)
