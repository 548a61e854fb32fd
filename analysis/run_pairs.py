"""The preference pairs of one run: read, mixed or made from the model, and kept in its folder."""

import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.align_requests import AlignRequest
from toolkit.files import write_atomically
from toolkit.neurons import NeuronSet
from toolkit.progress import OnEvent

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.train.pairs import PairReport, PreferencePair

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
    from analysis.made_pairs import made_pairs, require_refusing
    from toolkit.train.build import pair_length
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
        pairs = clean(made_pairs(request, loaded, neurons, on_event, report), length, limit, report)
        require_refusing(request, pairs, report)
        return pairs
    ((role, source),) = sources.items()
    offered = source.pairs
    if request.total is not None:
        offered = random.Random(request.seed).sample(offered, len(offered))
    pairs = clean(offered, length, limit, report, request.total)
    if role == "safety":
        report.safety = len(pairs)
    return pairs
