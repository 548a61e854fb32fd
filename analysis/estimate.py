"""What an alignment will take, before it is started: memory and time. No torch.

Memory is what the weights, gradients and the optimiser's state need in float32, and the
activations of the pairs taken at a time: of each layer what the backward pass reads again, and
the logits in float32. Time counts floating-point operations, 2 a weight and token for a forward
pass and 4 for the backward one, and goes by the pace of earlier runs on this machine where there
are any; their constants then cancel. Both are estimates: they leave out the attention's own
products and assume sequences as long as they may get.
"""

import json
import os
import re
import statistics
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from analysis.align_requests import AlignRequest
from analysis.requests import parse_request
from toolkit.errors import SafeNeuronError
from toolkit.home import home
from toolkit.known_prompts import KNOWN
from toolkit.models.sources import CARD, EMBEDDED
from toolkit.prompts import parts_of, slice_of
from toolkit.train.recipes import Settings

FLOAT32 = 4  # bytes
# Bytes an optimiser keeps of each number that trains.
STATE = {"adamw": 8.0, "adamw-8bit": 2.0, "sgd": 0.0, "adafactor": 0.1}
# Numbers of a layer that the backward pass reads again, in hidden and in intermediate sizes.
HIDDEN_KEPT, INTERMEDIATE_KEPT = 10, 4
LARGEST_HEADER = 100 << 20  # bytes of a .safetensors header
PROMPT_TOKENS = 60  # of a short request in its template
# Floating-point operations a second and core, as two-core machines have shown; a wide range.
CORE_PACE = (8e9, 80e9)
CARD_PACE = (2e13, 2e14)
RECENT = 5  # earlier runs that the pace is taken from
BLOCK = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class ModelSize:
    """How large a model is.

    Args:
        numbers: all of its weights.
        blocks: those of its decoder blocks, which train.
        layers, hidden, intermediate, vocabulary: of its configuration.
    """

    numbers: int
    blocks: int
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Args:
        steps: of the optimiser.
        seconds: least and most that training takes, after the pairs are made; the same twice
            where an earlier run tells the pace.
        by_earlier: how many earlier runs of this machine the pace is from.
        weights, state, activations: bytes.
    """

    steps: int
    seconds: tuple[float, float]
    by_earlier: int
    weights: int
    state: int
    activations: int

    @property
    def memory(self) -> int:
        """Bytes in all."""
        return self.weights + self.state + self.activations


def local_folder(source: str) -> Path | None:
    """Where a model lies on this machine; None where it would have to be fetched first."""
    if source in EMBEDDED:
        # An aligned one has the size of its base, which may be here alone.
        names = [name for name in (source, EMBEDDED[source].base) if name]
        kept = (home() / "models").glob
        found = [path.parent for name in names for path in kept(f"{name}-*/config.json")]
        return found[0] if found else None
    path = Path(source).expanduser()
    return path if (path / "config.json").is_file() else None


def model_size(folder: Path) -> ModelSize:
    """A model's size, by its configuration and the headers of its weight files.

    Raises:
        SafeNeuronError: it has no .safetensors, or one of the files is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        text = config.get("text_config") or config
        shapes = [item for path in files for item in _shapes(path, path.stat().st_mtime_ns)]
        sizes = [
            int(next(text[name] for name in names if name in text))
            for names in (
                ("num_hidden_layers", "n_layer"),
                ("hidden_size", "n_embd"),
                ("vocab_size",),
            )
        ]
    except (OSError, ValueError, KeyError, TypeError, StopIteration, struct.error) as error:
        raise SafeNeuronError(f"{folder} is not read as a model: {error}") from error
    if not shapes:
        raise SafeNeuronError(f"{folder} has no .safetensors, so its size is not known")
    layers, hidden, vocabulary = sizes
    wide = next((text[n] for n in ("intermediate_size", "n_inner", "ffn_dim") if text.get(n)), None)
    return ModelSize(
        numbers=sum(prod(shape) for _, shape in shapes),
        blocks=sum(prod(shape) for name, shape in shapes if BLOCK.search(name)),
        layers=layers,
        hidden=hidden,
        intermediate=int(wide or 4 * hidden),
        vocabulary=vocabulary,
    )


