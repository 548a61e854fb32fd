"""Preference optimisation with TRL's DPOTrainer, with neurons frozen and zeroed if asked.

The run lives in a folder: checkpoints in ``checkpoints/``, each marked whole by a file
written last, so that a process killed in the middle of writing one leaves none that looks
whole. Started again, the run goes on from the newest whole checkpoint and ends with the
weights of an unbroken one: data order and random states are part of a checkpoint, and the
reference's log-probabilities come from the untouched start weights each time.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from toolkit.intervene import Intervention, intervene
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet
from toolkit.train.freeze import FrozenNeurons
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import Settings
from toolkit.train.watch import WHOLE, OnEvent, Watcher

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainOutcome:
    """How a run ended.

    Args:
        finished: false when it was cancelled; it can then be started again.
        steps: optimiser steps done.
        first, last: figures of the first and the last logged step.
        frozen: how many numbers were held, each verified bit-identical at the end.
        trainable: how many numbers trained.
        seconds: of this process.
    """

    finished: bool
    steps: int
    first: dict[str, float]
    last: dict[str, float]
    frozen: int
    trainable: int
    seconds: float


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None."""
    found = [p for p in (folder / CHECKPOINTS).glob("checkpoint-*") if (p / WHOLE).exists()]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def train(
    loaded: LoadedModel,
    pairs: Sequence[PreferencePair],
    neurons: NeuronSet | None,
    settings: Settings,
    folder: Path,
    on_event: OnEvent,
    should_stop: Callable[[], bool],
) -> TrainOutcome:
    """Train ``loaded.model`` in place.

    All weights of the decoder blocks train but those of ``neurons``; embeddings, the
    unembedding and the final norm stay, as in the trials that the preset comes from.

    Args:
        loaded: the model in float32; it ends as the trained one.
        pairs: the preferences, in order; the seed shuffles them.
        neurons: to freeze, and with ``settings.zero`` to zero in the policy's forward
            pass; None for plain DPO.
        settings: the recipe with its numbers.
        folder: the run's folder.
        on_event: hears of every step and stage.
        should_stop: asked after every step; true saves a checkpoint and ends the run.

    Raises:
        SafeNeuronError: the loss is no number, or a frozen entry moved.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    started = time.monotonic()
    model = loaded.model
    blocks = loaded.layout.blocks + "."
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(blocks))
    # The trainer computes the reference when it is made, from the start weights; a run that
    # resumes loads its checkpoint later.
    on_event({"kind": "stage", "stage": "reference", "done": 0, "total": 1})
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(folder / CHECKPOINTS),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            weight_decay=settings.weight_decay,
            beta=settings.beta,
            optim=settings.optimiser,
            loss_type=["sigmoid", "sft"] if settings.sft_weight else ["sigmoid"],
            loss_weights=[1.0, settings.sft_weight] if settings.sft_weight else [1.0],
            max_length=settings.max_length,
            precompute_ref_log_probs=True,
            bf16=settings.dtype == "bfloat16",
            use_cpu=loaded.device.type == "cpu",
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            logging_steps=1,
            logging_first_step=True,
            save_strategy="steps",
            save_steps=settings.save_every,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            seed=settings.seed,
            data_seed=settings.seed,
        ),
        train_dataset=Dataset.from_dict(_columns(loaded, pairs)),
        processing_class=loaded.tokenizer,
    )
    on_event({"kind": "stage", "stage": "reference", "done": 1, "total": 1})
    frozen = FrozenNeurons(model, loaded.layout, neurons) if neurons is not None else None
    watcher = Watcher(frozen, on_event, should_stop)
    trainer.add_callback(watcher)
    zeroed = (
        intervene(model, loaded.layout, Intervention(neurons))
        if neurons is not None and settings.zero
        else nullcontext()
    )
    resume = newest_checkpoint(folder)
    try:
        with zeroed:
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    finally:
        if frozen is not None:
            frozen.release()
    if frozen is not None:
        frozen.verify()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = frozen.entries if frozen is not None else 0
    return TrainOutcome(
        finished=not watcher.stopped,
        steps=trainer.state.global_step,
        first=watcher.first,
        last=watcher.last,
        frozen=held,
        trainable=trainable - held,
        seconds=round(time.monotonic() - started, 1),
    )


def _columns(loaded: LoadedModel, pairs: Sequence[PreferencePair]) -> dict[str, list[object]]:
    """The pairs as TRL takes them: chats where the model has a template, else texts."""

    def side(role: str, text: str) -> object:
        templated = bool(loaded.tokenizer.chat_template)
        return [{"role": role, "content": text}] if templated else text

    return {
        "prompt": [side("user", pair.prompt) for pair in pairs],
        "chosen": [side("assistant", pair.chosen) for pair in pairs],
        "rejected": [side("assistant", pair.rejected) for pair in pairs],
    }
