"""The form that starts an alignment, or rounds of it, with what it will take."""

from pathlib import Path
from typing import Any, get_args

import streamlit as st

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.estimate import estimate
from analysis.listing import size_in_words
from analysis.requests import parse_request
from app.dashboard import alignments
from app.dashboard.components.attack_form import PROMPTS_HELP
from app.dashboard.components.job import launch_from_page, shown_on_top
from app.dashboard.components.model_and_mask import model_and_mask
from app.dashboard.components.text import failure, plain
from app.dashboard.data import Choice
from app.dashboard.inside import require_inside
from app.jobs.progress import duration
from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import RECIPE_NAMES, RECIPES, OptimiserName, PresetName, RecipeName

FIRST: tuple[RecipeName, ...] = ("safeneuron", "adaptive")
ORDER = (*FIRST, *(name for name in RECIPE_NAMES if name not in FIRST))
PRESETS: dict[PresetName, str] = {"two-core": "Small: minutes on two cores", "paper": "The paper's"}
SOURCES = {
    "made": "Made from the model",
    "file": "A file of pairs",
    "sets": "Sets, mixed",
}
USUAL = {name: field.default for name, field in AlignRequest.model_fields.items()}
NONE = "none"
# Numbers that a preset has: field, label, least, most, format, help.
NUMBERS: tuple[tuple[str, str, float, float, str | None, str], ...] = (
    ("learning_rate", "Learning rate", 1e-8, 1.0, "%.1e", "At its peak; cosine decay to zero."),
    ("weight_decay", "Weight decay", 0.0, 1.0, None, "On every weight that trains."),
    ("beta", "Beta", 0.001, 10.0, None, "How close DPO holds to the model before."),
    ("sft_weight", "SFT weight", 0.0, 10.0, None, "Of the loss on chosen answers, beside DPO's 1."),
    ("kl_weight", "KL weight", 0.0, 10.0, None, "Of neuronguard's divergence."),
    ("epochs", "Passes over the pairs", 0.01, 1000.0, None, "Instead of steps."),
)
COUNTS: tuple[tuple[str, str, int, int, str], ...] = (
    ("steps", "Steps", 1, 1_000_000, "Of the optimiser."),
    ("batch_size", "Pairs a step", 1, 4096, "Over all processes and accumulated parts."),
    ("find_every", "Steps between searches", 1, 100_000, "Where a recipe looks for neurons again."),
    ("lora_rank", "LoRA rank", 0, 1024, "Of an adapter that is merged in the end; 0: the weights."),
    ("lora_alpha", "LoRA alpha", 1, 4096, "Over the rank: how much the adapter counts."),
)


def align_form(expanded: bool) -> None:
    """Choose, see what it takes, start."""
    with st.expander("Start an alignment", expanded, icon=":material/shield:"):
        none = Choice(NONE, "none (recipes without a mask, or several rounds)")
        model, mask, force = model_and_mask("Mask to freeze", none)
        for name, value in (("model", model), ("mask", mask)):
            if value is not None:
                st.query_params[name] = value
        values, count = _recipe()
        values["force"] = force
        numbers, source, looks = st.tabs(["Numbers", "Data", "While it trains, and after"])
        with source:
            values |= _data()
        with numbers:
            values |= _numbers(values["recipe"], values["preset"])
        with looks:
            values |= _looks()
        request = _request(model, mask, values, count)
        if request is not None:
            _what_it_takes(request, count)
        pressed = st.button(
            "Align", type="primary", icon=":material/play_arrow:", disabled=request is None
        )
        if pressed and request is not None:
            job = launch_from_page("rounds" if count > 1 else "align", request)
            if job is not None:
                st.session_state["run-next"] = job.id
                st.session_state["align-open"] = False
                shown_on_top()


def _kept(name: str, options: tuple[str, ...]) -> int:
    """Where the address's choice stands among the options; first where it names none."""
    asked = st.query_params.get(name)
    return options.index(asked) if asked in options else 0


def _recipe() -> tuple[dict[str, Any], int]:
    a, b, c = st.columns([3, 2, 1])
    recipe = a.selectbox(
        "Recipe",
        ORDER,
        index=_kept("recipe", ORDER),
        format_func=lambda name: RECIPES[name].title,
        key="align-recipe",
        help="\n\n".join(f"**{name}**: {RECIPES[name].title}." for name in ORDER),
    )
    presets = tuple(PRESETS)
    preset = b.selectbox(
        "Preset",
        presets,
        index=_kept("preset", presets),
        format_func=lambda name: PRESETS[name],
        key="align-preset",
        help="The numbers below that are left empty.",
    )
    count = c.number_input(
        "Rounds",
        1,
        20,
        1,
        help="More than one: identify, align, identify again, with all neurons found so far frozen "
        "(the paper's T1, T2, T3).",
    )
    st.query_params["recipe"], st.query_params["preset"] = recipe, preset
    values: dict[str, Any] = {"recipe": recipe, "preset": preset}
    if RECIPES[recipe].mask == "freeze":
        left, right = st.columns(2)
        values["zero"] = left.toggle(
            "Zero the frozen neurons while training",
            RECIPES[recipe].zero,
            disabled=RECIPES[recipe].draws,  # whose draws are what it removes
            help="Algorithm 1, step 3: the model learns to refuse without them.",
        )
        zeroed = right.toggle(
            "And in the reference model",
            disabled=not values["zero"],
            help="DPO's reference is the model before, whole unless this is on.",
        )
        values["reference"] = "zeroed" if zeroed and values["zero"] else "whole"
    return values, int(count)


