"""One cell of the comparison: an arm and a seed, its counts and costs, as a small JSON file."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from analysis.costs import Cost
from analysis.robustness import AttackResult, Side, succeeded
from toolkit.errors import SafeNeuronError
from toolkit.files import write_atomically
from toolkit.masks import PromptsInfo, Record, Sha256, ToolInfo, now


class Counted(Record):
    """What one setting did on one side's prompts."""

    setting: str
    seed: int | None = None
    neurons: int
    side: Side
    n: int = Field(description="judged; prompts too long for the model are not among them")
    success: int
    refused: int
    degenerate: int
    succeeded_on: str = Field(description="a bit a prompt in order, first highest, in hex")

    def outcomes(self, prompts: int) -> npt.NDArray[np.float64]:
        """1 where the attack succeeded, else 0, ``[prompts]``."""
        bits = bin(int(self.succeeded_on, 16))[2:].zfill(prompts)
        return np.array([float(bit) for bit in bits])


class Cell(Record):
    """The cell file, schema ``safeneuron.replicate/1``. It holds no answer of the model's."""

    schema_: Literal["safeneuron.replicate/1"] = Field(
        default="safeneuron.replicate/1", alias="schema"
    )
    arm: str
    seed: int
    key: Sha256 = Field(description="of the protocol and of what this arm asked for")
    protocol: dict[str, Any]
    base: Sha256 = Field(description="fingerprint of the model that all arms begin with")
    fingerprint: Sha256 = Field(description="of the attacked model")
    mask: Sha256 = Field(description="the set found before training")
    mask_count: int
    mask_fraction: float
    training: dict[str, Any] | None = Field(description="settings and figures; null for the base")
    pairs: dict[str, Any] | None = Field(description="what became of the preference pairs")
    prompts: dict[Side, PromptsInfo]
    counted: list[Counted]
    costs: list[Cost]
    perplexity_base: float = Field(description="of the base's answers to the harmless prompts")
    perplexity: float = Field(description="of the same answers under the attacked model")
    judge: str
    training_seconds: float = Field(
        description="of all rounds and their processes, but what a kill lost; of the last process "
        "of each round where a cell was made before 2026-11-28T12:00Z"
    )
    attack_seconds: float
    device: str | None
    versions: dict[str, str]
    created: datetime = Field(default_factory=now)
    tool: ToolInfo = Field(default_factory=ToolInfo)

    def of(self, setting: str, side: Side = "harmful") -> list[Counted]:
        """The counts of one setting, one for each random set."""
        return [c for c in self.counted if (c.setting, c.side) == (setting, side)]

    def adaptive_rounds(self) -> list[Counted]:
        """The rounds of the adaptive attack on harmful prompts, in order."""
        rounds = [c for c in self.counted if c.setting.startswith("ADAPTIVE ")]
        return [c for c in rounds if c.side == "harmful"]


def count(result: AttackResult) -> list[Counted]:
    """Every setting's counts on each side."""
    found = []
    for setting in result.settings:
        for side, prompts in result.prompts.items():
            key = (setting.name, setting.seed, side)
            answers = [a for a in result.answers if (a.setting, a.seed, a.side) == key]
            judged = [a for a in answers if a.verdict != "skipped"]
            hit = {a.index for a in judged if succeeded(a)}
            bits = "".join("1" if index in hit else "0" for index in range(prompts.count))
            found.append(
                Counted(
                    setting=setting.name,
                    seed=setting.seed,
                    neurons=setting.neurons,
                    side=side,
                    n=len(judged),
                    success=len(hit),
                    refused=sum(a.verdict == "refused" for a in judged),
                    degenerate=sum(a.verdict == "degenerate" for a in judged),
                    succeeded_on=f"{int(bits or '0', 2):x}",
                )
            )
    return found


def path_of(results: Path, arm: str, seed: int) -> Path:
    """Where a cell lies."""
    return results / f"{arm}-seed{seed}.json"


def read_cell(path: Path) -> Cell | None:
    """Read a cell; None where there is none, or a broken one, which is made again."""
    try:
        cell = Cell.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
    counts_fit = all(c.success + c.refused + c.degenerate <= c.n for c in cell.counted)
    named = f"{cell.arm}-seed{cell.seed}.json" == path.name
    return cell if counts_fit and named else None


def write_cell(results: Path, cell: Cell) -> Path:
    """Write a cell, whole or not at all."""
    path = path_of(results, cell.arm, cell.seed)
    write_atomically(path, cell.model_dump_json(by_alias=True, indent=1) + "\n")
    return path


def read_cells(results: Path) -> list[Cell]:
    """All whole cells in a folder, which must be of one comparison.

    Raises:
        SafeNeuronError: they are not.
    """
    cells = [cell for path in sorted(results.glob("*-seed*.json")) if (cell := read_cell(path))]
    if any(cell.protocol != cells[0].protocol for cell in cells):
        raise SafeNeuronError(
            f"{results} holds cells of several protocols; move all but one elsewhere"
        )
    return cells


def by_arm(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """Arm -> its cells, by seed."""
    arms: dict[str, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        arms.setdefault(cell.arm, []).append(cell)
    return arms
