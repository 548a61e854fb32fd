"""The floors: imports only go down, and what only reads results never loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = {"toolkit": {"toolkit"}, "analysis": {"toolkit", "analysis"}}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names & {"toolkit", "analysis", "app", "tests"}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_only_go_down(floor: str) -> None:
    files = sorted((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= FLOORS[floor], path


LIGHT = (
    "toolkit.neurons",
    "toolkit.masks",
    "toolkit.known_prompts",
    "toolkit.prompt_sets",
    "toolkit.prompts",
    "toolkit.models.sources",
    "toolkit.capture.moments",
    "toolkit.judge.moral",
    "toolkit.judge.refusal",
    "toolkit.judge.specs",
    "toolkit.train.recipes",
    "toolkit.train.preferences",
    "analysis.agreement",
    "analysis.requests",
    "analysis.study",
    "analysis.store",
    "analysis.opening",
    "analysis.scores",
    "analysis.identify",
    "analysis.neuron",
    "analysis.kept_neuron",
    "analysis.mask_library",
    "analysis.safety_map",
    "analysis.report",
    "analysis.rounds",
    "analysis.replicated",
    "analysis.robustness",
    "analysis.costs",
    "analysis.overlap.operands",
    "analysis.overlap.pairs",
    "analysis.overlap.kway",
    "analysis.overlap.composition",
    "analysis.redistribution",
    "analysis.figures.maps",
    "analysis.figures.paper",
    "analysis.exports.masks",
    "analysis.exports.images",
    "analysis.topics",
    "analysis.evidence.page",
    "analysis.capability",
    "analysis.chat",
    "analysis.estimate",
    "app.about",
    "app.cli",
    "app.jobs.chat",
    "app.jobs.folder",
)


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_do_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
