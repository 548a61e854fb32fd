"""What a user asks for: the same validated request from the command line, a page or a job."""

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from analysis.select import Method, Selection
from toolkit.errors import SafeNeuronError

DEFAULT_HARMFUL = "advbench[1::2]"
DEFAULT_HARMLESS = "harmless-train[:260]"
# 100 prompts from all six categories: the file is sorted by them.
DEFAULT_ATTACKED = "strongreject[:300:3]"

AttackSetting = Literal[
    "ORI",
    "ES",
    "SAS",
    "FULL",
    "RANDOM",
    "RANDOM-ACTIVATION",
    "AGAIN",
    "SWEEP",
    "HOLD",
    "SINGLE",
    "NEUROSTRIKE",
    "TWINBREAK",
    "DIRECTION",
    "ADAPTIVE",
]
ALL_SETTINGS: tuple[AttackSetting, ...] = get_args(AttackSetting)
PAPER_SETTINGS = ALL_SETTINGS[:5]
# Of those, the ones that the mask alone decides; the rest measure the model first.
FROM_MASK = PAPER_SETTINGS
# Fields of the request that change what a setting finds.
PARAMETERS: dict[AttackSetting, tuple[str, ...]] = {
    "RANDOM": ("seeds",),
    "RANDOM-ACTIVATION": ("seeds",),
    "SWEEP": ("sweep_score", "sweep_shares"),
    "HOLD": ("hold_factors", "hold_at"),
    "ADAPTIVE": ("rounds",),
}
CAPABILITY_TASKS = ("arc_challenge", "gsm8k", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu")
# Three quarters of a per cent by SAS and a quarter by ES: at most 1 % of the neurons.
OWN_SAS, OWN_ES = 0.0075, 0.0025
# Prompts answered at a time. Most rows leave a batch early, and a step costs nearly as much
# with a few rows as with many.
ANSWERED = 256


class Request(BaseModel):
    """Base of all requests: closed and frozen."""

    # A number that is none has no JSON, and no meaning in any request.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


AnyRequest = TypeVar("AnyRequest", bound=Request)


class IdentifyRequest(Request):
    """Find the safety neurons of a model."""

    model: str
    harmful: str = DEFAULT_HARMFUL
    harmless: str = DEFAULT_HARMLESS
    leave_out: str | None = Field(
        default=None, description="a set whose prompts are left out, as those attacked later"
    )
    position: Literal["last", "mean", "max"] = "last"
    backend: Literal["torch", "transformerlens", "nnsight"] = "torch"
    method: str = Field(
        default="es+sas", description="scores combined with + (union), & (intersection), -"
    )
    tau_es: float = 2.0
    tau_sas: float = 2.0
    top: float | None = None
    top_es: float | None = None
    top_sas: float | None = None
    tau: dict[str, float] = Field(default_factory=dict, description="thresholds of other scores")
    share: dict[str, float] = Field(default_factory=dict, description="shares of other scores")
    fdr: float | None = Field(default=None, description="false-discovery rate to choose by")
    per_layer: bool = Field(default=False, description="shares and rates are of each layer")
    also: tuple[str, ...] = Field(default=(), description="further scores for the table")
    bootstrap: Annotated[int, Field(ge=0, le=100_000)] = Field(
        default=0, description="draws for intervals over prompts; 0 for none"
    )
    utility: str | None = Field(default=None, description="prompts of @utility and @contrast")
    base: str | None = Field(default=None, description="the model that change compares with")
    answer_tokens: Annotated[int, Field(ge=1)] = Field(
        default=32, description="length of the answers that wanda, snip and change read"
    )
    batch_size: Annotated[int, Field(ge=1)] = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"

    def selection(self) -> Selection:
        """How the neurons are chosen.

        Raises:
            SafeNeuronError: no such method, a share that is none, a threshold that is no
                number.
        """
        return Selection(**{field.name: getattr(self, field.name) for field in fields(Selection)})


Share = Annotated[float, Field(gt=0, lt=1)]


class AttackRequest(Request):
    """Remove neurons and count what is still refused."""

    model: str
    mask: Path | None = Field(default=None, description="identified first when left out")
    settings: tuple[AttackSetting, ...] | None = Field(
        default=None,
        min_length=1,
        description="the paper's five when left out; on a trained model AGAIN besides",
    )
    harmful: str = DEFAULT_ATTACKED
    harmless: str = "harmless-heldout[:60]"
    over_refusal: str | None = Field(
        default=None,
        description="a .csv whose safe prompts, which only sound harmful, are answered too",
    )
    find_harmful: str = Field(
        default=DEFAULT_HARMFUL, description="prompts that settings identify on"
    )
    find_harmless: str = DEFAULT_HARMLESS
    seeds: Annotated[int, Field(ge=1, le=100)] = 5
    sweep_score: Method = "es+sas"
    sweep_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
    )
    hold_factors: tuple[float, ...] = (1.0, 2.0)
    hold_at: tuple[float, ...] = ()
    rounds: Annotated[int, Field(ge=1, le=50)] = 5
    perplexity_limit: Annotated[float, Field(gt=1)] | None = Field(
        default=50.0, description="degenerate above it under the whole model; null for none"
    )
    harm_judge: str | None = Field(default=None, description="as 'safeneuron judges' lists them")
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    costs: bool = Field(
        default=False, description="measure divergence and perplexity on the harmless prompts"
    )
    cost_tokens: Annotated[int, Field(ge=1)] = Field(
        default=32, description="length of the answers that costs are measured on"
    )
    batch_size: Annotated[int, Field(ge=1)] = ANSWERED
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    keep_responses: bool = False
    force: bool = False

    @model_validator(mode="after")
    def _holds_something(self) -> "AttackRequest":
        if "HOLD" in (self.settings or ()) and not (self.hold_factors or self.hold_at):
            raise ValueError("hold has no constant; give hold-factors or hold-at")
        return self


