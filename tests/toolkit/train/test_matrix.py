"""Must hold 3: frozen entries bit-identical and others moved, however one trains."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from analysis.align_requests import AlignRequest
from analysis.alignment import align
from tests.tiny import HARMFUL
from tests.toolkit.train.cells import CELLS, CHOSEN, PAIRS, RATES, Cell, compare, run_cell
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, PromptsInfo
from toolkit.models.load import load_model
from toolkit.neurons import NeuronSet
from toolkit.train.optimisers import optimiser_arguments
from toolkit.train.parallel import divisor, local_batch, require_exact
from toolkit.train.recipes import Settings

HAS_8BIT = find_spec("bitsandbytes") is not None
ROOT = Path(__file__).parents[3]
LAYERS, HIDDEN = 3, 32
# A frozen neuron has rows of gate and up with their biases, and a column of down.
FROZEN = 5 * (3 * HIDDEN + 2)


def check(result: dict[str, Any], cell: Cell) -> None:
    if cell.optimiser == "adamw-8bit" and not HAS_8BIT:
        assert "bitsandbytes" in result["refused"]
        return
    assert result["refused"] is None
    assert result["frozen_bits_changed"] == 0
    assert result["least_moved"] > 0.9, result
    assert result["most_moved_elsewhere"] == 0
    outcome = result["outcome"]
    assert outcome["finished"]
    if not cell.lora_rank:
        assert outcome["frozen"] == FROZEN
    else:
        # A row of B for gate and for up, a column of A for down, a rank each.
        assert outcome["frozen"] == 5 * 3 * cell.lora_rank
    assert outcome["trainable"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_one_process(cell: Cell, tiny_llama: Path) -> None:
    check(run_cell(cell, str(tiny_llama)), cell)


def run_processes(
    model: Path, folder: Path, *mode: str, count: int = 2, limit: int = 500
) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = os.environ | {
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CELLS_FOLDER": str(folder / "runs"),
    }
    command = [sys.executable, "-m", "tests.toolkit.train.cells", str(model), str(folder / "out")]
    logs = [folder / f"log.{rank}" for rank in range(count)]
    running = [
        subprocess.Popen(
            [*command, *mode],
            cwd=ROOT,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout=limit) for process in running]
    finally:
        for process in running:
            process.kill()
    assert codes == [0] * count, logs[0].read_text()[-3000:]
    return [json.loads((folder / f"out.{rank}").read_text("utf-8")) for rank in range(count)]


@pytest.fixture(scope="module")
def spread(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Every cell's result, as each of two gloo processes has it."""
    return run_processes(tiny_llama, tmp_path_factory.mktemp("two"))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CELLS)), ids=[str(cell) for cell in CELLS])
def test_two_processes(number: int, spread: Any) -> None:
    first, second = (results[number] for results in spread)
    check(first, CELLS[number])
    check(second, CELLS[number])
    if first["refused"] is None:
        assert first["digest"] == second["digest"]


def test_fsdp2(tiny_llama: Path, tmp_path: Path) -> None:
    first, second = run_processes(tiny_llama, tmp_path, "fsdp2")
    assert first == second
    assert first["frozen_bits_changed"] == 0
    assert first["least_moved"] > 0.9


