"""From scores to neuron sets: thresholds, top shares, false-discovery rates, set expressions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import pairwise
from operator import or_
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import JsonValue

from analysis.expressions import Expression, Leaf, Mask, combine, is_union, leaves, parse, taken
from analysis.scores.registry import Score, all_scores, find_score
from analysis.scores.resampling import false_discovery_rate
from analysis.scores.table import column
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

Method = Literal["es", "sas", "es+sas"]
METHODS: tuple[Method, ...] = get_args(Method)
"""The paper's methods. A selection takes any expression (:mod:`analysis.expressions`)."""


@dataclass(frozen=True)
class Selection:
    """How neurons are chosen from their scores.

    Each score of the method chooses neurons: by a false-discovery rate, else by a share,
    else by a threshold. The method's expression then combines what they chose.

    Args:
        method: an expression over scores; ``es+sas`` is the paper's union (Sec. 3.2).
        tau_es: choose d > tau_es. The paper: 3 for Qwen, 2 for Llama.
        tau_sas: choose z > tau_sas with a positive shift. The paper: 2.
        top: choose this share of the neurons by each score. For a union, the same number
            from the head of each score, as many as keep the union within the share.
        top_es, top_sas: choose this share by that score.
        tau: thresholds of other scores, by name.
        share: shares of other scores, by name; ``snip@utility`` is one of its own.
        fdr: choose by each score the neurons whose p-value passes Benjamini and Hochberg's
            procedure at this rate.
        per_layer: shares and rates are of each layer, not of the model.

    Raises:
        SafeNeuronError: no such method, a share that is none, a threshold that is no
            number, or a score without the p-value or the threshold it is to choose by.
    """

    method: str = "es+sas"
    tau_es: float = 2.0
    tau_sas: float = 2.0
    top: float | None = None
    top_es: float | None = None
    top_sas: float | None = None
    tau: Mapping[str, float] = field(default_factory=dict)
    share: Mapping[str, float] = field(default_factory=dict)
    fdr: float | None = None
    per_layer: bool = False

    def __post_init__(self) -> None:
        for leaf in leaves(self.expression):
            if leaf.score not in all_scores():
                raise SafeNeuronError(
                    f"no method {leaf.score!r}; choose one of {', '.join(all_scores())}, or "
                    "combine them with + (union), & (intersection) and - (difference)"
                )
        self._check_numbers()
        if self.top is not None and (self.top_es is not None or self.top_sas is not None):
            raise SafeNeuronError("give --top alone, or --top-es and --top-sas")
        if self.fdr is not None:
            if self.by_share:
                raise SafeNeuronError("give --fdr or a share, not both")
            for leaf in leaves(self.expression):
                if find_score(leaf.score).p_value is None or leaf.side == "contrast":
                    raise SafeNeuronError(
                        f"{leaf.name} has no p-value for --fdr; t and auc have one (t ranks as es "
                        "does)"
                    )
        elif not self.by_share:
            if self.per_layer:
                raise SafeNeuronError("a threshold knows no layers: give --per-layer with --top")
            for leaf in leaves(self.expression):
                self.threshold(leaf)

    def _check_numbers(self) -> None:
        named = {leaf.name for leaf in leaves(self.expression)}
        for flag, numbers in (("tau", self.tau), ("share", self.share)):
            for name in numbers:
                if name not in named:
                    raise SafeNeuronError(
                        f"--{flag} {name}: the method {self.method} has no score of that name"
                    )
        shares = {
            f"--{n.replace('_', '-')}": getattr(self, n) for n in ("top", "top_es", "top_sas")
        }
        shares |= {f"--share {name}": share for name, share in self.share.items()}
        for flag, share in shares.items():
            if share is not None and not 0 < share < 1:
                raise SafeNeuronError(
                    f"{flag} {share:g} is not a share between 0 and 1; 0.01 chooses 1 %"
                )
        if self.fdr is not None and not 0 < self.fdr < 1:
            raise SafeNeuronError(f"--fdr {self.fdr:g} is not a rate between 0 and 1; try 0.05")
        if not np.isfinite([self.tau_es, self.tau_sas, *self.tau.values()]).all():
            raise SafeNeuronError("a threshold must be a finite number")

    @classmethod
    def of(cls, method: str, parameters: Mapping[str, JsonValue]) -> "Selection":
        """The selection that :meth:`parameters` tells of.

        Raises:
            SafeNeuronError: the method is not known here.
        """
        own = {"tau_es", "tau_sas", "top", "top_es", "top_sas", "fdr"}
        numbers = {
            name: float(value)
            for name, value in parameters.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        return cls(
            method,
            **{name: value for name, value in numbers.items() if name in own},
            tau=_named("tau_", numbers, own),
            share=_named("top_", numbers, own),
            per_layer=parameters.get("per_layer") is True,
        )

    @cached_property
    def expression(self) -> Expression:
        """The method, read."""
        return parse(self.method)

    @property
    def scores(self) -> list[Leaf]:
        """What the method asks to be measured."""
        return leaves(self.expression)

    @property
    def by_share(self) -> bool:
        """Whether a share was asked for; else thresholds choose, or a rate."""
        return bool(self.share) or any(
            share is not None for share in (self.top, self.top_es, self.top_sas)
        )

    def threshold(self, leaf: Leaf) -> float:
        """The threshold of one of the method's scores.

        Raises:
            SafeNeuronError: it has none, and none was given.
        """
        own = {"es": self.tau_es, "sas": self.tau_sas}
        if leaf.name in self.tau:
            return self.tau[leaf.name]
        usual = self.tau.get(leaf.score, own.get(leaf.score, find_score(leaf.score).tau))
        if usual is None or leaf.side == "contrast":
            raise SafeNeuronError(
                f"{leaf.name} has no threshold of its own; choose a share with --top 0.01, or give "
                f"--tau {leaf.name}=NUMBER"
            )
        return usual

    def share_of(self, leaf: Leaf) -> float:
        """The share that one of the method's scores chooses, 0 where others were given one."""
        own = {"es": self.top_es, "sas": self.top_sas}.get(leaf.name)
        given = self.share.get(leaf.name, own)
        return (self.top or 0.0) if given is None else given

    def parameters(self) -> dict[str, JsonValue]:
        """What was asked for, as the mask file records it."""
        given: dict[str, JsonValue] = {}
        if self.fdr is not None:
            given["fdr"] = self.fdr
        elif self.by_share:
            shares = {"top": self.top, "top_es": self.top_es, "top_sas": self.top_sas}
            shares |= {f"top_{name}": share for name, share in self.share.items()}
            given |= {name: share for name, share in shares.items() if share is not None}
        else:
            given |= {f"tau_{leaf.name}": self.threshold(leaf) for leaf in self.scores}
        return given | ({"per_layer": True} if self.per_layer else {})


def _named(prefix: str, numbers: Mapping[str, float], own: set[str]) -> dict[str, float]:
    return {
        name.removeprefix(prefix): value
        for name, value in numbers.items()
        if name.startswith(prefix) and name not in own
    }


@dataclass(frozen=True)
class _Column:
    """One score of some neurons, and which of them it may choose."""

    values: npt.NDArray[np.float64]
    p: npt.NDArray[np.float64] | None
    score: Score
    rises: Mask

    @property
    def allowed(self) -> Mask:
        # A share is one-sided as the thresholds are: a safety neuron fires more on harmful prompts.
        allowed: Mask = self.values > self.score.neutral
        return allowed & self.rises if self.score.rising else allowed

    def part(self, rows: slice) -> "_Column":
        p = None if self.p is None else self.p[rows]
        return _Column(self.values[rows], p, self.score, self.rises[rows])


def _ranked(values: npt.NDArray[np.float64], allowed: Mask, most: int) -> npt.NDArray[np.int64]:
    """The ``most`` best allowed neurons, best first; ties by place, so that the order is one."""
    places = np.flatnonzero(allowed)
    if 0 < most < len(places):
        # What is out of reach is not sorted: a large model has millions.
        last = np.partition(values[places], len(places) - most)[len(places) - most]
        places = places[values[places] >= last]
    return places[np.argsort(-values[places], kind="stable")][:most]


def _size(share: float, total: int) -> int:
    """How many neurons a share is, rounded down."""
    return int(share * total + 1e-9)  # 0.29 * 100 is a hair under 29 in floating point


def _head(order: npt.NDArray[np.int64], size: int, total: int) -> Mask:
    mask = np.zeros(total, dtype=np.bool_)
    mask[order[:size]] = True
    return mask


def _equal_heads(
    orders: dict[str, npt.NDArray[np.int64]], budget: int, total: int
) -> dict[str, Mask]:
    """The heads of all orders, equally long, as long as their union fits the budget."""
    rank = np.full(total, total, dtype=np.int64)
    for order in orders.values():
        rank[order] = np.minimum(rank[order], np.arange(len(order)))
    # Heads of n have those neurons together that some order has among its first n.
    best = np.sort(rank[rank < total])
    size = int(best[budget]) if len(best) > budget else budget
    return {name: _head(order, size, total) for name, order in orders.items()}


def _choose(columns: dict[str, _Column], selection: Selection, total: int) -> dict[str, Mask]:
    """What each score chooses among ``total`` neurons, before they are combined."""
    if selection.fdr is not None:
        rates = {n: false_discovery_rate(c.p) for n, c in columns.items() if c.p is not None}
        return {n: (q <= selection.fdr) & columns[n].allowed for n, q in rates.items()}
    named = {leaf.name: leaf for leaf in selection.scores}
    shares = {name: selection.share_of(leaf) for name, leaf in named.items()}
    if not any(shares.values()):
        # Eq. 7 has no other condition; Eq. 9 asks for a positive shift besides.
        passed = {n: c.values > selection.threshold(named[n]) for n, c in columns.items()}
        return {
            n: m & columns[n].rises if columns[n].score.rising else m for n, m in passed.items()
        }
    equal = is_union(selection.expression) and set(shares.values()) == {selection.top}
    orders = {
        name: _ranked(c.values, c.allowed, _size(shares[name], total))
        for name, c in columns.items()
    }
    if equal:
        return _equal_heads(orders, _size(selection.top or 0.0, total), total)
    return {name: _head(orders[name], _size(shares[name], total), total) for name in orders}


def select_flat(table: pd.DataFrame, selection: Selection) -> dict[str, Mask]:
    """Which rows of the selection each of the method's scores chose, ``[neurons]`` each.

    The selection is their union: a score that only takes neurons away has no part of it.
    """
    rises = column(table, "delta") > 0
    columns = {
        leaf.name: _Column(
            column(table, leaf.name),
            column(table, f"{leaf.name}_p") if selection.fdr is not None else None,
            find_score(leaf.score),
            rises,
        )
        for leaf in selection.scores
    }
    total = len(table)
    bounds = [0, total]
    if selection.per_layer:
        bounds = [*(np.flatnonzero(np.diff(table["layer"].to_numpy(), prepend=-1))), total]
    chosen = {name: np.zeros(total, dtype=np.bool_) for name in columns}
    for start, stop in pairwise(bounds):
        rows = slice(start, stop)
        parts = {name: whole.part(rows) for name, whole in columns.items()}
        for name, mask in _choose(parts, selection, stop - start).items():
            chosen[name][rows] = mask
    whole = combine(selection.expression, chosen)
    return {leaf.name: chosen[leaf.name] & whole for leaf in taken(selection.expression)}


def select_parts(
    table: pd.DataFrame, widths: Sequence[int], selection: Selection
) -> dict[str, NeuronSet]:
    """Choose neurons, and say which score chose which: score -> set.

    Args:
        table: as :func:`analysis.scores.table.score_table` makes it, in its order.
        widths: neurons in each layer.
        selection: how.
    """
    cuts = np.cumsum(widths)[:-1]
    return {
        name: NeuronSet.from_masks(np.split(mask, cuts))
        for name, mask in select_flat(table, selection).items()
    }


def select(table: pd.DataFrame, widths: Sequence[int], selection: Selection) -> NeuronSet:
    """Choose neurons from a score table: the union of :func:`select_parts`."""
    return reduce(or_, select_parts(table, widths, selection).values())
