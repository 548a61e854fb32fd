"""What the numbers mean: scores, selections, statistics, the store, the study."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.opening import Study

__all__ = ["open_study"]


def open_study(path: str | Path | None = None) -> "Study":
    """Open the results under a folder as DataFrames; see :class:`analysis.opening.Study`.

    Raises:
        SafeNeuronError: there is no such folder, or nothing in it that can be read.
    """
    from analysis.opening import open_study as opened  # pandas, only when it is wanted

    return opened(path)
