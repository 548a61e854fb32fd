"""Overlap: how far masks and scores agree, always beside what chance alone would give."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from analysis.figures.matrix import overlap_matrix_figure
from analysis.figures.paper import composition_figure, kway_figure, method_overlap_figure
from analysis.mask_library import Card, cards
from analysis.overlap.composition import composition
from analysis.overlap.kway import kway_table
from analysis.overlap.operands import Operand, as_sets, rank_table
from analysis.overlap.pairs import overlap_by_layer, overlap_table
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_many, choose_one
from app.dashboard.components.downloads import downloads
from app.dashboard.components.gate import admit
from app.dashboard.components.terms import terms
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from app.dashboard.tables import Table
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet

MOST = 12  # sets in one matrix


@dataclass(frozen=True)
class Side:
    """Something that overlaps.

    Args:
        label: what it is.
        shape: widths of its model.
        read: makes it.
    """

    label: str
    shape: tuple[int, ...]
    read: Callable[[str], Operand]


def _sides() -> dict[str, Side]:
    """Every mask, every part of one that a score chose, and every score; by a short name."""
    found: dict[str, Side] = {}
    for card in cards():
        if not card.count:
            continue
        label = data.mask_label(card)
        found[card.sha256[:12]] = Side(label, card.widths, _mask(card, None))
        # A method of one score has one part, the mask itself.
        for part in card.parts if len(card.parts) > 1 else ():
            name = f"{card.sha256[:12]}:{part}"
            found[name] = Side(f"{part} of {label}", card.widths, _mask(card, part))
    for study in data.studies():
        try:
            table = Table(study)
        except SafeNeuronError:
            continue
        for score in table.scores:
            name = f"{study.key[:12]}@{score}"
            label = f"score {score} of {data.study_label(study)}"
            found[name] = Side(label, tuple(table.widths), _score(table, score))
    return found


def _mask(card: Card, part: str | None) -> Callable[[str], Operand]:
    def read(label: str) -> Operand:
        mask = read_mask(card.path)
        neurons = mask.neuron_set() if part is None else mask.part(part)
        return Operand(label, neurons.widths, neurons=neurons)

    return read


def _score(table: Table, score: str) -> Callable[[str], Operand]:
    return lambda label: Operand(label, tuple(table.widths), scores=table.column(score))


def _matrix(pairs: pd.DataFrame, sets: dict[str, NeuronSet]) -> None:
    st.subheader("Every pair")
    most = pairs.iloc[int(pairs["jaccard"].argmax())]
    chart(
        overlap_matrix_figure(pairs, list(sets)),
        f"Matrix of Jaccard indices of {len(sets)} sets; the most alike are {most['a']} and "
        f"{most['b']} with {most['jaccard']:.1%}, by chance {most['jaccard_chance']:.1%}",
        key="matrix",
    )
    st.caption(
        "Jaccard index in per cent; beneath it what chance gives. A score stands for its "
        "highest neurons, as many as the first mask has."
    )
    with st.expander("Figures of every pair", icon=":material/table:"):
        shown = pairs.drop(columns=["layer", "width"])
        st.dataframe(
            shown,
            hide_index=True,
            column_config={
                name: st.column_config.NumberColumn(format="%.3g")
                for name in shown.columns
                if shown[name].dtype == float
            },
        )
    downloads("overlap", lambda: pairs, key="pairs")


def _pair(sets: dict[str, NeuronSet]) -> None:
    """Two of the sets, layer by layer."""
    st.subheader("Two of them, layer by layer")
    names = list(sets)
    places = [str(i) for i in range(len(names))]
    left, right = st.columns(2)
    with left:
        first = choose_one("first", "One", places, lambda i: names[int(i)])
    others = [place for place in places if place != first]
    with right:
        second = choose_one("second", "The other", others, lambda i: names[int(i)])
    one, other = names[int(first)], names[int(second)]
    rows = overlap_by_layer(sets[one], sets[other])
    chart(
        method_overlap_figure(rows, (f"set {int(first) + 1}", f"set {int(second) + 1}")),
        f"Bars: Jaccard index of the two in each of {len(rows)} layers, and the band that 95 of "
        "100 random draws stay within",
        key="by-layer",
    )
    downloads("overlap-by-layer", lambda: rows, key="by-layer")


def _several(sets: dict[str, NeuronSet]) -> None:
    st.subheader("Any K of them")
    table = kway_table(sets)
    last = table.iloc[-1]
    chart(
        kway_figure(table),
        f"Curve: share of neurons in all of K sets among those in any, falling to "
        f"{last['ratio']:.1%} for all {last['k']:.0f}; by chance {last['ratio_chance']:.1%}",
        key="kway",
    )
    downloads("kway", lambda: table, key="kway")
    st.subheader("Composition by layer")
    classes = composition(sets)
    totals = classes.totals()
    told = ", ".join(
        f"{row['neurons']:,} {row['class']} ({row['share']:.1%}; by chance "
        f"{row['chance']:,.1f} neurons)"
        for row in totals.to_dict("records")
    )
    st.caption(plain(f"{told}; p of the core {classes.p_core:.2g}"))
    chart(
        composition_figure(classes.layers),
        f"Stacked bars: share of core, shared and specific neurons in each layer; in all {told}",
        key="composition",
    )
    downloads("composition", lambda: classes.layers, key="composition")


def _ranks(operands: list[Operand]) -> None:
    ranks = rank_table(operands)
    if not len(ranks):
        return
    st.subheader("Rank correlation of the scores")
    shown = ranks.drop(columns=["layer"])
    st.dataframe(shown, hide_index=True)
    downloads("ranks", lambda: ranks, key="ranks")


def _usual(sides: dict[str, Side]) -> list[str]:
    """Two that can be held against each other: the newest study's mask, and the next of its shape.

    Where no two masks are of one shape, a mask and its own parts or scores.
    """
    masks = [name for name in sides if not set(name) & set(":@")]
    for pool in (masks, list(sides)):
        for name in pool:
            others = [one for one in pool if one != name and sides[one].shape == sides[name].shape]
            if others:
                return [name, *others[:2]]
    return list(sides)[:1]


def _page(sides: dict[str, Side]) -> None:
    labels = {name: side.label for name, side in sides.items()}
    chosen = choose_many(
        "sets",
        "Masks and scores",
        list(sides),
        lambda name: labels[name],
        _usual(sides),
        max_selections=MOST,
        help="Two or more of one model shape. The order is that of the matrix.",
    )
    terms(
        "Jaccard index",
        "Overlap coefficient",
        "Chance",
        "p",
        "Overlap ratio",
        "Core, shared, specific",
        "Rank correlation",
    )
    if len(chosen) < 2:
        st.info(
            "Choose at least two: overlap is between masks, parts of masks, or scores.",
            icon=":material/explore:",
        )
        return
    operands = [sides[name].read(labels[name]) for name in chosen]
    sets = as_sets(operands)
    pairs = overlap_table(sets)
    _matrix(pairs, sets)
    _pair(sets)
    if len(sets) > 2:
        _several(sets)
    _ranks(operands)


admit()
heading(
    "Overlap",
    "Do two methods, two topics, or a model before and after alignment find the same neurons? "
    "Masks and scores against each other, beside what chance alone would give.",
)
found = _sides()
if not found:
    nothing_yet("mask", "identify the neurons of a model of yours on the Safety map")
else:
    try:
        _page(found)
    except SafeNeuronError as error:
        failure(error)