def _numbers(recipe: RecipeName, preset: PresetName) -> dict[str, Any]:
    """What differs from the preset; what is left empty is its own."""
    own = RECIPES[recipe].numbers(preset)
    values: dict[str, Any] = {}
    places = (place for _ in range(3) for place in st.columns(4))
    for name, label, least, most, why in COUNTS:
        usual = getattr(own, name)
        shown = f"{own.epochs:g} passes" if name == "steps" and own.epochs else f"{usual:,}"
        values[name] = next(places).number_input(
            label, least, most, None, placeholder=shown, help=why, key=f"align-{name}"
        )
    for name, label, low, high, form, why in NUMBERS:
        usual = getattr(own, name)
        values[name] = next(places).number_input(
            label,
            low,
            high,
            None,
            format=form,
            placeholder="by steps" if usual is None else f"{usual:g}",
            help=why,
            key=f"align-{name}",
        )
    values["max_grad_norm"] = next(places).number_input(
        "Gradient norm", 0.0, 1000.0, USUAL["max_grad_norm"], help="Gradients are clipped to it."
    )
    a, b, c, d = st.columns(4)
    values["optimiser"] = a.selectbox("Optimiser", get_args(OptimiserName))
    values["micro_batch"] = b.number_input(
        "Pairs at a time", 1, 4096, None, placeholder="all", help="The rest is accumulated."
    )
    values["max_length"] = int(
        c.number_input("Tokens of a pair", 16, 32_768, USUAL["max_length"], help="At most.")
    )
    values["seed"] = int(d.number_input("Seed", 0, 2**31 - 1, USUAL["seed"]))
    values["dtype"] = a.selectbox("Arithmetic", ("bfloat16", "float32"), key="align-dtype")
    return {name: value for name, value in values.items() if value is not None}


def _data() -> dict[str, Any]:
    sources = tuple(SOURCES)
    source = st.segmented_control(
        "Preference pairs",
        sources,
        default=sources[_kept("data", sources)],
        format_func=lambda name: SOURCES[name],
        key="align-data",
        help="A prompt with an answer to prefer and one to reject. Made: on harmful prompts a "
        "refusal against the model's answer, on harmless ones the other way about.",
    )
    st.query_params["data"] = source or sources[0]
    if source == "file":
        path = st.text_input(
            "File of pairs",
            placeholder="pairs.jsonl",
            help="Columns prompt, chosen and rejected; .jsonl, .json, .csv or .parquet.",
        )
        return {"pairs": Path(path.strip()) if path.strip() else None} | _total()
    if source == "sets":
        return _sets() | _total()
    left, right = st.columns(2)
    values: dict[str, Any] = {
        "harmful": left.text_input(
            "Harmful prompts for pairs", USUAL["harmful"], help=PROMPTS_HELP
        ),
        "harmless": right.text_input(
            "Harmless prompts for pairs", USUAL["harmless"], help=PROMPTS_HELP
        ),
    }
    a, b = st.columns([3, 1])
    rejected = a.text_input(
        "Answers to reject come from",
        placeholder="the model's base where it is known, else the model",
        help="A model that complies: one that refuses all has no answers to reject.",
    )
    values["rejected_from"] = rejected.strip() or None
    values["answer_tokens"] = int(
        b.number_input("Answer tokens", 1, 4096, USUAL["answer_tokens"], key="align-answer-tokens")
    )
    return values


def _sets() -> dict[str, Any]:
    left, right = st.columns(2)
    safety = left.text_input(
        "Safety pairs", "pku-saferlhf", help="A file, pku-saferlhf, hh-rlhf, spa-vl or a hub name."
    )
    general = right.text_input(
        "General pairs", placeholder="none", help="Mixed in: a file, ultrafeedback or a hub name."
    )
    a, b = st.columns(2)
    share = a.slider("Share of safety pairs", 0.05, 0.95, 0.3, 0.05, help="Appendix B: 30 to 70.")
    label = b.selectbox(
        "PKU-SafeRLHF's label that decides", ("safer", "better"), help="The paper is silent."
    )
    return {
        "safety": safety.strip() or None,
        "general": general.strip() or None,
        "safety_share": share,
        "safety_label": label,
    }


