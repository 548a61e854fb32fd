"""Prune lab: chat with a model whole, pruned and with random neurons removed."""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from analysis.chat import (
    LONGEST,
    MOST_TOKENS,
    Arm,
    ChatRequest,
    Question,
    Removal,
)
from analysis.requests import parse_request
from app.dashboard import data, lab
from app.dashboard.components.answers import answer_box, prose, verdict_badge
from app.dashboard.components.choose import MODELS_HELP, choose_one, number
from app.dashboard.components.gate import admit
from app.dashboard.components.job import BADGES
from app.dashboard.components.text import failure, heading, nothing_yet
from app.dashboard.inside import require_inside
from app.dashboard.lab import Exchange
from app.jobs.chat import LOADING, Desk, ask, read_session, session_of
from app.jobs.events import events
from app.jobs.folder import ALIVE, Job, cancel, settle
from app.jobs.progress import how_far
from app.jobs.queue import enqueue
from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import Verdict, judge_refusal

TITLES: dict[Arm, str] = {"whole": "Whole", "pruned": "Pruned", "random": "Random control"}
MEANINGS: dict[Arm, str] = {
    "whole": "The model as it is.",
    "pruned": "The chosen neurons are zero in every forward pass (paper, Sec. 4.1).",
    "random": "As many other neurons in each layer are zero: what removal alone does.",
}
POLL = 0.5  # seconds
CONVERSATION = ("run", "turn")  # in the address
DTYPES = ("bfloat16", "float32", "float16")


def _model() -> str | None:
    choices = {choice.value: choice.label for choice in data.model_choices()}
    asked = st.query_params.get("model", "").strip()
    options = list(choices)
    if asked and asked not in options:
        options.append(asked)  # one that was typed
    value = st.selectbox(
        "Model",
        options,
        index=options.index(asked) if asked in options else 0,
        format_func=lambda value: choices.get(value, value),
        accept_new_options=True,
        key="lab-model",
        help="It is loaded once, by a job of its own, and stays until nobody asks.\n\n"
        + MODELS_HELP,
    )
    model = str(value or "").strip()
    if model:
        st.query_params["model"] = model
    return model or None


def _removal(model: str, place: DeltaGenerator) -> Removal:
    """What is removed, by the widgets, the first of them in ``place``; shows how much that is."""
    choices, studies = lab.removal_choices(model)
    labels = {choice.value: choice.label for choice in choices}
    options = list(labels)
    with place:
        what = choose_one(
            "what",
            "Neurons",
            options,
            lambda value: labels[value],
            key="lab-what",
            help="A study ranks all neurons by a score, and the slider says how many go. A mask "
            "goes whole.",
        )
    values: dict[str, object] = {"seed": int(st.session_state.setdefault("lab-seed", _seed()))}
    if lab.is_path(what):
        values["mask"] = what
        for name in ("score", "share"):
            st.query_params.pop(name, None)
    else:
        values |= {"study": what, **_rank(lab.scores_of(studies[what]))}
    st.query_params["seed"] = str(values["seed"])
    removal = parse_request(Removal, values)
    require_inside(removal)
    st.caption(f"Removes {lab.size_of(removal, studies)}.")
    return removal


def _seed() -> int:
    return int(min(max(number("seed", 0), 0), 2**31 - 1))


def _rank(scores: list[str]) -> dict[str, object]:
    """The score that ranks, and the share that goes."""
    left, right = st.columns([1, 3])
    with left:
        score = choose_one(
            "score",
            "Ranked by",
            scores,
            str.upper,
            "sas",
            key="lab-score",
            help="ES: Cohen's d of a neuron's activations, harmful against harmless prompts. SAS: "
            "the z-score of its mean shift within its layer. Others as 'safeneuron scores' lists "
            "them.",
        )
    asked_share = number("share", 0.01)
    shares = sorted({*lab.SHARES, asked_share} if 0 < asked_share < 1 else lab.SHARES)
    share = right.select_slider(
        "Share removed",
        shares,
        value=asked_share if asked_share in shares else 0.01,
        format_func=lambda value: f"{100 * value:g} %",
        key="lab-share",
        help="Of all MLP neurons of the model, those that score highest.",
    )
    st.query_params["share"] = f"{share:g}"
    return {"score": score, "share": share}


