"""One cell of the freezing matrix: train a tiny model, then read it neuron by neuron.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=... python -m tests.toolkit.train.cells MODEL OUT

runs every cell as one of several processes; with ``fsdp2`` after OUT, FSDP2 by itself; with
``align`` and a request's JSON, the whole of ``align``.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.tiny import HARMFUL, tiny_model
from toolkit.errors import SafeNeuronError
from toolkit.models.layout import Layout, layout_of, neuron_slices
from toolkit.models.load import load_model
from toolkit.neurons import NeuronSet
from toolkit.train.dpo import train
from toolkit.train.freeze import FrozenNeurons
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import Settings

CHOSEN = {0: [0, 7, 40, 63], 2: [5]}
PAIRS = [PreferencePair(p, "I can't help with that", f"Sure: {p}") for p in HARMFUL]
RATES = {"adamw": 1e-3, "sgd": 0.05, "adafactor": 1e-3, "adamw-8bit": 1e-3}


@dataclass(frozen=True)
class Cell:
    """One way to train."""

    optimiser: Any
    dtype: Any
    accumulation: int
    lora_rank: int

    def __str__(self) -> str:
        kind = "lora" if self.lora_rank else "full"
        return f"{self.optimiser}-{self.dtype}-{self.accumulation}x-{kind}"


CELLS = [Cell(*c) for c in product(RATES, ("float32", "bfloat16"), (1, 2), (0, 4))]


def frozen_mask(layout: Layout, neurons: dict[int, list[int]], like: Any) -> Any:
    """Parameter -> which of its entries belong to the neurons, one neuron at a time."""
    held = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in like.items()}
    for layer, piece in neuron_slices(layout):
        for j in neurons.get(layer, []):
            held[piece.parameter].select(piece.dim, piece.offset + j).fill_(True)
    return held


def compare(layout: Layout, before: Any, after: Any, neurons: dict[int, list[int]]) -> Any:
    """How many frozen bits changed, and the least share of other entries that moved."""
    held = frozen_mask(layout, neurons, before)
    changed, moved = 0, {}
    for name, start in before.items():
        # As bits: minus zero is not plus zero here.
        apart = start.view(torch.int32) != after[name].view(torch.int32)
        changed += int((apart & held[name]).sum())
        free = ~held[name]
        moved[name] = float(apart[free].float().mean()) if free.any() else 1.0
    return changed, moved


def run_cell(cell: Cell, model: str, device: str = "cpu") -> dict[str, Any]:
    """Train ``model`` on ``device`` as the cell says, and say what became of it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    loaded = load_model(model, device=device)
    before = {name: p.detach().cpu().clone() for name, p in loaded.model.named_parameters()}
    settings = Settings(
        recipe="safeneuron",
        # Freezing only: what is zeroed in the forward pass has no gradient to be masked.
        zero=False,
        steps=3,
        batch_size=4,
        learning_rate=RATES[cell.optimiser] * (10 if cell.lora_rank else 1),
        weight_decay=0.1,
        beta=0.1,
        sft_weight=0.2,
        max_length=128,
        save_every=10,
        seed=0,
        dtype=cell.dtype,
        optimiser=cell.optimiser,
        micro_batch=4 // world // cell.accumulation,
        lora_rank=cell.lora_rank,
        max_grad_norm=0.5,
    )
    neurons = NeuronSet(loaded.layout.widths, CHOSEN)
    # Processes that train together write one folder.
    shared = Path(os.environ.get("CELLS_FOLDER", tempfile.mkdtemp())) / str(cell)
    try:
        outcome = train(loaded, PAIRS, neurons, settings, shared, lambda event: None, lambda: False)
    except SafeNeuronError as error:
        return {"cell": str(cell), "refused": str(error)}
    after = {name: p.detach().cpu() for name, p in loaded.model.named_parameters()}
    changed, moved = compare(loaded.layout, before, after, CHOSEN)
    trained = {
        name: share
        for name, share in moved.items()
        if name.startswith("model.layers.")
        and (not cell.lora_rank or (before[name].dim() > 1 and "norm" not in name))
    }
    still = [share for name, share in moved.items() if name not in trained]
    return {
        "cell": str(cell),
        "refused": None,
        "frozen_bits_changed": changed,
        "least_moved": min(trained.values()),
        "most_moved_elsewhere": max(still),
        "outcome": asdict(outcome),
        "digest": sum(float(p.detach().double().sum()) for p in after.values()),
    }


def run_fsdp2() -> dict[str, Any]:
    """Shard a tiny model by rows with FSDP2, train it, and join it again."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model: Any = tiny_model()
    layout = layout_of(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    frozen = FrozenNeurons(model, layout, NeuronSet(layout.widths, CHOSEN))
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    frozen.attach(model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.5)
    generator = torch.Generator().manual_seed(dist.get_rank())
    norms = []
    for _ in range(3):
        for _ in range(2):
            ids = torch.randint(3, 600, (2, 12), generator=generator)
            model(input_ids=ids, labels=ids).loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).full_tensor()))
        # What the clipping saw: no part of it is a frozen entry's.
        grads = {name: p.grad.full_tensor() for name, p in model.named_parameters()}
        held = frozen_mask(layout, CHOSEN, grads)
        assert not any(bool((grads[name][held[name]] != 0).any()) for name in grads)
        optimiser.step()
        frozen.restore()
        optimiser.zero_grad()
    frozen.verify()
    after = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    after = {name: tensor for name, tensor in after.items() if name in before}
    changed, moved = compare(layout, before, after, CHOSEN)
    blocks = [share for name, share in moved.items() if name.startswith("model.layers.")]
    dist.barrier()
    dist.destroy_process_group()
    return {"frozen_bits_changed": changed, "least_moved": min(blocks), "norms": norms}


def run_align(request: str) -> dict[str, Any]:
    """Align as one of several processes, and say what this one heard."""
    from analysis.align_requests import AlignRequest
    from analysis.alignment import align

    heard: list[dict[str, Any]] = []
    asked = AlignRequest.model_validate_json(Path(request).read_text("utf-8"))
    outcome = align(asked, Path(os.environ["CELLS_FOLDER"]), heard.append, lambda: False)
    assert outcome.finished
    dist.destroy_process_group()
    return {"heard": len(heard), "summary": outcome.summary}


def main() -> None:
    """Run as one process of several, and write what became of it."""
    model, out, *mode = sys.argv[1:]
    results: Any
    if mode[:1] == ["align"]:
        results = run_align(mode[1])
    else:
        results = run_fsdp2() if mode else [run_cell(cell, model) for cell in CELLS]
    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps(results), "utf-8")


if __name__ == "__main__":
    main()
