"""A model before and after it was aligned: attack, maps, what moved, what it costs."""

import pandas as pd
import streamlit as st

from analysis.figures import safety_map_figure
from analysis.figures.paper import redistribution_figure, refusal_curves_figure
from analysis.redistribution import Redistribution, refusal_curve
from analysis.robustness import AttackResult
from analysis.store import Entry
from app.dashboard import alignments, data
from app.dashboard.alignments import Pair
from app.dashboard.components.attack_form import attack_options, start_attack
from app.dashboard.components.attack_view import COSTS, show_attacks, show_provenance
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import from_choices
from app.dashboard.components.downloads import both_buttons
from app.dashboard.components.job import job_panel, launch_from_page
from app.dashboard.components.text import failure, plain
from app.jobs.folder import Job, list_jobs, state_of
from toolkit.errors import SafeNeuronError

SCORES = {"sas": "SAS", "es": "ES"}
TERMS = (
    "Safety mass: a neuron's score where it is positive and the neuron is in the mask. Effective "
    "number: exp of the entropy of its shares, n for n equal ones. Gini: 0 for equal ones. Joined "
    "and left: neurons of one mask alone."
)


def before_and_after(job: Job) -> None:
    """Everything that is known of what an alignment did, and the buttons that find out more."""
    pair = alignments.pair_of(job)
    st.subheader("Before and after")
    mask = pair.mask
    if mask is None:
        mask = from_choices("Mask to attack with", data.mask_choices(), "mask-after")
    attack, maps, moved, costs = st.tabs(["Attack", "Maps", "What moved", "Costs"])
    results: dict[str, AttackResult] = {}
    with attack:
        if mask is None:
            st.info("An attack needs a mask: identify one on the Safety map.")
        else:
            results = _attacks(job, pair, mask)
    found = alignments.studies(pair)
    with maps:
        if _both_studies(job, pair, found):
            _maps(found)
    with moved:
        if len(found) == 2:
            _moved(found, results)
        else:
            st.info("It takes a study before and one after: the tab Maps finds them.")
    with costs:
        _costs(results)


def _attacks(job: Job, pair: Pair, mask: str) -> dict[str, AttackResult]:
    """Attacks on both models with one mask, and the buttons that make them."""
    with st.expander("Options of the attack", icon=":material/tune:"):
        values = attack_options()
    started = False
    place = st.container(horizontal=True)
    if place.button("Attack the result", icon=":material/bolt:"):
        started = start_attack(pair.after, mask, values)
    if place.button("Compare before/after", icon=":material/compare:"):
        started = start_attack(pair.before, mask, values) and start_attack(pair.after, mask, values)
    st.query_params["run"] = job.id
    if started:
        st.rerun()
    try:
        results, waiting = alignments.attacks(pair, mask)
    except SafeNeuronError as error:
        failure(error)
        return {}
    for when, other in waiting.items():
        st.caption(f"The attack on the model {when}:")
        with st.container(border=True):
            job_panel(other)
    if len(results) == 2 and len(set(map(alignments.questions, results.values()))) > 1:
        st.warning("The two attacks used different prompts or lengths; start the comparison anew.")
    if len(results) == 1:
        [when] = results
        st.caption(f"Only the model {when} was attacked so far:")
    if results:
        show_attacks(results, "before-after")
        show_provenance(results)
    elif not waiting:
        st.info("Not attacked yet: compare before and after to see what is still refused.")
    return results