def _options() -> dict[str, object]:
    """How answers are made."""
    with st.popover("Options", icon=":material/tune:"):
        tokens = st.number_input(
            "Answer tokens",
            1,
            MOST_TOKENS,
            int(min(max(number("tokens", 128), 1), MOST_TOKENS)),
            key="lab-tokens",
        )
        asked = st.query_params.get("sample")
        drawn = st.toggle(
            "Draw the answers",
            asked is not None,
            key="lab-drawn",
            help="At temperature 1; greedy otherwise.",
        )
        seed = st.number_input(
            "Seed of the draw",
            0,
            2**31 - 1,
            int(min(max(number("sample", 0), 0), 2**31 - 1)),
            key="lab-sample",
            disabled=not drawn,
        )
        named = st.query_params.get("dtype")
        dtype = st.selectbox(
            "Arithmetic",
            DTYPES,
            index=DTYPES.index(named) if named in DTYPES else 0,
            key="lab-dtype",
        )
        force = st.toggle("Remove another model's neurons", help="Where the shapes agree.")
    st.query_params["tokens"], st.query_params["dtype"] = str(int(tokens)), dtype
    if drawn:
        st.query_params["sample"] = str(int(seed))
    else:
        st.query_params.pop("sample", None)
    return {
        "max_new_tokens": int(tokens),
        "sample": int(seed) if drawn else None,
        "dtype": dtype,
        "force": force,
    }


def _current() -> Exchange | None:
    """The conversation that the address names, if there is one."""
    run, turn = (st.query_params.get(name) for name in CONVERSATION)
    if run is None or turn is None:
        return None
    try:
        return lab.exchange(read_session(run), turn)
    except SafeNeuronError as error:
        failure(error)
        return None


def _begin_anew() -> None:
    for name in CONVERSATION:
        st.query_params.pop(name, None)


def _put(session: ChatRequest, question: Question) -> None:
    """Ask, and put the conversation into the address."""
    try:
        require_inside(session)
        job, turn = ask(session, question)
    except SafeNeuronError as error:
        failure(error)
        return
    st.query_params["run"], st.query_params["turn"] = job.id, turn
    st.rerun()


def _session_line(job: Job, current: Exchange | None) -> None:
    """How the model's process stands, and what can be done about it."""
    state = settle(job)
    phase = state.state
    far = how_far(events(job)[0])
    begun = far is not None and (far.stage != LOADING or far.done == far.total)
    loading = phase == "running" and not begun
    words = {
        "queued": "waits for a worker and a free device",
        "running": "is being loaded" if loading else "is in memory and answers",
        "cancelling": "is being closed",
        "cancelled": "was closed",
        "failed": "did not load",
        "lost": "was killed",
        "done": "was closed, since nobody asked",
    }[phase]
    color, icon = BADGES[phase]
    open_question = current is not None and current.job.id == job.id and not current.told.over
    with st.container(horizontal=True, vertical_alignment="center"):
        st.badge(phase, color=color, icon=icon)
        st.caption(f"The model {words}.")
        if phase in {"queued", *ALIVE}:
            if open_question and phase == "running" and not loading:
                assert current is not None
                st.button(
                    "Stop",
                    icon=":material/stop:",
                    on_click=Desk(job).stop,
                    args=(current.number,),
                )
            # By callback: a run that finds the answer over ends before it comes here.
            elif st.button(
                "Close the model",
                icon=":material/eject:",
                help="Frees its memory; a question loads it again.",
                disabled=phase == "cancelling",
                on_click=_close,
                args=(job,),
            ):
                st.rerun(scope="app")
        elif open_question and st.button("Go on", icon=":material/replay:"):
            try:
                enqueue(job)
            except SafeNeuronError as error:
                failure(error)
                return
            st.rerun(scope="app")
    if state.error and phase == "failed":
        failure(SafeNeuronError(state.error))


def _close(job: Job) -> None:
    cancel(job)


def _exchange(prompt: str, texts: dict[Arm, str], key: str, told: Exchange | None) -> None:
    """One turn: what was asked, and the answers side by side."""
    with st.chat_message("user", avatar=":material/person:"):
        st.markdown(prose(prompt))
    for arm, place in zip(texts, st.columns(len(texts)), strict=True):
        with place:
            st.markdown(f"**{TITLES[arm]}**", help=MEANINGS[arm])
            verdict: Verdict | None = None
            why = "Judged when it is complete."
            if told is None:
                judged = judge_refusal(texts[arm])
                verdict, why = judged.verdict, judged.why
            elif (answer := told.told.answers.get(arm)) is not None:
                verdict, why = answer.verdict, answer.why
            # A line of its own, there before the verdict: nothing moves and nothing is cut.
            verdict_badge(verdict, why)
            hidden = arm != "whole" or verdict != "refused"
            waiting = "" if told is None or told.told.over else "…"
            answer_box(texts[arm], f"{key}-{arm}", hidden, waiting)


