"""What an overlap is asked of: masks and score tables, from files.

``FILE`` is a mask, ``FILE#es`` the part of a mask that one score chose, and
``scores.parquet#es`` a column of a score table (.parquet or .csv).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.overlap.ranks import rank_correlation
from toolkit.errors import SafeNeuronError
from toolkit.masks import read_mask
from toolkit.neurons import NeuronSet

TABLES = (".parquet", ".csv")
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Operand:
    """One side of an overlap.

    Args:
        name: as it was asked for.
        widths: neurons in each layer.
        neurons: the set, None for a score.
        scores: ``[neurons]``, layer after layer; None for a mask.
    """

    name: str
    widths: tuple[int, ...]
    neurons: NeuronSet | None = None
    scores: Vector | None = None

    def as_set(self, size: int) -> NeuronSet:
        """The set; of a score, its ``size`` highest neurons (ties by place)."""
        if self.neurons is not None:
            return self.neurons
        assert self.scores is not None
        mask = np.zeros(len(self.scores), dtype=np.bool_)
        mask[np.argsort(-self.scores, kind="stable")[:size]] = True
        return NeuronSet.from_masks(np.split(mask, np.cumsum(self.widths)[:-1]))


def read_operand(spec: str) -> Operand:
    """Read one side of an overlap.

    Raises:
        SafeNeuronError: no such file, part or column, or a table that is not of scores.
    """
    name, part = spec, ""
    if not Path(spec).exists() and "#" in spec:
        name, _, part = spec.rpartition("#")
    path = Path(name)
    if path.suffix.lower() in TABLES:
        return _scores(spec, path, part)
    mask = read_mask(path)
    neurons = mask.part(part) if part else mask.neuron_set()
    return Operand(spec, neurons.widths, neurons=neurons)


def read_scores(path: Path) -> pd.DataFrame:
    """A score table, sorted by layer and neuron.

    Raises:
        SafeNeuronError: it is missing, unreadable, or not one row a neuron.
    """
    if not path.is_file():
        raise SafeNeuronError(f"cannot read the scores {path}: No such file")
    try:
        reader = pd.read_parquet if path.suffix.lower() == ".parquet" else pd.read_csv
        table: pd.DataFrame = reader(path)
    except OSError as error:
        reason = error.strerror or "it is damaged"
        raise SafeNeuronError(f"cannot read the scores {path}: {reason}") from error
    except ValueError as error:  # pandas' and pyarrow's parsers both raise kinds of it
        raise SafeNeuronError(f"{path} is not a table: {str(error).splitlines()[0]}") from error
    if not {"layer", "neuron"} <= set(table.columns) or not len(table):
        raise SafeNeuronError(f"{path} has no scores: it needs the columns layer and neuron")
    table = table.sort_values(["layer", "neuron"], ignore_index=True)
    places = table.groupby("layer")["neuron"].agg(["min", "max", "count", "nunique"])
    whole = (places["min"] == 0) & (places["max"] == places["count"] - 1)
    if not (whole & (places["nunique"] == places["count"])).all():
        layer = places.index[~(whole & (places["nunique"] == places["count"]))][0]
        raise SafeNeuronError(f"{path}: layer {layer} does not have each of its neurons once")
    return table


def _scores(spec: str, path: Path, column: str) -> Operand:
    table = read_scores(path)
    columns = [name for name in table.columns if name not in ("layer", "neuron")]
    if column not in columns:
        raise SafeNeuronError(
            f"{spec}: choose a column of the table as {path.name}#COLUMN, one of "
            f"{', '.join(columns)}"
        )
    if not pd.api.types.is_numeric_dtype(table[column]):
        raise SafeNeuronError(f"{spec}: the column {column} does not hold numbers")
    widths = tuple(np.bincount(table["layer"].to_numpy()).tolist())
    return Operand(spec, widths, scores=table[column].to_numpy(dtype=np.float64))


def rank_table(operands: Sequence[Operand], by_layer: bool = False) -> pd.DataFrame:
    """Rank correlation of every pair of scores; empty where there are fewer than two.

    Returns:
        Columns ``a`` and ``b`` (names) and those of
        :class:`analysis.overlap.ranks.RankCorrelation`.
    """
    rows = []
    for a, b in combinations([o for o in operands if o.scores is not None], 2):
        assert a.scores is not None
        assert b.scores is not None
        whole, layers = rank_correlation(a.scores, b.scores, a.widths, (a.name, b.name))
        for row in [whole, *(layers if by_layer else [])]:
            rows.append({"a": a.name, "b": b.name} | vars(row))
    table = pd.DataFrame(rows)
    if rows:
        table["layer"] = table["layer"].astype("Int64")
    return table


def as_sets(operands: Sequence[Operand]) -> dict[str, NeuronSet]:
    """Every operand as a set.

    A score stands for its highest neurons, as many as the first mask has, or one in a
    hundred where all are scores. Names that repeat are counted.

    Raises:
        SafeNeuronError: a score with NaN.
    """
    masks = [o.neurons for o in operands if o.neurons is not None]
    sets: dict[str, NeuronSet] = {}
    for operand in operands:
        size = len(masks[0]) if masks else max(1, sum(operand.widths) // 100)
        if operand.scores is not None and np.isnan(operand.scores).any():
            raise SafeNeuronError(f"{operand.name} has scores that are no number (NaN)")
        times = sum(name.partition(" (")[0] == operand.name for name in sets)
        name = f"{operand.name} ({times + 1})" if times else operand.name
        sets[name] = operand.as_set(size)
    return sets
