"""Must hold 4: a run that was killed anywhere ends with the weights of an unbroken one."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from analysis.align_requests import AlignRequest
from analysis.alignment import align
from tests.tiny import HARMFUL, HARMLESS
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, PromptsInfo
from toolkit.models.load import load_model
from toolkit.neurons import NeuronSet
from toolkit.train.dpo import CHECKPOINTS, newest_checkpoint

STEPS, EVERY = 12, 3
# Where SIGKILL strikes: drawn once, so that a failure can be had again.
STRIKES = sorted(random.Random(20260212).sample(range(1, STEPS), 5))
KINDS: dict[str, dict[str, Any]] = {
    "full": {"recipe": "safeneuron"},
    "lora": {"recipe": "safeneuron", "lora_rank": 4, "learning_rate": 1e-2},
    "adaptive": {"recipe": "adaptive", "find_every": 5},
    "neuronguard": {"recipe": "neuronguard", "find_every": 5},
    "accumulated": {"recipe": "safeneuron", "micro_batch": 2},
}
CHILD = """
import os, pathlib, signal, sys
from analysis.alignment import align
from analysis.align_requests import AlignRequest
request = AlignRequest.model_validate_json(pathlib.Path(sys.argv[1]).read_text())
strike, number = int(sys.argv[3]), int(sys.argv[4])
def hear(event):
    if event.get("kind") == "train" and event["step"] == strike:
        os.kill(os.getpid(), number)
outcome = align(request, pathlib.Path(sys.argv[2]), hear, lambda: False)
sys.exit(0 if outcome.finished else 7)
"""


@pytest.fixture(scope="module")
def requests(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AlignRequest]:
    folder = tmp_path_factory.mktemp("requests")
    loaded = load_model(str(tiny_llama))
    side = PromptsInfo(name="p", sha256="0" * 64, count=2)
    MaskFile.of(
        NeuronSet(loaded.layout.widths, {0: [1, 2], 2: [5, 63]}),
        loaded.info,
        MethodInfo(name="es+sas", parameters={"top": 0.03}),
        MaskPrompts(harmful=side, harmless=side),
    ).write(folder / "mask.json")
    for name, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        (folder / f"{name}.txt").write_text("\n".join(texts), "utf-8")
    rows = [{"prompt": p, "chosen": "I can't help", "rejected": f"Sure: {p}"} for p in HARMFUL]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    shared: dict[str, Any] = {
        "model": str(tiny_llama),
        "mask": folder / "mask.json",
        "pairs": folder / "pairs.jsonl",
        "harmful": str(folder / "harmful.txt"),
        "harmless": str(folder / "harmless.txt"),
        "steps": STEPS,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "save_every": EVERY,
    }
    return {name: AlignRequest(**shared | update) for name, update in KINDS.items()}


@pytest.fixture(scope="module")
def unbroken(
    requests: dict[str, AlignRequest], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    found = {}
    for name, request in requests.items():
        folder = tmp_path_factory.mktemp("unbroken") / name
        assert align(request, folder, lambda event: None, lambda: False).finished
        found[name] = weights(folder)
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


def strike(request: AlignRequest, folder: Path, step: int, number: int) -> int:
    """Run in a process that sends itself a signal once it has told of ``step``."""
    asked = folder.with_suffix(".json")
    asked.write_text(request.model_dump_json(), "utf-8")
    command = [sys.executable, "-c", CHILD, str(asked), str(folder), str(step), str(int(number))]
    return subprocess.run(command, capture_output=True, check=False, timeout=300).returncode


def resumes(request: AlignRequest, folder: Path) -> int:
    """Go on here; the first step that is trained."""
    events: list[dict[str, Any]] = []
    assert align(request, folder, events.append, lambda: False).finished
    return next(event["step"] for event in events if event["kind"] == "train")


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("step", STRIKES)
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_killed_at_a_random_step(
    kind: str, step: int, requests: Any, unbroken: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert strike(requests[kind], folder, step, signal.SIGKILL) == -signal.SIGKILL
    # A step is told of before its checkpoint is written: at most one interval is lost.
    assert resumes(requests[kind], folder) == (step - 1) // EVERY * EVERY + 1
    assert_same(weights(folder), unbroken[kind])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adaptive", "neuronguard", "accumulated"])
def test_what_was_found_and_drawn_survives_a_kill(
    kind: str, requests: Any, unbroken: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    # From step 7 on: between the searches at 5 and 10, so the last one is remembered.
    assert strike(requests[kind], folder, 8, signal.SIGKILL) == -signal.SIGKILL
    assert resumes(requests[kind], folder) == 7
    assert_same(weights(folder), unbroken[kind])


def test_sigterm_saves_and_stops(requests: Any, unbroken: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert strike(requests["full"], folder, 5, signal.SIGTERM) == 7
    newest = newest_checkpoint(folder)
    assert newest is not None
    # The signal comes when step 5 is told of; the step under way is the last.
    stopped = int(newest.name.split("-")[1])
    assert stopped in (5, 6)
    assert newest.parent == folder / CHECKPOINTS
    assert not (folder / "config.json").exists()
    assert resumes(requests["full"], folder) == stopped + 1
    assert_same(weights(folder), unbroken["full"])


def test_an_adapter_is_merged_and_kept(requests: Any, tiny_llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    folder = tmp_path / "run"
    align(requests["lora"], folder, lambda event: None, lambda: False)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        plain = base(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(base, folder / "adapter")(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, merged, atol=1e-2)
    start, end = load_model(str(tiny_llama)).model, load_model(str(folder)).model
    for name in ("gate_proj", "up_proj"):
        place = f"model.layers.2.mlp.{name}.weight"
        assert torch.equal(start.get_parameter(place)[[5, 63]], end.get_parameter(place)[[5, 63]])
        assert not torch.equal(start.get_parameter(place)[6], end.get_parameter(place)[6])
