"""The preference pairs of one run: read, mixed or made from the model, and kept in its folder."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.requests import AlignRequest
from toolkit.files import write_atomically
from toolkit.neurons import NeuronSet
from toolkit.prompts import read_prompts

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.train.pairs import PairReport, PreferencePair

OnEvent = Callable[[dict[str, Any]], None]
PAIRS, REPORT = "pairs.jsonl", "pairs.json"


def run_pairs(
    request: AlignRequest,
    folder: Path,
    loaded: "LoadedModel",
    neurons: NeuronSet | None,
    on_event: OnEvent,
) -> "tuple[list[PreferencePair], PairReport]":
    """The run's pairs: those in its folder, else read or made, and kept there.

    Args:
        request: says which.
        folder: the run's; ``pairs.jsonl`` and the counts in ``pairs.json`` are kept there.
        loaded: the model, which made pairs come from.
        neurons: without them it answers what it refuses as it is.
        on_event: hears of the work.

    Raises:
        SafeNeuronError: data that can't be read, or no usable pair.
    """
    from toolkit.train.pairs import PairReport
    from toolkit.train.preferences import read_pairs

    kept = folder / PAIRS
    if kept.is_file():
        counts = json.loads((folder / REPORT).read_text("utf-8"))
        return read_pairs(kept), PairReport(**counts)
    report = PairReport()
    pairs = _usable(request, loaded, neurons, on_event, report)
    write_atomically(folder / REPORT, json.dumps(report.as_dict(), indent=1) + "\n")
    lines = (json.dumps(asdict(pair), ensure_ascii=False) for pair in pairs)
    write_atomically(kept, "\n".join(lines) + "\n")
    return pairs, report


def _usable(
    request: AlignRequest,
    loaded: "LoadedModel",
    neurons: NeuronSet | None,
    on_event: OnEvent,
    report: "PairReport",
) -> "list[PreferencePair]":
    from toolkit.train.pairs import clean
    from toolkit.train.preferences import mixture, read_source

    def length(pair: "PreferencePair") -> int:
        return pair_length(loaded, pair)

    limit = request.max_length
    named = {"safety": request.safety, "general": request.general}
    if request.pairs is not None:
        named = {"pairs": str(request.pairs)}
    sources = {
        role: read_source(spec, request.safety_label)
        for role, spec in named.items()
        if spec is not None
    }
    for role, source in sources.items():
        report.sources.append(source.info(role))
        report.count_source(source.report)
    if len(sources) == 2:
        share, total, seed = request.safety_share, request.total, request.seed
        return mixture(
            sources["safety"],
            sources["general"],
            share,
            total,
            seed,
            length,
            limit,
            report,
        )
    if not sources:
        return clean(_made(request, loaded, neurons, on_event, report), length, limit, report)
    (source,) = sources.values()
    return clean(source.pairs, length, limit, report)[: request.total]


def pair_length(loaded: "LoadedModel", pair: "PreferencePair") -> int:
    """Tokens of a pair's prompt, chat template applied, and its longer answer."""
    from toolkit.capture.base import render_text

    sides = (loaded.tokenizer(side)["input_ids"] for side in (pair.chosen, pair.rejected))
    prompt = loaded.tokenizer(render_text(loaded.tokenizer, pair.prompt))["input_ids"]
    return len(prompt) + max(len(side) for side in sides)


def _made(
    request: AlignRequest,
    loaded: "LoadedModel",
    neurons: NeuronSet | None,
    on_event: OnEvent,
    report: "PairReport",
) -> "list[PreferencePair]":
    """Pairs made from the model itself, no more than the run will see."""
    from toolkit.train.pairs import make_pairs, shipped_refusals

    # Each prompt costs an answer or two.
    half = (request.steps * request.batch_size + 1) // 2 if request.epochs is None else None
    harmful = read_prompts(request.harmful)[:half]
    harmless = read_prompts(request.harmless)[:half]
    for role, prompts in (("harmful", harmful), ("harmless", harmless)):
        info = {"name": prompts.name, "role": role, "sha256": prompts.sha256, "pairs": len(prompts)}
        report.sources.append(info)
    answer = _answerer(loaded, request, on_event, len(harmful) + len(harmless))
    return make_pairs(
        harmful.texts,
        harmless.texts,
        answer(None),
        answer(neurons),
        shipped_refusals(),
        request.seed,
        report,
    )


def _answerer(
    loaded: "LoadedModel", request: AlignRequest, on_event: OnEvent, total: int
) -> Callable[[NeuronSet | None], Callable[[Sequence[str]], list[str]]]:
    """Greedy answers of the whole model, or without some neurons, with progress."""
    import torch

    from toolkit.generate import generate
    from toolkit.intervene import Intervention, intervene

    done = 0

    def count(prompts: int) -> None:
        nonlocal done
        done += prompts
        on_event({"kind": "stage", "stage": "pairs", "done": min(done, total), "total": total})

    def without(neurons: NeuronSet | None) -> Callable[[Sequence[str]], list[str]]:
        removed = neurons if neurons is not None else NeuronSet.empty(loaded.layout.widths)

        def answer(texts: Sequence[str]) -> list[str]:
            dtype = torch.bfloat16 if request.dtype == "bfloat16" else torch.float32
            with (
                intervene(loaded.model, loaded.layout, Intervention(removed)),
                torch.autocast(loaded.device.type, dtype, enabled=dtype != torch.float32),
            ):
                return generate(loaded, texts, request.answer_tokens, on_prompts=count)

        return answer

    return without
