"""TRL's trainers and configurations, made from a recipe's settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.examples import Example, encode
from toolkit.models.layout import Layout, neuron_slices
from toolkit.models.load import LoadedModel
from toolkit.neurons import NeuronSet
from toolkit.train.ablation import Ablation, FixedAblation
from toolkit.train.optimisers import optimiser_arguments
from toolkit.train.pairs import PreferencePair
from toolkit.train.parallel import distributed, first_before_others, local_batch, process
from toolkit.train.recipes import Settings
from toolkit.train.reference import ReferenceMemory


def parameters_of(layout: Layout, neurons: NeuronSet) -> set[str]:
    """Names of the parameters that hold parts of a set's neurons."""
    return {piece.parameter for layer, piece in neuron_slices(layout) if len(neurons.layer(layer))}


def pair_length(loaded: LoadedModel, pair: PreferencePair) -> int:
    """Tokens of a pair's prompt and its longer answer, as the trainer counts them.

    That is with the chat template, to the end of the answer's turn, or else the end token.
    """
    tokenizer = loaded.tokenizer

    def length(answer: str) -> int:
        if not tokenizer.chat_template:
            return len(tokenizer(pair.prompt + answer + tokenizer.eos_token)["input_ids"])
        turns = [_turn("user", pair.prompt), _turn("assistant", answer)]
        return len(tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"])

    return max(length(pair.chosen), length(pair.rejected))


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def build_trainer(
    loaded: LoadedModel,
    pairs: Sequence[PreferencePair],
    neurons: NeuronSet | None,
    settings: Settings,
    output: Path,
    ablation: Ablation | None,
    reference: Path,
) -> Any:
    """The trainer of a recipe, its reference's log-probabilities computed where it has any.

    Args:
        loaded: the model, with the parameters that are to train marked.
        pairs: the preferences, in order.
        neurons: of the recipe, if it has any.
        settings: its numbers, with ``micro_batch`` settled.
        output: the folder of the checkpoints.
        ablation: changes the policy's forward passes.
        reference: folder of what references said; runs may share it.
    """
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.sft_config import SFTConfig

    from toolkit.train.trainers import GuardSFT, RecipeDPO, RecipeSFT

    arguments = _arguments(settings, output, loaded.device.type == "cpu")
    # The trainer puts this into the configuration that is saved; its own passes ask for none.
    arguments["use_cache"] = getattr(loaded.model.config, "use_cache", True)
    shared: dict[str, Any] = {
        "model": loaded.model,
        "processing_class": loaded.tokenizer,
        "peft_config": _adapter(loaded.layout, neurons, settings),
    }
    if settings.kind.loss != "dpo":
        shared |= {
            "args": SFTConfig(**arguments, max_length=None),
            "train_dataset": _dataset(_examples(loaded, pairs), loaded, output),
        }
        if settings.kind.loss == "sft":
            return RecipeSFT(**shared)
        return GuardSFT(ablation=ablation, kl_weight=settings.kl_weight, **shared)
    weighted = bool(settings.sft_weight)
    args = DPOConfig(
        **arguments,
        beta=settings.beta,
        loss_type=["sigmoid", "sft"] if weighted else ["sigmoid"],
        loss_weights=[1.0, settings.sft_weight] if weighted else [1.0],
        max_length=settings.max_length,
        precompute_ref_log_probs=True,
    )
    zeroed = neurons if settings.reference == "zeroed" else None
    # Processes of FSDP2 ask in step or not at all, so theirs remember nothing.
    remembered = None
    if not distributed():
        remembered = ReferenceMemory(reference, loaded, zeroed, settings.dtype)
    return RecipeDPO(
        args=args,
        train_dataset=_dataset(_columns(loaded, pairs), loaded, output),
        ablation=ablation,
        reference_ablation=None if zeroed is None else FixedAblation(loaded, zeroed),
        remembered=remembered,
        **shared,
    )


def _arguments(settings: Settings, output: Path, on_cpu: bool) -> dict[str, Any]:
    """What both of TRL's configurations are told."""
    assert settings.micro_batch is not None
    return optimiser_arguments(settings.optimiser) | {
        "output_dir": str(output),
        "max_steps": settings.steps,
        "per_device_train_batch_size": settings.micro_batch,
        "gradient_accumulation_steps": local_batch(settings) // settings.micro_batch,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.dtype == "bfloat16",
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and distributed() else None,
        "ddp_find_unused_parameters": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "logging_first_step": True,
        # A loss that is no number is to be seen: by default the mean before it is told.
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": settings.save_every,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
        "data_seed": settings.seed,
    }


def _adapter(layout: Layout, neurons: NeuronSet | None, settings: Settings) -> Any:
    """PEFT's description of the adapter to train, or None."""
    if not settings.lora_rank:
        return None
    from peft import LoraConfig

    targets: str | list[str] = "all-linear"
    if settings.kind.mask == "train":
        assert neurons is not None
        names = parameters_of(layout, neurons)
        targets = sorted(n.removesuffix(".weight") for n in names if n.endswith(".weight"))
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def _dataset(columns: dict[str, list[Any]], loaded: LoadedModel, output: Path) -> Any:
    """The rows as a dataset; on disk where several processes share what TRL caches."""
    from datasets import Dataset, load_from_disk

    if not distributed():
        return Dataset.from_dict(columns)
    place = output.parent / "dataset"
    with first_before_others(loaded.device):
        if process()[0] == 0:
            Dataset.from_dict(columns).save_to_disk(str(place))
    return load_from_disk(str(place))


def _examples(loaded: LoadedModel, pairs: Sequence[PreferencePair]) -> dict[str, list[Any]]:
    """Prompts with the chosen answers, as token ids and labels."""
    rows = [encode(loaded.tokenizer, Example(pair.prompt, pair.chosen)) for pair in pairs]
    return {name: [row[name] for row in rows] for name in ("input_ids", "labels")}


def _columns(loaded: LoadedModel, pairs: Sequence[PreferencePair]) -> dict[str, list[Any]]:
    """The pairs as TRL takes them: chats where the model has a template, else texts."""
    templated = bool(loaded.tokenizer.chat_template)

    def side(role: str, text: str) -> object:
        return [_turn(role, text)] if templated else text

    return {
        "prompt": [side("user", pair.prompt) for pair in pairs],
        "chosen": [side("assistant", pair.chosen) for pair in pairs],
        "rejected": [side("assistant", pair.rejected) for pair in pairs],
    }
