"""Align (paper Sec. 3.3): pairs, frozen-neuron DPO, and a folder that others can load.

The run's folder becomes a plain ``transformers`` folder: weights, configuration,
tokenizer, and beside them the mask, the pairs and a card that says how it was made.
``config.json`` is written last, so that a folder without it is no model yet.
"""

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.align_requests import AlignRequest
from analysis.before_after import attack_mask
from analysis.model_card import MASK, README, make_card, model_card, save_result
from analysis.robustness import finding
from analysis.run_pairs import run_pairs
from analysis.run_record import RECORD, is_whole, request_key, require_own
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable, write_atomically
from toolkit.masks import MaskFile, MethodInfo, read_mask, require_fit
from toolkit.models.sources import CARD, resolve
from toolkit.neurons import NeuronSet
from toolkit.progress import OnEvent, unheard
from toolkit.prompts import read_prompts
from toolkit.train.recipes import RECIPES

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.train.heldout import HeldOut
    from toolkit.train.pairs import PreferencePair

# RSN-Tune looks for what all text needs on so many harmless prompts.
FOUNDATION_PROMPTS = 100


@dataclass(frozen=True)
class AlignOutcome:
    """How an alignment ended.

    Args:
        finished: false when it was cancelled and can go on.
        model: the folder, a model only when finished.
        mask: the frozen neurons beside it, if any.
        summary: the card's figures.
    """

    finished: bool
    model: Path
    mask: Path | None
    summary: dict[str, Any]


def align(
    request: AlignRequest,
    folder: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    reference: Path | None = None,
) -> AlignOutcome:
    """Train a model in ``folder``, or go on where an earlier call was stopped.

    ``reference`` is a folder where runs on the same pairs share what the reference model says
    of them; by default each run asks for itself.

    Raises:
        SafeNeuronError: bad input, before anything is written; a folder of another run;
            a loss that is no number.
    """
    require_writable(folder, "folder")
    mask = _read_mask(request)
    parent = resolve(request.model)
    key = request_key(request, parent.fingerprint, mask)
    attacked = attack_mask(request)
    require_own(folder, key)
    if is_whole(folder):
        card = json.loads((folder / CARD).read_text("utf-8"))
        return _attacked(request, _finished(folder, card), card, on_event, should_stop)
    looked_at = _looked_at(request)

    from toolkit.models.load import load_model
    from toolkit.train.dpo import train
    from toolkit.train.parallel import first_before_others, process

    first = process()[0] == 0
    if not first:  # of several that accelerate or torchrun started: the first one tells
        on_event = unheard
    loaded = load_model(parent)
    found = None
    for given in (mask, attacked):
        if given is not None:
            require_fit(given, loaded.info, parent.ancestors, request.force)
    if mask is not None:
        found = mask.neuron_set()
        mask = _used_mask(request, loaded, mask)
    neurons = mask.neuron_set() if mask is not None else None
    folder.mkdir(parents=True, exist_ok=True)
    with first_before_others(loaded.device):
        if first:
            told = {"schema": "safeneuron.run/1", "request_key": key}
            write_atomically(folder / RECORD, json.dumps(told) + "\n")
        pairs, report = run_pairs(request, folder, loaded, found, on_event)
    on_event({"kind": "note", "text": str(report)})
    pairs, held_out = _set_aside(request, pairs, looked_at)
    settings = request.settings(len(pairs))
    finder = None
    if settings.kind.searches:
        from analysis.finding import make_finder

        finder = make_finder(request, loaded, mask, settings.mixture)
    outcome = train(
        loaded, pairs, neurons, settings, folder, on_event, should_stop, finder, held_out, reference
    )
    if not outcome.finished:
        return AlignOutcome(False, folder, None, {"steps": outcome.steps})
    on_event({"kind": "stage", "stage": "saving", "done": 0, "total": 1})
    card = make_card(request, loaded, mask, pairs, report, settings, outcome)
    card["request_key"] = key
    with first_before_others(loaded.device):
        if first:
            save_result(loaded, mask, card, folder)
        done = _finished(folder, card)
    on_event({"kind": "stage", "stage": "saving", "done": 1, "total": 1})
    if not first:
        return done
    # Its memory is for the models under attack.
    loaded.model = None
    return _attacked(request, done, card, on_event, should_stop)


