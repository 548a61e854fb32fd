"""The whole method on the embedded model: identify, attack, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.report import write_report
from analysis.requests import DEFAULT_ATTACKED, OWN_ES, OWN_SAS, AttackRequest, IdentifyRequest
from analysis.robustness import AttackResult, finding
from analysis.study import attack, identify
from toolkit.files import require_writable
from toolkit.home import home
from toolkit.progress import Progress

MODEL = "smollm2-135m-aligned"


@dataclass(frozen=True)
class Demo:
    """What the demo made."""

    model: str
    mask: Path
    attack: Path
    report: Path
    result: AttackResult

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = finding(self.result)
        return {
            "model": self.model,
            "mask": str(self.mask),
            "attack": str(self.attack),
            "report": str(self.report),
            "verdict": found.sentence if found else None,
            "separated": found.separated if found else None,
        }


def run_demo(output: Path | None, progress: Progress) -> Demo:
    """Identify, attack with responses kept, and write the report.

    Args:
        output: the report's folder; by default one under ``SAFENEURON_HOME``.
        progress: hears of the work.
    """
    folder = output or home() / "demo"
    require_writable(folder, "folder")
    # Of the three positions the one whose neurons count most on this model (README).
    request = IdentifyRequest(
        model=MODEL, top_sas=OWN_SAS, top_es=OWN_ES, position="mean", leave_out=DEFAULT_ATTACKED
    )
    found = identify(request, progress)
    mask = found.entry.file("mask.json")
    done = attack(AttackRequest(model=MODEL, mask=mask, keep_responses=True), progress)
    scores = pd.read_parquet(found.entry.file("scores.parquet"))
    report = write_report(folder, found.mask, scores, done.result)
    return Demo(MODEL, mask, done.entry.file("attack.json"), report, done.result)