class RedTeamRequest(Request):
    """Have a model write attack prompts, whole and pruned, and try them on a target."""

    model: str
    mask: Path | None = None
    target: str | None = Field(default=None, description="the model itself when left out")
    settings: Annotated[tuple[AttackSetting, ...], Field(min_length=1)] = ("ORI", "FULL", "RANDOM")
    topics: str = Field(
        default="strongreject", description="prompts whose categories are asked for"
    )
    draws: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=16, description="prompts a category and setting"
    )
    seed: int = 0
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    find_harmful: str = DEFAULT_HARMFUL
    find_harmless: str = DEFAULT_HARMLESS
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    batch_size: Annotated[int, Field(ge=1)] = ANSWERED
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    keep_responses: bool = False
    force: bool = False

    def attack(self) -> AttackRequest:
        """The attack whose settings the model writes under."""
        shared = set(AttackRequest.model_fields) & set(RedTeamRequest.model_fields)
        return AttackRequest(**{name: getattr(self, name) for name in shared})


class CapabilityRequest(Request):
    """Put lm-evaluation-harness's tasks to a model, whole and pruned."""

    model: str
    mask: Path | None = None
    settings: Annotated[tuple[AttackSetting, ...], Field(min_length=1)] = ("ORI", "FULL", "RANDOM")
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] = CAPABILITY_TASKS
    limit: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="questions of each task; all when left out"
    )
    shots: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="examples before a question; the task's own when left out"
    )
    chat_template: bool = False
    include_path: Path | None = Field(default=None, description="a folder of task files")
    seeds: Annotated[int, Field(ge=1, le=100)] = 1
    find_harmful: str = DEFAULT_HARMFUL
    find_harmless: str = DEFAULT_HARMLESS
    batch_size: Annotated[int, Field(ge=1)] = 16
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    force: bool = False

    def attack(self) -> AttackRequest:
        """The attack whose settings the tasks are put under."""
        shared = set(AttackRequest.model_fields) & set(CapabilityRequest.model_fields)
        return AttackRequest(**{name: getattr(self, name) for name in shared})


def parse_request(kind: type[AnyRequest], values: object) -> AnyRequest:
    """Validate a request, with errors of one line.

    Raises:
        SafeNeuronError: a value is missing, unknown or out of range.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        told = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:  # of several fields, which it names
            raise SafeNeuronError(told) from error
        place = ".".join(str(part) for part in first["loc"])
        given = str(first["input"])[:60]
        raise SafeNeuronError(f"{place.replace('_', '-')} {given!r}: {told}") from error
