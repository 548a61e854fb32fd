"""What a user asks of training: one alignment, or rounds of it."""

from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from analysis.requests import (
    DEFAULT_ATTACKED,
    DEFAULT_HARMFUL,
    DEFAULT_HARMLESS,
    OWN_ES,
    OWN_SAS,
    AttackSetting,
    Request,
)
from analysis.select import Method
from toolkit.models.sources import EMBEDDED
from toolkit.train.recipes import (
    RECIPES,
    Mixture,
    OptimiserName,
    PresetName,
    RecipeName,
    Reference,
    Settings,
    mixture_with,
    with_preset,
)

USUAL = RECIPES["safeneuron"].two_core


class AlignRequest(Request):
    """Train a model by a recipe; a number left out is that of the recipe's preset."""

    model: str
    mask: Path | None = None
    recipe: RecipeName = "safeneuron"
    preset: PresetName = "two-core"
    zero: bool = Field(
        default=True,
        description="zero the frozen neurons in the forward pass too (Algorithm 1, step 3)",
    )
    reference: Reference = Field(
        default="whole", description="DPO's reference model, or with the frozen neurons zeroed"
    )
    foundation: Path | None = Field(
        default=None, description="mask of what rsn-tune leaves out; found when left out"
    )
    pairs: Path | None = Field(
        default=None, description="preference pairs; made from the model itself when left out"
    )
    safety: str | None = Field(
        default=None,
        description="safety pairs: a file, pku-saferlhf, hh-rlhf, spa-vl or a hub name",
    )
    general: str | None = Field(
        default=None, description="general pairs, mixed with them: a file, ultrafeedback, ..."
    )
    safety_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.3, description="of safety pairs in the mixture (Appendix B)"
    )
    safety_label: Literal["safer", "better"] = Field(
        default="safer", description="which of PKU-SafeRLHF's labels decides; the paper is silent"
    )
    total: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="pairs drawn; as many as there are when left out"
    )
    harmful: str = "advbench[::2]"
    harmless: str = "harmless-train"
    rejected_from: str | None = Field(
        default=None,
        description="model whose answers to harmful prompts made pairs reject; an embedded model's "
        "base, else the model itself, when left out",
    )
    leave_out: str | None = Field(
        default=None,
        description="a set that made pairs and searches leave out, as prompts attacked later",
    )
    steps: Annotated[int, Field(ge=1)] = USUAL.steps
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="passes over the pairs, instead of steps"
    )
    batch_size: Annotated[int, Field(ge=1)] = USUAL.batch_size
    micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="pairs at a time, the rest accumulated; halved without memory"
    )
    learning_rate: Annotated[float, Field(gt=0)] = USUAL.learning_rate
    weight_decay: Annotated[float, Field(ge=0)] = USUAL.weight_decay
    optimiser: OptimiserName = "adamw"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    beta: Annotated[float, Field(gt=0)] = USUAL.beta
    sft_weight: Annotated[float, Field(ge=0)] = USUAL.sft_weight
    kl_weight: Annotated[float, Field(ge=0)] = USUAL.kl_weight
    find_every: Annotated[int, Field(ge=1)] = Field(
        default=USUAL.find_every, description="steps between searches of recipes that look again"
    )
    lora_rank: Annotated[int, Field(ge=0)] = Field(
        default=USUAL.lora_rank, description="train an adapter and merge it; 0 for the weights"
    )
    lora_alpha: Annotated[int, Field(ge=1)] = USUAL.lora_alpha
    mixture: dict[str, float] = Field(
        default_factory=dict, description="numbers of what adaptive draws that are not the usual"
    )
    max_length: Annotated[int, Field(ge=16)] = 256
    answer_tokens: Annotated[int, Field(ge=1)] = 64
    save_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="steps between checkpoints; a quarter of the run by default"
    )
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = Field(
        default="bfloat16", description="of the arithmetic (autocast); weights stay in float32"
    )
    force: bool = False
    evaluate_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="steps between looks at held-out pairs and prompts; never"
    )
    held_out: Annotated[int, Field(ge=1)] = Field(
        default=16, description="pairs set aside for it, where it is looked at"
    )
    held_harmful: str = "advbench[1::32]"
    held_harmless: str = "harmless-forms[::48]"
    patience: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="looks without a better held-out margin before it ends early"
    )
    attack: bool = Field(
        default=False, description="attack the model before and after; the card shows both"
    )
    attacked: str = Field(default=DEFAULT_ATTACKED, description="harmful prompts of that attack")
    attacked_harmless: str = "harmless-heldout[:60]"
    attack_settings: tuple[AttackSetting, ...] | None = Field(
        default=None, min_length=1, description="as those of an attack"
    )
    attack_tokens: Annotated[int, Field(ge=1)] = 48
    find_harmful: str = Field(
        default=DEFAULT_HARMFUL, description="prompts that neurons are identified on"
    )
    find_harmless: str = DEFAULT_HARMLESS

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: object) -> object:
        return _with_base(with_preset(values)) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits_together(self) -> "AlignRequest":
        if self.pairs is not None and (self.safety or self.general):
            raise ValueError("give pairs, or safety and general ones to mix, not both")
        if self.rejected_from and (self.pairs or self.safety or self.general):
            raise ValueError(
                "rejected-from is for pairs that are made; leave it out, or pairs, safety and "
                "general"
            )
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience needs evaluate-every: it counts looks at held-out pairs")
        recipe = RECIPES[self.recipe]
        if recipe.draws and not self.zero:
            raise ValueError(
                f"the recipe {recipe.name} removes neurons at every step; leave --no-zero out, or "
                "use the recipe safeneuron"
            )
        if self.reference == "zeroed" and not (recipe.loss == "dpo" and recipe.mask == "freeze"):
            raise ValueError(
                f"the recipe {recipe.name} has no frozen neurons to zero in a reference; leave "
                "reference out"
            )
        if self.mixture and not recipe.draws:
            raise ValueError(f"the recipe {recipe.name} draws nothing; leave mix out")
        self.drawn()
        return self

    def drawn(self) -> Mixture:
        """What ``adaptive`` draws."""
        return mixture_with(self.mixture)

    def settings(self, pairs: int) -> Settings:
        """The recipe with its numbers, for so many pairs."""
        shared = {field.name for field in fields(Settings)} & set(AlignRequest.model_fields)
        given = {name: getattr(self, name) for name in shared} | {"mixture": self.drawn()}
        if self.epochs is not None:
            given["steps"] = max(1, ceil(self.epochs * pairs / self.batch_size))
        return Settings(**given | {"save_every": self.save_every or max(1, given["steps"] // 4)})


def _with_base(values: dict[str, Any]) -> dict[str, Any]:
    """Take the answers to reject from a model's base, where that is known.

    A model that refuses all that is harmful, without its neurons too, has none of its own.
    """
    known = EMBEDDED.get(str(values.get("model")))
    if known is None or any(
        values.get(name) is not None for name in ("pairs", "safety", "general", "rejected_from")
    ):
        return values
    return {**values, "rejected_from": known.base}


class RoundsRequest(AlignRequest):
    """Identify, align, identify again on the new model, as often as asked.

    ``mask`` is that of the first round, which is identified when left out.
    """

    rounds: Annotated[int, Field(ge=1, le=20)] = 3
    fresh_pairs: bool = Field(
        default=False, description="make or draw the pairs anew in each round, not once"
    )
    position: Literal["last", "mean", "max"] = "last"
    method: Method = "es+sas"
    tau_es: float = 2.0
    tau_sas: float = 2.0
    top: float | None = None
    top_es: float | None = OWN_ES
    top_sas: float | None = OWN_SAS
