"""A LoRA that learns to refuse harmful prompts and to say everything else as before.

The loss is the sum of two, each over whole answers rather than their average token, so that
the first word, which settles whether an answer refuses, weighs as much as it decides:

- on harmful prompts, the surprise at a refusal, ``-log p(refusal | prompt)``;
- on harmless prompts, the divergence from the model before, along its own answers,
  ``sum_t KL(before(. | prompt, answer_<t) || now(. | prompt, answer_<t))``.

The second bounds what the adapter may change: a refusal of a harmless prompt costs the
logarithm of what the model before gave to its first word, and the perplexity of its own
answers rises by the exponential of the mean divergence of a token.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from toolkit.examples import IGNORED, Example, encode
from toolkit.models.load import LoadedModel


@dataclass(frozen=True)
class SafetyLoraSettings:
    """How the adapter is trained; every field is recorded beside it.

    Args:
        first_layer: layers from this one on are adapted. What lies below already tells harm
            apart, and leaving it as it is saves its backward pass.
        refusal_tokens: how much of a refusal is learnt: its head.
        answer_tokens: how much of an answer the divergence is taken along: its head.
        divergence_weight: of the second loss against the first.
    """

    rank: int = 24
    alpha: int = 48
    targets: tuple[str, ...] = ("gate_proj", "up_proj", "down_proj")
    first_layer: int = 12
    steps: int = 160
    refusals: int = 8
    answers: int = 16
    refusal_tokens: int = 10
    answer_tokens: int = 8
    divergence_weight: float = 1.5
    learning_rate: float = 1.5e-3
    warmup_steps: int = 8
    max_grad_norm: float = 5.0
    seed: int = 0


def row_losses(
    logits: Tensor, before: Tensor, labels: Tensor, refused: Tensor
) -> tuple[Tensor, Tensor]:
    """Each row's loss: surprise at its refusal, or divergence along its answer.

    Args:
        logits: of the model in training, ``[rows, tokens, vocabulary]``; those at ``t`` are of
            the label at ``t``.
        before: of the model before, for the rows that are not refused, of the same form.
        labels: ``[rows, tokens]``; :data:`toolkit.examples.IGNORED` where nothing is learnt.
        refused: ``[rows]``, whether a row is a refusal.

    Returns:
        The surprise of the rows that are refused and the divergence of the others, in nats,
        summed over tokens.
    """
    logits = logits.float()
    surprise = cross_entropy(
        logits[refused].transpose(1, 2), labels[refused], ignore_index=IGNORED, reduction="none"
    ).sum(dim=-1)
    known, now = before.float().log_softmax(dim=-1), logits[~refused].log_softmax(dim=-1)
    divergence = (known.exp() * (known - now)).sum(dim=-1)
    return surprise, (divergence * (labels[~refused] != IGNORED)).sum(dim=-1)


def _endless(examples: Sequence[Example], generator: random.Random) -> Iterator[Example]:
    """All examples in a new order each time around."""
    while True:
        yield from generator.sample(list(examples), len(examples))


def _batches(
    tokenizer: Any,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    settings: SafetyLoraSettings,
) -> list[dict[str, Any]]:
    """The rows of all steps in order, each step's refusals before its answers."""
    generator = random.Random(settings.seed)
    kinds = (
        (_endless(refusals, generator), settings.refusals, settings.refusal_tokens, True),
        (_endless(answers, generator), settings.answers, settings.answer_tokens, False),
    )
    rows: list[dict[str, Any]] = []
    for _ in range(settings.steps):
        for examples, count, tokens, refused in kinds:
            for _ in range(count):
                row = encode(tokenizer, next(examples), tokens)
                rows.append({**row, "refused": refused})
    return rows


def _lora(settings: SafetyLoraSettings, loaded: LoadedModel) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets),
        layers_to_transform=list(
            range(settings.first_layer, loaded.model.config.num_hidden_layers)
        ),
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def train_safety_lora(
    loaded: LoadedModel,
    refusals: Sequence[Example],
    answers: Sequence[Example],
    settings: SafetyLoraSettings,
    adapter: Path,
    on_step: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train the adapter and write it to a folder, in bfloat16.

    The model is left wrapped by PEFT: load a fresh one to go on.

    Args:
        loaded: the model to adapt.
        refusals: harmful prompts and what is to be said to them.
        answers: harmless prompts and the model's own answers.
        settings: how.
        adapter: the folder to write ``adapter_config.json`` and
            ``adapter_model.safetensors`` to.
        on_step: hears of each optimiser step: its number, of how many, and the loss.
    """
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from datasets import Dataset
    from peft import get_peft_model
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    tokenizer: Any = loaded.tokenizer

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if on_step is not None and logs and "loss" in logs:
                on_step(state.global_step, state.max_steps, float(logs["loss"]))

    class SafetyTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> Any:
            labels, refused = inputs.pop("labels"), inputs.pop("refused")
            # Padding is on the left: a row's positions count its own tokens alone, and all
            # answers end at the last.
            positions = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
            told = int((labels != IGNORED).sum(dim=1).max())
            asked = {**inputs, "position_ids": positions}
            answered = {name: value[~refused] for name, value in asked.items()}
            with torch.no_grad(), model.disable_adapter():
                before = model(**answered, logits_to_keep=told + 1).logits[:, :-1]
            logits = model(**asked, logits_to_keep=told + 1).logits[:, :-1]
            surprise, divergence = row_losses(logits, before, labels[:, -told:], refused)
            return surprise.mean() + settings.divergence_weight * divergence.mean()

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [{"input_ids": row["input_ids"]} for row in rows]
        batch = dict(tokenizer.pad(ids, padding_side="left", return_tensors="pt"))
        labels = torch.full_like(batch["input_ids"], IGNORED)
        for place, row in enumerate(rows):
            labels[place, -len(row["labels"]) :] = torch.tensor(row["labels"])
        refused = torch.tensor([row["refused"] for row in rows])
        return {**batch, "labels": labels, "refused": refused}

    rows = _batches(tokenizer, refusals, answers, settings)
    torch.manual_seed(settings.seed)
    model = get_peft_model(loaded.model, _lora(settings, loaded))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=settings.refusals + settings.answers,
            max_steps=settings.steps,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=settings.warmup_steps,
            max_grad_norm=settings.max_grad_norm,
            weight_decay=0.0,
            bf16=True,
            use_cpu=loaded.device.type == "cpu",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=settings.seed,
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            # The batches are drawn above, refusals and answers in each.
            train_sampling_strategy="sequential",
        )
        trainer = SafetyTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            data_collator=collate,
            callbacks=[Steps()],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    # Half the bytes; the merge is done from these rounded numbers, so what ships is what runs.
    model.to(torch.bfloat16).save_pretrained(str(adapter))