def _newest(job_id: str, turn: str) -> None:
    """The question that is being answered; drawn again every moment until it is over."""
    job = read_session(job_id)
    current = lab.exchange(job, turn)
    if current.told.over and st.session_state.get("lab-moving") == f"{job_id}-{turn}":
        st.session_state["lab-moving"] = None
        st.rerun(scope="app")
    texts = {arm: current.told.texts.get(arm, "") for arm in current.question.arms}
    _exchange(current.question.prompt, texts, f"{job.id}-{turn}", current)
    if current.told.phase == "failed":
        failure(SafeNeuronError(current.told.error or "it could not be answered"))
    elif current.told.phase == "stopped":
        st.caption("Stopped.")
    _session_line(job, current)


def _conversation(current: Exchange) -> None:
    for place, (prompt, answers) in enumerate(current.earlier):
        _exchange(prompt, answers, f"{current.job.id}-{current.number}-{place}", None)
    moving = not current.told.over
    st.session_state["lab-moving"] = f"{current.job.id}-{current.number}" if moving else None
    shown = st.fragment(_newest, run_every=POLL if moving else None)
    shown(current.job.id, current.number)


def _page() -> None:
    left, right = st.columns([1, 2])
    with left:
        model = _model()
    if model is None:
        st.info("Choose a model, or type the name of one.", icon=":material/explore:")
        return
    removal = _removal(model, right)
    with st.container(horizontal=True, vertical_alignment="center"):
        with_random = st.toggle(
            "Random control",
            st.query_params.get("random", "1") != "0",
            key="lab-random",
            help=MEANINGS["random"],
        )
        another = st.button(
            "Draw another",
            icon=":material/casino:",
            disabled=not with_random,
            help="Other random neurons, as many in each layer; the last question is asked again.",
        )
        options = _options()
        if st.button("New conversation", icon=":material/add_comment:"):
            _begin_anew()
    st.query_params["random"] = "1" if with_random else "0"
    arms: tuple[Arm, ...] = ("whole", "pruned", "random") if with_random else ("whole", "pruned")
    values = {"model": model, "dtype": options["dtype"], "force": options["force"]}
    session = parse_request(ChatRequest, values)
    made = {name: options[name] for name in ("max_new_tokens", "sample")}
    current = _current()
    if another:
        removal = removal.model_copy(update={"seed": removal.seed + 1})
        st.session_state["lab-seed"] = removal.seed
        st.query_params["seed"] = str(removal.seed)
        if current is not None:
            again = {**made, "prompt": current.question.prompt, "removal": removal}
            _put(session, parse_request(Question, {**again, "before": dict.fromkeys(arms, ())}))
    if current is not None:
        _conversation(current)
        if current.question.removal != removal or set(current.question.arms) != set(arms):
            st.caption(
                "These answers are of another choice of neurons; the next question begins anew "
                "with the choice above."
            )
    else:
        st.info(
            "Ask below. Each question goes to the model as it is and to the model without the "
            "chosen neurons, in one batch. Answers without neurons, and any that is no refusal, "
            "stay veiled until you ask to read them.",
            icon=":material/forum:",
        )
        if (kept := session_of(session)) is not None:
            _session_line(kept, None)
    prompt = st.chat_input("Ask the model", max_chars=LONGEST, key="lab-prompt")
    if prompt and prompt.strip():
        before = dict.fromkeys(arms, ()) if current is None else current.carried_on(removal, arms)
        asked = {**made, "prompt": prompt.strip(), "removal": removal, "before": before}
        _put(session, parse_request(Question, asked))


admit()
heading(
    "Prune lab",
    "Talk with a model as it is and without some of its neurons, side by side. Where safety hangs "
    "on few neurons, the pruned model stops refusing and the random control does not.",
)
if not data.studies() and not data.mask_choices():
    nothing_yet("study", "identify the neurons of a model on the Safety map; they are removed here")
else:
    try:
        _page()
    except SafeNeuronError as error:
        failure(error)
