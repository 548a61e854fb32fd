"""How neurons are chosen on a page: a method, a way, and the sliders that go with it."""

from functools import reduce
from operator import or_
from typing import Any

import numpy as np
import streamlit as st

from analysis.expressions import Leaf
from analysis.scores.registry import find_score
from analysis.select import METHODS, Selection, select_parts
from analysis.store import Entry
from app.dashboard import data
from app.dashboard.components.choose import number
from app.dashboard.tables import Table
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MethodInfo
from toolkit.neurons import NeuronSet

WAYS = {
    "study": "As the study chose",
    "thresholds": "Thresholds",
    "top": "Top share",
    "each": "A share for each score",
}
HELP = (
    "es is Cohen's d of one neuron, sas its shift among those of its layer; es+sas, the paper's, "
    "unites both. Other scores of the study's table stand by themselves."
)
MOST = 6  # scores of one method that each have a slider
Chosen = dict[str, NeuronSet]


def method_choices(entry: Entry, table: Table) -> list[str]:
    """Methods that the study's table can be chosen by, the study's own first."""
    found = []
    for method in dict.fromkeys((entry.summary["method"], *reversed(METHODS), *table.scores)):
        try:
            leaves = Selection(method, top=0.01).scores
        except SafeNeuronError:
            continue  # a column of no score known here
        if len(leaves) <= MOST and all(leaf.name in table.columns for leaf in leaves):
            found.append(method)
    return found


def select_neurons(entry: Entry, table: Table) -> tuple[Selection | None, Chosen]:
    """Widgets that choose, set at first as the study was made.

    Returns:
        The selection, None for the study's own mask; and what each score chose.

    Raises:
        SafeNeuronError: the study's mask is damaged.
    """
    key, made = entry.key, entry.summary["parameters"]
    methods = method_choices(entry, table)
    left, middle, right = st.columns([2, 2, 3])
    with left:
        asked = st.query_params.get("method", entry.summary["method"])
        method = st.selectbox(
            "Score",
            methods or [entry.summary["method"]],
            index=methods.index(asked) if asked in methods else 0,
            key=f"method-{key}",
            help=HELP,
        )
    ways = _ways(method) if methods else ["study"]
    usual = _usual(made) if method == entry.summary["method"] else "top"
    with middle:
        asked = st.query_params.get("by", usual)
        state = f"by-{key}"
        if st.session_state.get(state) not in (None, *ways):
            del st.session_state[state]
        index = ways.index(asked) if asked in ways else ways.index(usual) if usual in ways else 0
        by = st.radio(
            "Choose by",
            ways,
            index=index,
            format_func=lambda name: WAYS[name],
            key=state,
            help="Neurons above a threshold, or the best share of all neurons.",
        )
    with right:
        values = _sliders(by, method, made, table, key)
    for name in [name for name in st.query_params if name.startswith(("tau_", "top"))]:
        if name not in values:
            del st.query_params[name]
    for name, value in {"method": method, "by": by, **values}.items():
        st.query_params[name] = str(value)
    if by == "study":
        mask = data.mask_of(entry)
        return None, {n: mask.part(n) for n in mask.parts} or {"mask": mask.neuron_set()}
    selection = Selection.of(method, values)
    return selection, chosen_by(table, selection)


def chosen_by(table: Table, selection: Selection) -> Chosen:
    """What each score of a selection chooses in a table.

    Raises:
        SafeNeuronError: the table lacks one of them.
    """
    names = [leaf.name for leaf in selection.scores]
    missing = [name for name in (*names, "delta") if name not in table.columns]
    if missing:
        raise SafeNeuronError(f"the other study has no {', '.join(missing)}; choose another score")
    return select_parts(table.frame([*names, "delta"]), table.widths, selection)


def together(parts: Chosen) -> NeuronSet:
    """All that the scores chose."""
    return reduce(or_, parts.values())


def mask_file(entry: Entry, selection: Selection | None, parts: Chosen) -> MaskFile:
    """A selection as a mask file, with the study's provenance."""
    made = data.mask_of(entry)
    if selection is None:
        return made
    kept = {name: made.method.parameters.get(name) for name in ("position", "backend", "dtype")}
    parameters: dict[str, Any] = {**selection.parameters(), **kept}
    method = MethodInfo(name=selection.method, parameters=parameters)
    return MaskFile.of(together(parts), made.model, method, made.prompts, parts)


def _usual(made: dict[str, Any]) -> str:
    """The way that a study's parameters tell of."""
    if "fdr" in made or made.get("per_layer"):
        return "study"
    if "top" in made:
        return "top"
    return "each" if any(name.startswith("top_") for name in made) else "thresholds"


def _ways(method: str) -> list[str]:
    """The ways that a method can be chosen by: some scores have no threshold."""
    try:
        Selection(method)
    except SafeNeuronError:
        return ["study", "top", "each"]
    return list(WAYS)


def _sliders(
    by: str, method: str, made: dict[str, Any], table: Table, key: str
) -> dict[str, float]:
    values: dict[str, float] = {}
    leaves = Selection(method, top=0.01).scores if by != "study" else []
    if by == "thresholds":
        for leaf in leaves:
            values[f"tau_{leaf.name}"] = _threshold(leaf, made, table, key)
    elif by == "top":
        values["top"] = _share("Share of all neurons, %", "top", made, 0.01, key)
    elif by == "each":
        for leaf in leaves:
            name = f"top_{leaf.name}"
            values[name] = _share(f"Share by {leaf.name.upper()}, %", name, made, 0.005, key)
    else:
        st.caption("The mask is the study's own, whatever the sliders could do.")
    return values


def _threshold(leaf: Leaf, made: dict[str, Any], table: Table, key: str) -> float:
    """A slider from nothing to where only the strongest are left."""
    name = f"tau_{leaf.name}"
    usual = find_score(leaf.score).tau or 0.0
    if leaf.name in ("es", "sas"):
        low, high = 0.0, 8.0
    else:
        low, high = sorted((find_score(leaf.score).neutral, 1.5 * table.limit(leaf.name)))
        high = max(high, low + 1e-6, 1.25 * usual)
    step = 0.05 if high == 8.0 else float(f"{(high - low) / 160:.1g}")
    start = float(np.clip(number(name, float(made.get(name, usual))), low, high))
    label = f"{leaf.name.upper()} above"
    return float(st.slider(label, float(low), float(high), start, step, key=f"{name}-{key}"))


def _share(label: str, name: str, made: dict[str, Any], usual: float, key: str) -> float:
    """A share of the neurons, shown in per cent."""
    start = 100 * number(name, float(made.get(name, usual)))
    start = min(max(round(start, 2), 0.05), 20.0)
    shown = st.slider(label, 0.05, 20.0, start, 0.05, format="%.2f", key=f"{name}-{key}")
    return round(shown / 100, 6)