@lru_cache(maxsize=64)
def _shapes(path: Path, changed: int) -> list[tuple[str, tuple[int, ...]]]:
    """The tensors of a .safetensors file, by its header alone."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > LARGEST_HEADER:
            raise ValueError(f"{path.name} has no header of .safetensors")
        header = json.loads(stream.read(length))
    return [(name, tuple(it["shape"])) for name, it in header.items() if name != "__metadata__"]


def pairs_of(request: AlignRequest) -> int | None:
    """How many pairs there will be; None where only reading them tells."""
    if request.total is not None:
        return request.total
    if request.pairs is not None or request.safety or request.general:
        return None
    counts = [prompt_count(spec) for spec in (request.harmful, request.harmless)]
    return None if None in counts else sum(count or 0 for count in counts)


def prompt_count(spec: str) -> int | None:
    """How many prompts known sets, whole or sliced, have; None of others."""
    parts = parts_of(spec)
    if len(parts) > 1:
        counts = [prompt_count(part) for part in parts]
        return None if None in counts else sum(count or 0 for count in counts)
    name, part = slice_of(spec)
    if name not in KNOWN:
        return None
    whole = range(KNOWN[name].count)
    return len(whole if part is None else whole[part])


def operations(settings: Settings, size: ModelSize, tokens: int, pairs: int) -> float:
    """Floating-point operations of a run.

    Args:
        settings: the recipe with its numbers.
        size: the model's.
        tokens: of a prompt with its answer.
        pairs: that the reference model reads once.
    """
    # A pair is two sequences to DPO; SFT reads the chosen one, guard that whole and pruned.
    sequences = 1 if settings.kind.loss == "sft" else 2
    trained = 6.0 * size.numbers * tokens * sequences * settings.batch_size * settings.steps
    reference = 2.0 * size.numbers * tokens * 2 * pairs if settings.kind.loss == "dpo" else 0.0
    return trained + reference


def estimate(request: AlignRequest, earlier: Iterable[Path] = ()) -> Estimate:
    """What an alignment will take.

    Args:
        request: what is asked for.
        earlier: folders of finished runs on this machine, newest first.

    Raises:
        SafeNeuronError: the model is not on this machine yet, or the number of steps hangs on
            pairs that nobody has counted.
    """
    folder = local_folder(request.model)
    if folder is None:
        raise SafeNeuronError(
            f"{request.model[:60]} is not on this machine yet, so its size is not known"
        )
    pairs = pairs_of(request)
    if pairs is None and request.epochs is not None:
        raise SafeNeuronError("its steps are passes over pairs that are counted when they are read")
    size, settings = model_size(folder), request.settings(pairs or 0)
    work = operations(settings, size, _tokens(request), pairs or settings.batch_size)
    paces = [pace for pace in map(_pace, earlier) if pace][:RECENT]
    if paces:
        seconds = (work / statistics.median(paces),) * 2
    else:
        slow, fast = nominal_pace()
        seconds = (work / fast, work / slow)
    adapter = 2 * settings.lora_rank * size.layers * (7 * size.hidden + 3 * size.intermediate)
    trains = adapter if settings.lora_rank else size.blocks
    at_once = (settings.micro_batch or settings.batch_size) * (
        1 if settings.kind.loss == "sft" else 2
    )
    width = 2 if settings.dtype == "bfloat16" else FLOAT32
    kept = size.layers * (HIDDEN_KEPT * size.hidden + INTERMEDIATE_KEPT * size.intermediate)
    a_token = kept * width + 2 * size.vocabulary * FLOAT32
    return Estimate(
        steps=settings.steps,
        seconds=seconds,
        by_earlier=len(paces),
        weights=size.numbers * FLOAT32,
        state=int(trains * (FLOAT32 + STATE[settings.optimiser])),
        activations=at_once * _tokens(request) * a_token,
    )


def _tokens(request: AlignRequest) -> int:
    """Tokens of a prompt with its answer; at most so many of pairs that were read."""
    made = request.pairs is None and not (request.safety or request.general)
    return (
        min(request.max_length, PROMPT_TOKENS + request.answer_tokens)
        if made
        else request.max_length
    )


def _pace(folder: Path) -> float | None:
    """Operations a second of a finished run, by its card; None where that does not tell."""
    try:
        card: dict[str, Any] = json.loads((folder / CARD).read_text("utf-8"))
        request = parse_request(AlignRequest, card["request"])
        pairs, seconds = int(card["pairs"]["trained"]), float(card["figures"]["seconds"])
        if int(card["figures"]["steps"]) < request.settings(pairs).steps or seconds <= 0:
            return None  # it ended early, or was stopped: the seconds are of a part of it
        work = operations(request.settings(pairs), model_size(folder), _tokens(request), pairs)
    except (OSError, ValueError, KeyError, TypeError, SafeNeuronError):
        return None
    return work / seconds


def nominal_pace() -> tuple[float, float]:
    """Operations a second of a machine that has not trained yet, least and most."""
    on_card = Path("/proc/driver/nvidia/version").exists()
    each, count = (CARD_PACE, 1) if on_card else (CORE_PACE, os.cpu_count() or 1)
    return each[0] * count, each[1] * count