def _attacked(
    request: AlignRequest,
    done: AlignOutcome,
    card: dict[str, Any],
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> AlignOutcome:
    """Attack before and after, if asked to, and put both into the model card."""
    if not request.attack:
        return done
    from analysis.before_after import StopAskedError, attack_both, watched

    try:
        before, after = attack_both(request, done.model, watched(on_event, should_stop))
    except StopAskedError:
        return replace(done, finished=False)
    write_atomically(done.model / README, model_card(card, before, after))
    found = finding(after)
    return replace(done, summary=done.summary | {"attack": found.sentence if found else "done"})


def standing(request: AlignRequest, folder: Path) -> bool:
    """Whether a folder holds what is asked for, as model, mask and pairs now are; runs nothing.

    Raises:
        SafeNeuronError: it holds another run, or what is asked for can't be read.
    """
    parent = resolve(request.model)
    require_own(folder, request_key(request, parent.fingerprint, _read_mask(request)))
    return is_whole(folder)


def _finished(folder: Path, card: dict[str, Any]) -> AlignOutcome:
    # What an earlier process may have left when it was killed between saving and tidying.
    for name in ("checkpoints", "dataset", "reference"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / RECORD).unlink(missing_ok=True)
    mask = folder / MASK if (folder / MASK).is_file() else None
    return AlignOutcome(True, folder, mask, card["figures"])


def _looked_at(request: AlignRequest) -> tuple[list[str], list[str]] | None:
    """Harmful and harmless prompts that are looked at while it trains, if any are."""
    if request.evaluate_every is None:
        return None
    return read_prompts(request.held_harmful).texts, read_prompts(request.held_harmless).texts


def _set_aside(
    request: AlignRequest,
    pairs: "list[PreferencePair]",
    looked_at: tuple[list[str], list[str]] | None,
) -> "tuple[list[PreferencePair], HeldOut | None]":
    """What trains, and what is looked at while it does."""
    if request.evaluate_every is None or looked_at is None:
        return pairs, None
    from toolkit.train.heldout import HeldOut, split

    generator = random.Random(f"{request.seed} held out")
    trained, aside = split(
        pairs, request.held_out, lambda below, count: generator.sample(range(below), count)
    )
    return trained, HeldOut(
        pairs=aside,
        harmful=looked_at[0],
        harmless=looked_at[1],
        every=request.evaluate_every,
        patience=request.patience,
    )


def _read_mask(request: AlignRequest) -> MaskFile | None:
    recipe = RECIPES[request.recipe]
    if not recipe.needs_mask:
        return None
    if request.mask is None:
        raise SafeNeuronError(
            f"the recipe {recipe.name} needs --mask; make one with 'safeneuron identify', or use "
            "--recipe dpo"
        )
    mask = read_mask(request.mask)
    trains = recipe.mask == "train"
    if not mask.count:
        wrong = "nothing would train" if trains else "nothing would be frozen"
        raise SafeNeuronError(f"{request.mask} names no neurons, so {wrong}; identify again")
    if mask.count == mask.model.neurons:
        wrong = "nothing would be left out" if trains else "no MLP would train"
        raise SafeNeuronError(f"{request.mask} names every neuron, so {wrong}; identify again")
    return mask


def _used_mask(request: AlignRequest, loaded: "LoadedModel", mask: MaskFile) -> MaskFile:
    """The neurons that the recipe really freezes or trains, out of those of the mask."""
    neurons = mask.neuron_set()
    if request.recipe == "random-freeze":
        used, how = neurons.random_like(request.seed), {"seed": request.seed}
    elif request.recipe == "rsn-tune":
        used, how = neurons - _foundation(request, loaded), {}
        if not len(used):
            raise SafeNeuronError(
                "every neuron of the mask is one that all text needs, so nothing would train; "
                "use --recipe sn-tune, or a larger mask"
            )
    else:
        return mask
    made = MethodInfo(name=request.recipe, parameters={"mask": mask.sha256, **how})
    return MaskFile.of(used, mask.model, made, mask.prompts)


def _foundation(request: AlignRequest, loaded: "LoadedModel") -> NeuronSet:
    if request.foundation is not None:
        mask = read_mask(request.foundation)
        require_fit(mask, loaded.info, loaded.folder.ancestors, request.force)
        return mask.neuron_set()
    from analysis.finding import foundation_neurons

    return foundation_neurons(loaded, read_prompts(request.harmless)[:FOUNDATION_PROMPTS])