@pytest.mark.parametrize("recipe", ["adaptive", "sft"])
def test_align_in_two_processes(recipe: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The whole of it, searches among it: one folder, written once, as by one process."""
    loaded = load_model(str(tiny_llama))
    side = PromptsInfo(name="p", sha256="0" * 64, count=2)
    mask = MaskFile.of(
        NeuronSet(loaded.layout.widths, CHOSEN),
        loaded.info,
        MethodInfo(name="es+sas", parameters={"top": 0.03}),
        MaskPrompts(harmful=side, harmless=side),
    )
    mask.write(tmp_path / "mask.json")
    (tmp_path / "prompts.txt").write_text("\n".join(HARMFUL), "utf-8")
    rows = [asdict(pair) for pair in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    request = AlignRequest(
        model=str(tiny_llama),
        mask=tmp_path / "mask.json",
        recipe=recipe,
        pairs=tmp_path / "pairs.jsonl",
        harmful=str(tmp_path / "prompts.txt"),
        harmless="harmless-train[:20]",
        steps=4,
        find_every=2,
        batch_size=4,
        learning_rate=1e-3,
        dtype="float32",
    )
    (tmp_path / "request.json").write_text(request.model_dump_json(), "utf-8")
    asked = str(tmp_path / "request.json")
    first, second = run_processes(tiny_llama, tmp_path, "align", asked)
    assert second["heard"] == 0 < first["heard"]
    assert first["summary"]["last"] == second["summary"]["last"]
    shared = load_model(str(tmp_path / "runs"))
    align(request, tmp_path / "alone", lambda event: None, lambda: False)
    alone = load_model(str(tmp_path / "alone"))
    for name, weight in shared.model.named_parameters():
        start = loaded.model.get_parameter(name)
        # Adam makes a step of any rounding near zero: alike, not the same.
        apart = (weight - alone.model.get_parameter(name)).norm()
        assert apart <= 0.05 * (weight - start).norm() + 1e-6, name
    if recipe == "adaptive":
        changed, _ = compare(
            loaded.layout,
            dict(loaded.model.named_parameters()),
            dict(shared.model.named_parameters()),
            CHOSEN,
        )
        assert changed == 0


def settings(**update: Any) -> Settings:
    usual: dict[str, Any] = {
        "recipe": "safeneuron",
        "zero": True,
        "steps": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "beta": 0.1,
        "sft_weight": 0.2,
        "max_length": 128,
        "save_every": 1,
        "seed": 0,
        "dtype": "float32",
    }
    return Settings(**usual | update)


def accelerator(kind: str, version: int = 2) -> Any:
    plugin = SimpleNamespace(fsdp_version=version)
    return SimpleNamespace(
        distributed_type=SimpleNamespace(value=kind), state=SimpleNamespace(fsdp_plugin=plugin)
    )


def test_what_cannot_be_exact_is_refused_by_name() -> None:
    for kind in ("NO", "MULTI_CPU", "MULTI_GPU", "FSDP"):
        require_exact(accelerator(kind), settings(), freezes=True)
    require_exact(accelerator("DEEPSPEED"), settings(recipe="dpo"), freezes=False)
    with pytest.raises(SafeNeuronError, match="DEEPSPEED can't freeze neurons exactly"):
        require_exact(accelerator("DEEPSPEED"), settings(), freezes=True)
    with pytest.raises(SafeNeuronError, match="FSDP1"):
        require_exact(accelerator("FSDP", version=1), settings(), freezes=True)
    with pytest.raises(SafeNeuronError, match="LoRA"):
        require_exact(accelerator("FSDP"), settings(lora_rank=4), freezes=True)
    with pytest.raises(SafeNeuronError, match="adaptive"):
        require_exact(accelerator("FSDP"), settings(recipe="adaptive"), freezes=True)


def test_a_batch_is_shared_evenly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert local_batch(settings(batch_size=6)) == 3
    with pytest.raises(SafeNeuronError, match="2 processes"):
        local_batch(settings(batch_size=5))
    assert [divisor(6, most) for most in (0, 1, 2, 3, 4, 5, 6, 9)] == [1, 1, 2, 3, 3, 3, 6, 6]


@pytest.mark.skipif(HAS_8BIT, reason="bitsandbytes is installed, so nothing is refused")
def test_the_8_bit_optimiser_is_refused_where_it_is_missing() -> None:
    with pytest.raises(SafeNeuronError, match="pip install bitsandbytes"):
        optimiser_arguments("adamw-8bit")


def test_every_optimiser_is_in_the_matrix() -> None:
    from typing import get_args

    from toolkit.train.recipes import OptimiserName

    assert set(RATES) == set(get_args(OptimiserName))
