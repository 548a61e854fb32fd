"""Training in several processes: what they must agree on, and what can't be exact."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from toolkit.errors import SafeNeuronError
from toolkit.train.recipes import Settings

EXACT = "data parallelism (DDP) or FSDP2"


def process() -> tuple[int, int]:
    """This process's number and how many accelerate or torchrun started together."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def distributed() -> bool:
    """Whether this process is one of several."""
    return process()[1] > 1


@contextmanager
def first_before_others(device: torch.device) -> Iterator[None]:
    """Let the first process go through the ``with`` block before the others do."""
    if not distributed():
        yield
        return
    from accelerate import PartialState

    with PartialState(cpu=device.type == "cpu").main_process_first():
        yield


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether the flag is up in any process; all must ask."""
    if not distributed():
        return flag
    flags = torch.tensor([int(flag)], device=device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def require_exact(accelerator: Any, settings: Settings, freezes: bool) -> None:
    """Refuse the ways to spread training over which a promise of this toolkit would not hold.

    Args:
        accelerator: as accelerate set it up.
        settings: of the run.
        freezes: whether neurons are frozen.

    Raises:
        SafeNeuronError: DeepSpeed, FSDP1, tensor parallelism or something unknown; a LoRA
            adapter, a zeroed reference or a search under FSDP2.
    """
    kind = str(accelerator.distributed_type.value)
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        return
    if kind != "FSDP":
        if freezes:
            raise SafeNeuronError(f"{kind} can't freeze neurons exactly; train with {EXACT}")
        return
    if getattr(accelerator.state.fsdp_plugin, "fsdp_version", 1) != 2:
        raise SafeNeuronError(
            f"FSDP1 flattens weights, so neurons can't be frozen exactly in it; train with {EXACT}"
        )
    for unsure, what in (
        (settings.lora_rank > 0, "a LoRA adapter"),
        (settings.reference == "zeroed", "a zeroed reference"),
        (settings.kind.searches, f"the recipe {settings.recipe}, which searches as it trains,"),
    ):
        if unsure:
            raise SafeNeuronError(f"{what} is not supported under FSDP2; train with DDP")


def local_batch(settings: Settings) -> int:
    """Pairs of a step that fall to each process.

    Raises:
        SafeNeuronError: the batch can't be shared out evenly.
    """
    _, processes = process()
    if settings.batch_size % processes:
        raise SafeNeuronError(
            f"a batch of {settings.batch_size} pairs can't be shared by {processes} processes; "
            f"choose a --batch-size that {processes} divides"
        )
    return settings.batch_size // processes


def divisor(total: int, most: int) -> int:
    """The largest divisor of ``total`` that is at most ``most``, and at least 1."""
    return next(size for size in range(max(1, min(most, total)), 0, -1) if total % size == 0)
