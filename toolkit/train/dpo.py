"""A training run with TRL's DPOTrainer or SFTTrainer, with neurons frozen and removed.

The run lives in a folder: checkpoints in ``checkpoints/``, each marked whole by a file
written last, so that a process killed in the middle of writing one leaves none that looks
whole. Started again, the run goes on from the newest whole checkpoint and ends with the
weights of an unbroken one: data order and random states are part of a checkpoint, and the
reference's log-probabilities are those of the untouched start weights.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import SafeNeuronError
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.progress import OnEvent
from toolkit.train.ablation import Ablation, DrawnAblation, FixedAblation
from toolkit.train.build import build_trainer, pair_length, parameters_of
from toolkit.train.finding import FindAgain, Finder, Found
from toolkit.train.freeze import FrozenNeurons, local_part
from toolkit.train.heldout import HeldOut, HeldOutCallback, Watched
from toolkit.train.optimisers import optimiser_arguments
from toolkit.train.pairs import PreferencePair
from toolkit.train.parallel import (
    distributed,
    divisor,
    local_batch,
    process,
    require_exact,
)
from toolkit.train.recipes import Settings
from toolkit.train.shown import shown_pairs
from toolkit.train.watch import (
    Watcher,
    figures_of,
    not_a_number,
    seconds_until,
    sigterm_stops,
    whole_checkpoints,
)

CHECKPOINTS = "checkpoints"
REFERENCE = "reference"
ADAPTER = "adapter"


@dataclass(frozen=True)
class TrainOutcome:
    """How a run ended.

    Args:
        finished: false when it was cancelled; it can then be started again.
        steps: optimiser steps done.
        first, last: figures of the first and the last step, in whichever process.
        frozen: how many numbers were held, each verified bit-identical at the end.
        trainable: how many numbers trained.
        seconds: of all processes of the run, but what one lost by a kill between checkpoints.
        micro_batch: pairs that a process took at a time.
    """

    finished: bool
    steps: int
    first: dict[str, float]
    last: dict[str, float]
    frozen: int
    trainable: int
    seconds: float
    micro_batch: int


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    return next(reversed(whole_checkpoints(folder / CHECKPOINTS).values()), None)


def train(
    loaded: LoadedModel,
    pairs: Sequence[PreferencePair],
    neurons: NeuronSet | None,
    settings: Settings,
    folder: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
    finder: Finder | None = None,
    held_out: HeldOut | None = None,
    reference: Path | None = None,
) -> TrainOutcome:
    """Train ``loaded.model``, which ends as the trained one, in evaluation mode.

    All weights of the decoder blocks train but what the recipe holds; embeddings, the
    unembedding and the final norm stay, as in the trials that the presets come from.
    Where memory runs out, the parts that the batch is taken in are halved and the run goes
    on from its last checkpoint; the batch itself stays.

    Args:
        loaded: the model in float32, with the weights of its folder.
        pairs: the preferences, in order; the seed shuffles them.
        neurons: to freeze, or for ``sn-tune`` and ``rsn-tune`` to train alone; None where
            the recipe has no use for any.
        settings: the recipe with its numbers.
        folder: the run's folder.
        on_event: hears of every step and stage.
        should_stop: asked after every step; true saves a checkpoint and ends the run, and
            so does SIGTERM.
        finder: looks for the neurons again, for recipes that do.
        held_out: looked at every so many steps, and may end the run early.
        reference: folder of what the reference says, which other runs may share; by default
            in the run's own.

    Raises:
        SafeNeuronError: the loss is no number, a frozen entry moved, an optimiser or a way
            to spread the run that can't be had, or no memory for a single pair.
    """
    started = time.monotonic() - seconds_until(newest_checkpoint(folder))
    optimiser_arguments(settings.optimiser)
    if settings.kind.draws:
        count = settings.steps * settings.batch_size

        def fits(pair: PreferencePair) -> bool:
            return pair_length(loaded, pair) <= settings.max_length

        pairs = shown_pairs(pairs, settings.mixture, count, settings.seed, fits)
    whole = local_batch(settings)
    micro = divisor(whole, settings.micro_batch or whole)

    def spent() -> float:
        return time.monotonic() - started

    with sigterm_stops(should_stop) as stop:
        while True:
            parts = replace(settings, micro_batch=micro)
            asked = reference or folder / REFERENCE
            run = _Run(loaded, neurons, parts, folder, finder, held_out, asked, spent)
            outcome = run.attempt(pairs, on_event, stop)
            if outcome is not None:
                return outcome
            # Out of memory. What the attempt held goes before its successor is made.
            del run
            if micro == 1 or distributed():
                raise SafeNeuronError(
                    f"out of memory with {micro} pairs at a time; lower --max-length or "
                    "--micro-batch, or train an adapter with --lora-rank 16"
                )
            micro = divisor(whole, micro // 2)
            on_event({"kind": "memory", "micro_batch": micro})
            _reload(loaded)


def _reload(loaded: LoadedModel) -> None:
    """Back to the start weights, after a run that came to nothing."""
    device = str(loaded.device)
    loaded.model = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    loaded.model = load_model(loaded.folder, device=device).model


def out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on any device."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, torch.OutOfMemoryError) or bool(should_reduce_batch_size(error))


class _Run:
    """One attempt at a run, with its batch in parts of ``settings.micro_batch``."""

    def __init__(
        self,
        loaded: LoadedModel,
        neurons: NeuronSet | None,
        settings: Settings,
        folder: Path,
        finder: Finder | None,
        held_out: HeldOut | None,
        reference: Path,
        spent: Callable[[], float],
    ) -> None:
        self.loaded, self.neurons, self.settings = loaded, neurons, settings
        self.folder, self.finder, self.held_out = folder, finder, held_out
        self.reference, self.spent = reference, spent

    def attempt(
        self,
        pairs: Sequence[PreferencePair],
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> TrainOutcome | None:
        """Run to the end; None when memory ran out."""
        try:
            with self._left_as_found():
                return self._run(pairs, on_event, should_stop)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        return None

    @contextmanager
    def _left_as_found(self) -> Iterator[None]:
        """Take from the model what trainers put on it, but for its new weights."""
        forward = vars(self.loaded.model).get("forward")
        try:
            yield
        finally:
            model = self.loaded.model
            for name in ("forward", "_original_forward"):
                vars(model).pop(name, None)
            if forward is not None:
                model.forward = forward
            model.eval().requires_grad_(True)

    def _run(
        self,
        pairs: Sequence[PreferencePair],
        on_event: OnEvent,
        should_stop: Callable[[], bool],
    ) -> TrainOutcome:
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        settings = self.settings
        self._choose_what_trains()
        ablation = self._ablation()
        # The trainer computes the reference when it is made, from the start weights; a run
        # that resumes loads its checkpoint later.
        on_event({"kind": "stage", "stage": "reference", "done": 0, "total": 1})
        trainer = self._trainer(pairs, ablation)
        on_event({"kind": "stage", "stage": "reference", "done": 1, "total": 1})
        held = self._held()
        require_exact(trainer.accelerator, settings, held is not None)
        frozen = (
            FrozenNeurons(trainer.model, self.loaded.layout, held) if held is not None else None
        )
        resume = newest_checkpoint(self.folder)
        watcher = Watcher(frozen, on_event, should_stop, self.spent)
        try:
            if self.finder is not None and settings.kind.searches:
                assert isinstance(ablation, FixedAblation | DrawnAblation)
                trainer.add_callback(self._searches(ablation, on_event, resume))
            if self.held_out is not None:
                trainer.add_callback(self._looks(trainer, self.held_out, on_event, resume))
            trainer.add_callback(watcher)
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        finally:
            if frozen is not None:
                frozen.release()
        step = trainer.state.global_step
        trained = [p for p in trainer.model.parameters() if p.requires_grad]
        if not all(bool(torch.isfinite(local_part(p.detach())).all()) for p in trained):
            raise not_a_number(self.folder / CHECKPOINTS, step + 1)
        held_entries = 0
        if frozen is not None:
            frozen.verify()
            held_entries = frozen.entries
        if not watcher.stopped:
            self._hand_over(trainer, frozen)
        assert settings.micro_batch is not None
        # Checkpoints keep it, so that the first step is the first of all, however often stopped.
        logged = [entry for entry in trainer.state.log_history if "loss" in entry]
        return TrainOutcome(
            finished=not watcher.stopped,
            steps=step,
            first=figures_of(logged[0]) if logged else {},
            last=figures_of(logged[-1]) if logged else {},
            frozen=held_entries,
            trainable=sum(p.numel() for p in trained) - held_entries,
            seconds=round(self.spent(), 1),
            micro_batch=settings.micro_batch,
        )

    def _looks(
        self, trainer: Any, held: HeldOut, on_event: OnEvent, resume: Path | None
    ) -> HeldOutCallback:
        if str(trainer.accelerator.distributed_type.value) == "FSDP":
            raise SafeNeuronError(
                "--evaluate-every needs whole weights in each process, which FSDP2 has not; leave "
                "it out, or train with DDP"
            )
        watched = Watched(self.loaded, held, self.settings.beta, self.settings.dtype)
        return HeldOutCallback(watched, held, on_event, resume)

    def _held(self) -> NeuronSet | None:
        """The neurons whose weights stay."""
        if self.neurons is None or self.settings.kind.mask == "unused":
            return None
        return ~self.neurons if self.settings.kind.mask == "train" else self.neurons

    def _choose_what_trains(self) -> None:
        blocks = self.loaded.layout.blocks + "."
        alone: set[str] | None = None
        if self.settings.kind.mask == "train":
            assert self.neurons is not None
            alone = parameters_of(self.loaded.layout, self.neurons)
        for name, parameter in self.loaded.model.named_parameters():
            parameter.requires_grad_(name.startswith(blocks) if alone is None else name in alone)

    def _ablation(self) -> Ablation | None:
        settings, widths = self.settings, self.loaded.layout.widths
        if settings.kind.loss == "guard":
            return FixedAblation(self.loaded, NeuronSet.empty(widths))
        if self.neurons is None or not settings.zero:
            return None
        if settings.kind.draws:
            return DrawnAblation(
                self.loaded, self.neurons, settings.mixture, settings.seed, process()
            )
        return FixedAblation(self.loaded, self.neurons)

    def _searches(
        self, ablation: FixedAblation | DrawnAblation, on_event: OnEvent, resume: Path | None
    ) -> FindAgain:
        assert self.finder is not None

        def heard(found: Found, step: int) -> None:
            ablation.update(found, step)
            rounds = [len(part) for part in found.rounds]
            on_event({"kind": "found", "step": step, "rounds": rounds, "head": len(found.head)})

        return FindAgain(self.finder, self.settings.find_every, heard, resume)

    def _trainer(self, pairs: Sequence[PreferencePair], ablation: Ablation | None) -> Any:
        return build_trainer(
            self.loaded,
            pairs,
            self.neurons,
            self.settings,
            self.folder / CHECKPOINTS,
            ablation,
            self.reference,
        )

    def _hand_over(self, trainer: Any, frozen: FrozenNeurons | None) -> None:
        """Leave plain weights in ``loaded.model``: an adapter is merged, shards are joined."""
        if self.settings.lora_rank:
            trainer.model.save_pretrained(self.folder / ADAPTER)
            self.loaded.model = trainer.model.merge_and_unload()
            if frozen is not None:
                frozen.verify_merged(self.loaded.model)
        elif str(trainer.accelerator.distributed_type.value) == "FSDP":
            from torch.distributed.checkpoint.state_dict import (
                StateDictOptions,
                get_model_state_dict,
            )

            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(trainer.model, options=options)
            _reload(self.loaded)
            if process()[0] == 0:
                self.loaded.model.load_state_dict(weights)