def _total() -> dict[str, Any]:
    drawn = st.number_input("Pairs drawn", 1, 10_000_000, None, placeholder="all there are")
    return {} if drawn is None else {"total": int(drawn)}


def _looks() -> dict[str, Any]:
    a, b, c = st.columns(3)
    looks = a.number_input(
        "Steps between held-out looks",
        1,
        100_000,
        None,
        placeholder="never",
        help="Margin, divergence and refusals on pairs and prompts that are not trained on.",
    )
    patience = b.number_input(
        "Patience",
        1,
        1000,
        None,
        placeholder="to the end",
        disabled=looks is None,
        help="Looks without a better held-out margin before it ends early.",
    )
    saves = c.number_input(
        "Steps between saves", 1, 100_000, None, placeholder="a quarter of the run"
    )
    values: dict[str, Any] = {
        "evaluate_every": None if looks is None else int(looks),
        "patience": None if looks is None or patience is None else int(patience),
        "save_every": None if saves is None else int(saves),
    }
    if looks is not None:
        a, b, c = st.columns(3)
        values["held_out"] = int(
            a.number_input("Pairs held out", 1, 100_000, USUAL["held_out"], help="Set aside.")
        )
        for name, label, place in (
            ("held_harmful", "Harmful prompts held out", b),
            ("held_harmless", "Harmless prompts held out", c),
        ):
            values[name] = place.text_input(label, USUAL[name], help=PROMPTS_HELP)
    a, b = st.columns(2)
    leave_out = a.text_input(
        "Prompts left out",
        placeholder="none",
        help="Kept out of made pairs and of searches, as those that are attacked later.",
    )
    values["leave_out"] = leave_out.strip() or None
    values["attack"] = b.toggle(
        "Attack it before and after",
        help="With the mask, the paper's settings and AGAIN; the model card shows both.",
    )
    if values["attack"]:
        a, b, c = st.columns(3)
        for name, label, place in (
            ("attacked", "Harmful prompts attacked", a),
            ("attacked_harmless", "Harmless prompts attacked", b),
        ):
            values[name] = place.text_input(label, USUAL[name], help=PROMPTS_HELP)
        values["attack_tokens"] = int(
            c.number_input("Tokens of an attacked answer", 1, 4096, USUAL["attack_tokens"])
        )
    return values


def _request(
    model: str | None, mask: str | None, values: dict[str, Any], count: int
) -> AlignRequest | None:
    """What is asked for; None after saying what is missing."""
    chosen = None if mask in (None, NONE) else Path(str(mask))
    needs = RECIPES[values["recipe"]].needs_mask
    missing = None
    if not model:
        missing = "Choose a model, or type the name of one."
    elif needs and chosen is None and count == 1:
        missing = (
            "This recipe needs a mask: identify one on the Safety map first, or use rounds, which "
            "find their own."
        )
    elif "pairs" in values and values["pairs"] is None:
        missing = "Name the file of pairs on the tab Data."
    if missing:
        st.info(missing, icon=":material/edit:")
        return None
    given = {"model": model, "mask": chosen if needs or count > 1 else None, **values}
    try:
        if count > 1:
            return parse_request(RoundsRequest, {**given, "rounds": count})
        return parse_request(AlignRequest, given)
    except SafeNeuronError as error:
        failure(error)
        return None


def _what_it_takes(request: AlignRequest, count: int) -> None:
    """Time and memory, or why they are not known."""
    try:
        require_inside(request)
        told = estimate(request, alignments.finished())
    except SafeNeuronError as error:
        st.caption(plain(f"How long it takes is not known: {error}."))
        return
    least, most = (duration(count * seconds) for seconds in told.seconds)
    # The other end in the caption: both are too wide for a box.
    from_least = "" if least == most else f" {least} at least;"
    with st.container(horizontal=True):
        for label, value in (
            ("Training, at most", f"≈ {most}"),
            ("Memory", f"≈ {size_in_words(told.memory)}"),
            ("Steps", f"{told.steps:,} × {request.batch_size} pairs"),
        ):
            st.metric(label, value, border=True, width="content")
    by = (
        f"at the pace of {told.by_earlier} earlier run{'s' * (told.by_earlier > 1)} here"
        if told.by_earlier
        else "no run here tells the pace yet, so the range is wide"
    )
    st.caption(
        plain(
            f"Time after the pairs are made:{from_least} {by}. "
            f"Memory: weights {size_in_words(told.weights)}, "
            f"gradients and optimiser {size_in_words(told.state)}, activations "
            f"{size_in_words(told.activations)}."
        )
    )
