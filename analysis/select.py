"""From scores to neuron sets: the paper's thresholds, or a top share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.scores.table import column
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

Method = Literal["es", "sas", "es+sas"]
METHODS: tuple[Method, ...] = get_args(Method)
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """How neurons are chosen from their scores.

    Either thresholds (Eq. 7 and 9) or a top share; a share for one score alone may be
    given beside, as ``top_es`` and ``top_sas``.

    Args:
        method: ``es``, ``sas`` or their union ``es+sas`` (paper Sec. 3.2, union fusion).
        tau_es: choose d > tau_es. The paper: 3 for Qwen, 2 for Llama.
        tau_sas: choose z > tau_sas with a positive shift. The paper: 2.
        top: choose this share of the model's neurons. For the union, the same number
            from the head of each score, as many as keep the union within the share.
        top_es, top_sas: choose this share by each score, and unite.
    """

    method: Method = "es+sas"
    tau_es: float = 2.0
    tau_sas: float = 2.0
    top: float | None = None
    top_es: float | None = None
    top_sas: float | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise SafeNeuronError(f"no method {self.method!r}; choose one of {', '.join(METHODS)}")
        for name in ("top", "top_es", "top_sas"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                flag = "--" + name.replace("_", "-")
                raise SafeNeuronError(
                    f"{flag} {share:g} is not a share between 0 and 1; 0.01 chooses 1 %"
                )
        if not (np.isfinite(self.tau_es) and np.isfinite(self.tau_sas)):
            raise SafeNeuronError("a threshold must be a finite number")
        if self.top is not None and (self.top_es is not None or self.top_sas is not None):
            raise SafeNeuronError("give --top alone, or --top-es and --top-sas")

    def parameters(self) -> dict[str, float | str]:
        """What was asked for, as the mask file records it."""
        shares = {"top": self.top, "top_es": self.top_es, "top_sas": self.top_sas}
        given = {name: share for name, share in shares.items() if share is not None}
        if given:
            return dict(given)
        parts = self.method.split("+")
        taus = {"tau_es": self.tau_es, "tau_sas": self.tau_sas}
        return {name: tau for name, tau in taus.items() if name.removeprefix("tau_") in parts}


def _ranked(score: npt.NDArray[np.float64], allowed: Mask) -> npt.NDArray[np.int64]:
    """Allowed neurons, best first; ties by place, so that the order is one."""
    order = np.argsort(-score, kind="stable")
    return order[allowed[order]]


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

    def heads(size: int) -> dict[str, Mask]:
        return {name: _head(order, size, total) for name, order in orders.items()}

    low, high = 0, budget
    while low < high:
        size = (low + high + 1) // 2
        if np.logical_or.reduce(list(heads(size).values())).sum() <= budget:
            low = size
        else:
            high = size - 1
    return heads(low)


def select_flat(table: pd.DataFrame, selection: Selection) -> dict[str, Mask]:
    """Which rows of a score table each of the method's scores chooses, ``[neurons]`` each."""
    delta = column(table, "delta")
    names = selection.method.split("+")
    scores = {name: column(table, name) for name in names}
    total = len(table)
    shares = {"es": selection.top_es, "sas": selection.top_sas}
    if selection.top is None and not any(shares.values()):
        taus = {"es": selection.tau_es, "sas": selection.tau_sas}
        # Eq. 7 has no other condition; Eq. 9 asks for a positive shift besides.
        passed = {name: scores[name] > taus[name] for name in names}
        return {name: m & (delta > 0) if name == "sas" else m for name, m in passed.items()}
    # A share is one-sided as the thresholds are: a safety neuron fires more on harmful prompts.
    orders = {name: _ranked(scores[name], (scores[name] > 0) & (delta > 0)) for name in names}
    if selection.top is not None:
        return _equal_heads(orders, _size(selection.top, total), total)
    sizes = {name: _size(shares[name] or 0.0, total) for name in names}
    return {name: _head(orders[name], sizes[name], total) for name in names}


def select_parts(
    table: pd.DataFrame, widths: Sequence[int], selection: Selection
) -> dict[str, NeuronSet]:
    """Choose neurons by each of the method's scores: score -> set.

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
