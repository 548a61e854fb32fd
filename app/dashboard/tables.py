"""Score tables, column by column: read once, shared by all sessions and never copied.

A large study has millions of neurons. What a page needs of it are a few columns, and of one
neuron a single layer, which the file gives without the rest.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq
import streamlit as st

from analysis.figures import score_bins
from analysis.kept_neuron import NO_SCORES, score_names
from analysis.safety_map import colour_limit, difference
from analysis.store import Entry
from toolkit.errors import SafeNeuronError

Vector = npt.NDArray[np.float64]
Result = TypeVar("Result")
Place = tuple[str, int]  # a file, and when it was changed
# Of 2.3 million neurons a column has 18 MB, a layer some 3 MB.
COLUMNS, LAYERS, DERIVED = 20, 16, 4


class Table:
    """A study's scores.

    Args:
        entry: the study.

    Raises:
        SafeNeuronError: its table is gone, damaged or of another shape.
    """

    def __init__(self, entry: Entry) -> None:
        self._title = entry.title
        self.path = entry.file("scores.parquet")
        self.widths: list[int] = list(entry.summary["widths"])
        rows, self.columns = self._of(_shape)
        if rows != sum(self.widths) or not {"layer", "neuron"} <= set(self.columns):
            raise self._unreadable()
        self.scores = score_names(self.columns)

    def column(self, name: str) -> Vector:
        """A column, ``[neurons]``, layer after layer; read-only."""
        return self._of(_column, name)

    def frame(self, names: list[str]) -> pd.DataFrame:
        """Some columns as a table that shares their memory."""
        found = {name: self.column(name) for name in dict.fromkeys(names)}
        return pd.DataFrame(found, copy=False)

    def neuron(self, layer: int, neuron: int) -> dict[str, float]:
        """Every column of one neuron."""
        row = self._of(_layer, layer).iloc[neuron]
        return {str(name): float(value) for name, value in row.items()}

    def strongest(self, name: str) -> tuple[int, int]:
        """Layer and place of the neuron with the highest score."""
        place = self._of(_highest, name)
        starts = np.cumsum([0, *self.widths])
        layer = int(np.searchsorted(starts, place, "right")) - 1
        return layer, place - int(starts[layer])

    def limit(self, name: str) -> float:
        """Where the colours of a score end."""
        return self._of(_limit, name)

    def bins(self, name: str) -> tuple[npt.NDArray[np.int64], Vector]:
        """How many neurons have each value of a score, and the bins' edges."""
        return self._of(_bins, name)

    def whole(self) -> pd.DataFrame:
        """All of it, for a download; not kept."""
        return self._of(lambda path, changed: pd.read_parquet(path))

    def minus(self, name: str, other: "Table", other_name: str) -> Vector:
        """What another table's score has more than one of this; read-only."""
        return self._of(_difference, name, other._place(), other_name)

    def _place(self) -> Place:
        return str(self.path), self.path.stat().st_mtime_ns

    def _of(self, read: Callable[..., Result], *more: Any) -> Result:
        try:
            return read(*self._place(), *more)
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise self._unreadable() from error

    def _unreadable(self) -> SafeNeuronError:
        return SafeNeuronError(
            f"the scores of {self._title} cannot be read; 'safeneuron cache verify' sets the "
            "damaged study aside, and identifying again makes it anew"
        )


@st.cache_resource(max_entries=256, show_spinner=False)
def _shape(path: str, changed: int) -> tuple[int, list[str]]:
    with pq.ParquetFile(path) as file:
        return file.metadata.num_rows, list(file.schema_arrow.names)


@st.cache_resource(max_entries=COLUMNS, show_spinner=False)
def _column(path: str, changed: int, name: str) -> Vector:
    values: Vector = pq.read_table(path, columns=[name])[name].to_numpy().astype(np.float64)
    values.setflags(write=False)
    return values


@st.cache_resource(max_entries=LAYERS, show_spinner=False)
def _layer(path: str, changed: int, layer: int) -> pd.DataFrame:
    return pd.read_parquet(path, filters=[("layer", "==", layer)])


@st.cache_resource(max_entries=256, show_spinner=False)
def _limit(path: str, changed: int, name: str) -> float:
    return colour_limit(_column(path, changed, name))


@st.cache_resource(max_entries=256, show_spinner=False)
def _highest(path: str, changed: int, name: str) -> int:
    values = _column(path, changed, name)
    return int(np.where(np.isfinite(values), values, -np.inf).argmax())


@st.cache_resource(max_entries=256, show_spinner=False)
def _bins(path: str, changed: int, name: str) -> tuple[npt.NDArray[np.int64], Vector]:
    return score_bins(_column(path, changed, name))


@st.cache_resource(max_entries=DERIVED, show_spinner=False)
def _difference(path: str, changed: int, name: str, other: Place, other_name: str) -> Vector:
    one_score = name == other_name
    found = difference(_column(path, changed, name), _column(*other, other_name), one_score)
    found.setflags(write=False)
    return found


def colours_of(columns: list[str]) -> list[str]:
    """What a map can be coloured by: the scores, then the shift and the means behind them."""
    behind = [name for name in NO_SCORES if name in columns and name not in ("layer", "neuron")]
    return [*score_names(columns), *behind]