def _both_studies(job: Job, pair: Pair, found: dict[str, Entry]) -> bool:
    """Whether both models were identified; the button and the job that bring it about."""
    missing = {"before": pair.before, "after": pair.after}
    for when, model in missing.items():
        if when in found:
            continue
        running = [
            j
            for j in list_jobs()
            if j.verb == "identify" and j.request.get("model") == model
            if state_of(j).state != "done"
        ]
        if running:
            st.caption(f"Looking for the neurons of the model {when}:")
            with st.container(border=True):
                job_panel(running[0])
            continue
        st.info(f"The model {when} has no study yet.")
        if st.button(f"Identify the model {when}", icon=":material/search:"):
            try:
                request = alignments.identify_again(found.get("before"), model)
            except SafeNeuronError as error:
                failure(error)
                continue
            started = launch_from_page("identify", request)
            st.query_params["run"] = job.id
            if started is not None:
                st.rerun()
    return len(found) == 2


def _score(key: str) -> str:
    return str(
        st.segmented_control(
            "Score", list(SCORES), default="sas", format_func=lambda name: SCORES[name], key=key
        )
        or "sas"
    )


def _maps(found: dict[str, Entry]) -> None:
    score = _score("maps-score")
    for (when, entry), place in zip(found.items(), st.columns(2), strict=True):
        with place:
            st.markdown(f"**{when.capitalize()}**")
            st.caption(plain(data.study_label(entry)))
            try:
                neurons = data.mask_of(entry).neuron_set()
                figure = safety_map_figure(alignments.scores_of(entry), neurons, score)
            except SafeNeuronError as error:
                failure(error)
                continue
            chart(
                figure,
                f"Safety map {when} alignment: {len(neurons):,} neurons selected, coloured by "
                f"{SCORES[score]}",
                key=f"map-{when}",
            )


def _moved(found: dict[str, Entry], results: dict[str, AttackResult]) -> None:
    score = _score("moved-score")
    try:
        told = alignments.moved(found, results, score)
    except SafeNeuronError as error:
        failure(error)
        return
    overlap = told.overlap
    a, b, c = st.columns(3)
    a.metric("Joined", f"{len(told.joined):,}", border=True, help="In the mask after alone.")
    b.metric("Left", f"{len(told.left):,}", border=True, help="In the mask before alone.")
    c.metric(
        "Jaccard index", f"{overlap.jaccard:.2f}", border=True, help="Shared, of all in either."
    )
    most = int(told.layers["share_after"].to_numpy().argmax())
    chart(
        redistribution_figure(told.layers),
        f"Bars: share of the safety mass in each layer before and after; most after is in layer "
        f"{most}",
        key="redistribution",
    )
    st.dataframe(told.summary, hide_index=True)
    st.caption(TERMS)
    _halving(told, results)
    with st.expander("By layer", icon=":material/table:"):
        st.dataframe(told.layers, hide_index=True)
    with st.container(horizontal=True):
        both_buttons("layers", lambda: told.layers)
        both_buttons("summary", lambda: told.summary)


def _halving(told: Redistribution, results: dict[str, AttackResult]) -> None:
    """How many neurons must go before refusals halve, where both models were swept."""
    if told.halving is None:
        st.caption(
            "How many neurons must go before refusals halve is told where both attacks have the "
            "settings ORI and SWEEP."
        )
        return
    rows = [("found neurons", *map(str, told.halving))]
    if told.control is not None:
        rows.append(("random neurons", *map(str, told.control)))
    st.dataframe(
        pd.DataFrame(rows, columns=["removed until refusals halve", "before", "after"]),
        hide_index=True,
    )
    curves = {when: refusal_curve(result) for when, result in results.items()}
    chart(
        refusal_curves_figure(curves),
        "Lines: harmful prompts refused against how many neurons were removed, before and after",
        key="refusal-curves",
    )


def _costs(results: dict[str, AttackResult]) -> None:
    from analysis.costs import printable_costs

    costed = {when: result for when, result in results.items() if result.costs}
    if not costed:
        st.info(
            "No costs were measured: switch them on among the options of the attack, and compare "
            "before and after again; answers that were judged are not asked for again."
        )
    for when, result in costed.items():
        st.markdown(f"**{when.capitalize()}**")
        st.dataframe(printable_costs(result), hide_index=True)
    if costed:
        st.caption(COSTS)
