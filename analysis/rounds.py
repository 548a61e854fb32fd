"""Rounds (paper Sec. 3.3 and Table 2): identify, align, identify again on the new model.

T0 is the model as given. Round t finds the neurons of T(t-1), freezes them and all found
before, and trains T(t) from T(t-1). In ten lines of a notebook::

    from pathlib import Path

    from analysis.align_requests import RoundsRequest
    from analysis.rounds import rounds

    asked = RoundsRequest(model="smollm2-135m-aligned", rounds=3, position="mean", attack=True)
    done = rounds(asked, Path("rounds"))
    done.table()

The paper leaves open whether the pairs are drawn again in each round and which model is the
reference. Here all rounds share the first one's pairs unless ``fresh_pairs`` is set: a model
that refuses everything, pruned or not, has no answers to reject, and needs another's
(``rejected_from``). The reference of round t is T(t-1), from which it starts.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.before_after import StopAskedError, attack_into, attack_mask, watched
from analysis.comparison import records
from analysis.requests import IdentifyRequest
from analysis.robustness import AttackResult, headline, read_attack
from analysis.run_pairs import PAIRS
from analysis.run_record import is_whole, recorded_key, request_key
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable, write_atomically
from toolkit.masks import MaskFile, MethodInfo, read_mask
from toolkit.models.sources import CARD, resolve
from toolkit.neurons import NeuronSet
from toolkit.progress import OnEvent, Progress, unheard

RECORD = "rounds.json"
SHOWN = ("ORI", "FULL", "AGAIN", "RANDOM")
"""Settings whose success the table shows, as far as they were asked for."""


@dataclass(frozen=True)
class Round:
    """One round, done.

    Args:
        number: t, from 1.
        model: folder of T(t).
        found: neurons of T(t-1).
        new: of those, not found in any round before.
        frozen: all found so far.
        steps: of training.
        seconds: of training, in the process that ended it.
    """

    number: int
    model: str
    found: int
    new: int
    frozen: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class RoundsOutcome:
    """How the rounds stand.

    Args:
        finished: false when they were stopped and can go on.
        folder: of all their files.
        rounds: those done.
        attacks: ``T0``, ``T1`` ... -> its attack, if attacks were asked for.
    """

    finished: bool
    folder: Path
    rounds: list[Round]
    attacks: dict[str, AttackResult]

    def table(self) -> pd.DataFrame:
        """One row a model: what was found and frozen, and what attacks do to it.

        Columns ``model``, ``found``, ``new``, ``frozen``, ``steps``, ``seconds`` and, of each
        setting in :data:`SHOWN` that was run, ``SETTING_k`` and ``SETTING_n``: successes on
        harmful prompts, of so many.
        """
        rows: list[dict[str, Any]] = [{"model": "T0"}]
        rows += [{**asdict(done), "model": f"T{done.number}"} for done in self.rounds]
        for row in rows:
            row.pop("number", None)
            result = self.attacks.get(row["model"])
            if result is not None:
                row |= _successes(result)
        return pd.DataFrame(rows)


def _successes(result: AttackResult) -> dict[str, int]:
    table = headline(result)
    harmful = {row["setting"]: row for row in records(table[table["side"] == "harmful"])}
    return {
        f"{name}_{part}": int(harmful[name][column])
        for name in SHOWN
        if name in harmful
        for part, column in (("k", "k_success"), ("n", "n"))
    }


def rounds(
    request: RoundsRequest,
    folder: Path,
    on_event: OnEvent = unheard,
    should_stop: Callable[[], bool] = lambda: False,
    reference: Path | None = None,
) -> RoundsOutcome:
    """Run the rounds in ``folder``, or go on where an earlier call was stopped.

    ``folder`` gets ``found-T0.json`` (neurons of T0), ``frozen-T1.json`` (frozen in round 1),
    the model ``T1``, and so on; ``attack-T0.json`` ... if attacks were asked for. What is
    there already is not done again, and more rounds may be asked for later. ``reference`` is
    as for :func:`analysis.alignment.align`.

    Raises:
        SafeNeuronError: bad input, or a folder of other rounds.
    """
    require_writable(folder, "folder")
    attack_mask(request)
    key, record = _key(request), folder / RECORD
    before = _rounds_before(folder, key)
    progress = watched(on_event, should_stop)
    done: list[Round] = []
    attacks: dict[str, AttackResult] = {}
    folder.mkdir(parents=True, exist_ok=True)
    _write(record, key, request, before)
    try:
        for number in range(1, request.rounds + 1):
            made = _round(request, folder, number, on_event, should_stop, progress, reference)
            if made is None:
                raise StopAskedError
            done.append(made)
            _write(record, key, request, done + before[number:])
            on_event(
                {
                    "kind": "note",
                    "text": f"round {number}: {made.found} neurons found, {made.new} of them new; "
                    f"{made.frozen} frozen, {made.steps} steps",
                }
            )
        for number in range(request.rounds + 1 if request.attack else 0):
            attacks[f"T{number}"] = attack_into(
                folder / f"attack-T{number}.json",
                request,
                request.model if number == 0 else str(folder / f"T{number}"),
                folder / "found-T0.json",
                number > 0,
                progress,
            )
    except StopAskedError:
        return RoundsOutcome(False, folder, done, attacks)
    return RoundsOutcome(True, folder, done, attacks)


def _key(request: RoundsRequest) -> str:
    """Names the rounds; more may be asked for later, and attacks on them: what is done counts."""
    given = None if request.mask is None else read_mask(request.mask)
    return request_key(request, resolve(request.model).fingerprint, given, aside=("rounds",))


def _rounds_before(folder: Path, key: str) -> list[Round]:
    record = folder / RECORD
    if not record.is_file():
        return []
    if recorded_key(record) != key:
        raise SafeNeuronError(
            f"{folder} holds other rounds: other numbers, or another model, mask or pairs; choose "
            "another -o folder"
        )
    return read_rounds(folder).rounds


def standing(request: RoundsRequest, folder: Path) -> bool:
    """Whether a folder holds the rounds that are asked for; runs nothing.

    Raises:
        SafeNeuronError: it holds others, or what is asked for can't be read.
    """
    done = _rounds_before(folder, _key(request))
    return len(done) >= request.rounds and all(is_whole(Path(each.model)) for each in done)


def _write(record: Path, key: str, request: RoundsRequest, done: list[Round]) -> None:
    told = {
        "schema": "safeneuron.rounds/1",
        "request_key": key,
        "asked": request.rounds,
        "attack": request.attack,
        "rounds": [asdict(made) for made in done],
    }
    write_atomically(record, json.dumps(told, indent=1) + "\n")


def read_rounds(folder: Path) -> RoundsOutcome:
    """What is done so far of the rounds in a folder; runs nothing.

    Raises:
        SafeNeuronError: there are none.
    """
    record = folder / RECORD
    if not record.is_file():
        raise SafeNeuronError(f"{folder} holds no rounds: 'safeneuron rounds' makes them")
    recorded_key(record)
    told = json.loads(record.read_text("utf-8"))
    done = [Round(**made) for made in told["rounds"]]
    names = [f"T{number}" for number in range(len(done) + 1)]
    files = {name: folder / f"attack-{name}.json" for name in names}
    attacks = {name: read_attack(path) for name, path in files.items() if path.is_file()}
    wanted = len(names) if told.get("attack") else 0
    finished = len(done) >= told.get("asked", 0) and len(attacks) >= wanted
    return RoundsOutcome(finished, folder, done, attacks)


def _round(
    request: RoundsRequest,
    folder: Path,
    number: int,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    progress: Progress,
    reference: Path | None,
) -> Round | None:
    from analysis.alignment import align

    start = request.model if number == 1 else str(folder / f"T{number - 1}")
    found = _found(request, folder, number - 1, start, progress)
    before = [read_mask(folder / f"found-T{t}.json") for t in range(number - 1)]
    frozen = folder / f"frozen-T{number}.json"
    if not frozen.is_file():
        union(before, found).write(frozen)
    place = folder / f"T{number}"
    pairs = request.pairs
    sourced: dict[str, str | None] = {}
    if number > 1 and not request.fresh_pairs:
        pairs = folder / "T1" / PAIRS
        sourced = dict.fromkeys(("safety", "general", "rejected_from"))
    own = {name: getattr(request, name) for name in AlignRequest.model_fields}
    changed = {"model": start, "mask": frozen, "pairs": pairs, "attack": False, **sourced}
    outcome = align(AlignRequest(**own | changed), place, on_event, should_stop, reference)
    if not outcome.finished:
        return None
    card = json.loads((place / CARD).read_text("utf-8"))
    earlier = reduce(or_, (mask.neuron_set() for mask in before), _nothing(found))
    return Round(
        number=number,
        model=str(place),
        found=found.count,
        new=len(found.neuron_set() - earlier),
        frozen=read_mask(frozen).count,
        steps=int(card["figures"]["steps"]),
        seconds=float(card["figures"]["seconds"]),
    )


def _nothing(mask: MaskFile) -> NeuronSet:
    return NeuronSet.empty(mask.model.neurons_per_layer)


def _found(
    request: RoundsRequest, folder: Path, number: int, model: str, progress: Progress
) -> MaskFile:
    """The neurons of T(number): those in the folder, the request's, or identified."""
    path = folder / f"found-T{number}.json"
    if path.is_file():
        return read_mask(path)
    if number == 0 and request.mask is not None:
        mask = read_mask(request.mask)
    else:
        from analysis.study import identify

        named = ("position", "method", "tau_es", "tau_sas", "top", "top_es", "top_sas")
        asked = IdentifyRequest(
            model=model,
            harmful=request.find_harmful,
            harmless=request.find_harmless,
            leave_out=request.leave_out,
            **{name: getattr(request, name) for name in named},
        )
        mask = identify(asked, progress).mask
    mask.write(path)
    return mask


def union(earlier: list[MaskFile], found: MaskFile) -> MaskFile:
    """All neurons found so far, as a mask of the model they were found on last.

    It keeps the last mask's method, by which an attacker looks for them again, and which
    score chose which neurons as far as every mask says so.
    """
    masks = [*earlier, found]
    named = [set(mask.parts) for mask in masks]
    parts = {
        name: reduce(or_, (mask.part(name) for mask in masks))
        for name in sorted(set.intersection(*named))
    }
    method = MethodInfo(
        name=found.method.name,
        parameters=found.method.parameters | {"union_of_rounds": len(masks)},
    )
    neurons = reduce(or_, (mask.neuron_set() for mask in masks))
    return MaskFile.of(neurons, found.model, method, found.prompts, parts)
