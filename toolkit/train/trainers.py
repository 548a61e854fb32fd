"""TRL's trainers with what the recipes add: forward passes without some neurons.

The loops, losses, data order and checkpoints are TRL's and transformers'.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Trainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_trainer import SFTTrainer

from toolkit.examples import IGNORED
from toolkit.train.ablation import Ablation
from toolkit.train.reference import ReferenceMemory, Sides
from toolkit.train.scored_positions import ScoredPositions, scored_alone


class _Recipe(Trainer):
    """What both trainers share.

    Args:
        ablation: changes the forward passes of training; None leaves them whole.
    """

    def __init__(self, *args: Any, ablation: Ablation | None = None, **kwargs: Any) -> None:
        self.ablation = ablation
        self._begun = -1
        super().__init__(*args, **kwargs)

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.model is not None and self.model.training

    def ablated(self, rows: int, sides: int) -> AbstractContextManager[None]:
        """The policy's pass over ``rows`` rows, ``sides`` a pair, as training sees it."""
        if self.ablation is None or not self.training:
            return nullcontext()
        if self._begun != self.state.global_step:
            self._begun = self.state.global_step
            self.ablation.begin_step(self._begun)
        return self.ablation.around(rows // sides, sides)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Train no step more where a checkpoint of the last one is gone on from."""
        usual: Any = super()  # transformers leaves it untyped
        if self.state.global_step < self.state.max_steps:
            usual._run_epoch(*args, **kwargs)

    def backbone(self, model: Any) -> nn.Module:
        """The part of a model, wrapped or not, that its head projects the states of."""
        inner = self.accelerator.unwrap_model(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        found: nn.Module = inner.base_model
        return found

    def scored(self, model: Any) -> Any:
        """The model, where TRL would project all positions one that leaves some out."""
        if self.accelerator.device.type == "cuda":
            return model
        return ScoredPositions(model, self.backbone(model))


class RecipeDPO(_Recipe, DPOTrainer):
    """DPO with a policy, and if asked a reference, that runs without some neurons.

    Args:
        reference_ablation: changes the reference's passes; None leaves it whole.
        remembered: what the reference said before; None asks it always.
    """

    def __init__(
        self,
        *args: Any,
        reference_ablation: Ablation | None = None,
        remembered: ReferenceMemory | None = None,
        **kwargs: Any,
    ) -> None:
        self.reference_ablation, self.remembered = reference_ablation, remembered
        self._whole: list[float] | None = None
        super().__init__(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """The parts of the next batch; what the whole of it has is counted."""
        parts, items = super().get_batch_samples(*args, **kwargs)
        counts = torch.tensor([_pairs_and_tokens(part) for part in parts]).sum(dim=0)
        counts = self.accelerator.reduce(counts.to(self.accelerator.device), "sum")
        self._whole = (counts / (len(parts) * self.accelerator.num_processes)).tolist()
        return parts, items

    def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
        """The reference's log-probabilities of one batch, computed before training."""
        pairs = len(inputs["input_ids"]) // 2
        ablation = self.reference_ablation
        trainer: Any = super()  # TRL leaves its methods untyped

        def ask() -> Sides:
            with nullcontext() if ablation is None else ablation.around(pairs, 2):
                chosen, rejected = trainer.compute_ref_log_probs(self.scored(model), inputs)
            return chosen, rejected

        return ask() if self.remembered is None else self.remembered.of(inputs, ask)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss; its rows are all chosen sides, then all rejected ones.

        Each term is a mean over what the part has, and parts are averaged, so that a pair or a
        token would count for more in a part with few. They are weighed to be means over the
        whole batch, however it is taken.
        """
        trainer: Any = super()
        usual, part = self.loss_weights, _pairs_and_tokens(inputs)
        shares = [own / whole for own, whole in zip(part, self._whole or part, strict=True)]
        self.loss_weights = [w * share for w, share in zip(usual, shares, strict=False)]
        try:
            with self.ablated(len(inputs["input_ids"]), 2):
                return trainer.compute_loss(self.scored(model), inputs, *args, **kwargs)
        finally:
            self.loss_weights = usual


def _pairs_and_tokens(inputs: Any) -> tuple[int, int]:
    """What DPO's terms are means over: pairs, and the chosen sides' answer tokens."""
    chosen = inputs["completion_mask"].chunk(2)[0]
    return len(chosen), int(chosen[:, 1:].sum())


class RecipeSFT(_Recipe, SFTTrainer):
    """SFT on whole sequences' answers."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """TRL's loss."""
        trainer: Any = super()
        return trainer.compute_loss(self.scored(model), inputs, *args, **kwargs)


class GuardSFT(RecipeSFT):
    """NeuronGuard's loss (2608.23959): answer whole, answer pruned, and alike.

    ``CE(answer) + CE(answer | without) + kl_weight * KL(without || whole)``, each a mean
    over answer tokens. The whole model's side of the divergence gets no gradient: it is
    what the pruned model is to agree with.
    """

    def __init__(self, *args: Any, kl_weight: float, **kwargs: Any) -> None:
        self._kl_weight = kl_weight
        super().__init__(*args, **kwargs)

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of one batch of ``input_ids``, ``attention_mask`` and ``labels``."""
        answers = inputs["labels"][:, 1:]
        asked = answers != IGNORED
        whole = self._answer_logits(model, inputs, asked)
        with self.ablated(len(answers), 1):
            pruned = self._answer_logits(model, inputs, asked)
        tokens = answers[asked]
        parts = guard_losses(whole, pruned, tokens)
        total = parts["whole"] + parts["pruned"] + self._kl_weight * parts["divergence"]
        count = max(len(tokens), 1)
        if num_items_in_batch is None:
            loss = total / count
        else:
            loss = total / torch.as_tensor(num_items_in_batch).clamp(min=1)
            if self.args.average_tokens_across_devices:
                loss = loss * self.accelerator.num_processes
        mode = "train" if self.training else "eval"
        for name, value in parts.items():
            self._metrics[mode][f"guard/{name}"].append(float(value.detach()) / count)
        return (loss, None) if return_outputs else loss

    def _answer_logits(self, model: Any, inputs: Any, asked: Tensor) -> Tensor:
        """Logits that predict each answer token, ``[tokens, vocabulary]`` in float32."""
        with scored_alone(self.backbone(model), asked):
            logits: Tensor = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                use_cache=False,
            ).logits
        return logits[0].float()


def guard_losses(whole: Tensor, pruned: Tensor, tokens: Tensor) -> dict[str, Tensor]:
    """NeuronGuard's three terms, each summed over tokens.

    Args:
        whole: logits of the whole model, ``[tokens, vocabulary]``.
        pruned: the same without the neurons.
        tokens: ``[tokens]``, what was to be said.

    Returns:
        ``whole`` and ``pruned``, in nats; ``divergence``, KL(pruned || whole).
    """
    ablated = pruned.log_softmax(dim=-1)
    target = whole.detach().log_softmax(dim=-1)
    return {
        "whole": F.cross_entropy(whole, tokens, reduction="sum"),
        "pruned": F.nll_loss(ablated, tokens, reduction="sum"),
        "divergence": F.kl_div(target, ablated, log_target=True, reduction="sum"),
    }
