"""The mask file: a neuron set as JSON, with where it came from.

One schema, versioned and validated on reading. Reading refuses, in one line, what is
not such a file or was made for another model.
"""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, read_text, sha256_text, write_atomically
from toolkit.neurons import NeuronSet

SCHEMA: Final = "safeneuron.neuron-mask/1"
SITE: Final = "mlp.down_proj.input"
# Every one of two million neurons takes some 25 MB; a file far above that is no mask.
LARGEST_MASK = 64 << 20  # bytes
LAYER = re.compile(r"0|[1-9][0-9]{0,8}")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of everything we persist: closed, so that a misspelt field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class ModelInfo(Record):
    """Which model a result is about."""

    source: str = Field(description="as the user named it")
    fingerprint: Sha256 = Field(description="of the configuration and the weights")
    architecture: str
    layers: int = Field(ge=1)
    neurons_per_layer: list[Annotated[int, Field(ge=0)]]

    @property
    def neurons(self) -> int:
        """All neurons of the model."""
        return sum(self.neurons_per_layer)


class PromptsInfo(Record):
    """Which prompts a result was made from."""

    name: str
    sha256: Sha256
    count: int = Field(ge=0)


class MaskPrompts(Record):
    """The two sides of the contrast."""

    harmful: PromptsInfo
    harmless: PromptsInfo


class MethodInfo(Record):
    """How the neurons were chosen: a name and every parameter."""

    name: str
    parameters: dict[str, JsonValue] = Field(default_factory=dict)


class ToolInfo(Record):
    """What wrote the file."""

    name: str = "safeneuron"
    version: str = Field(default_factory=lambda: version("safeneuron"))


def now() -> datetime:
    """The time in UTC, to the second, as every result carries it."""
    return datetime.now(UTC).replace(microsecond=0)


class MaskFile(Record):
    """The mask file, schema ``safeneuron.neuron-mask/1``."""

    schema_: Literal["safeneuron.neuron-mask/1"] = Field(default=SCHEMA, alias="schema")
    model: ModelInfo
    site: Literal["mlp.down_proj.input"] = SITE
    method: MethodInfo
    prompts: MaskPrompts
    count: int = Field(ge=0)
    fraction: float = Field(ge=0, le=1)
    neurons: dict[str, list[int]] = Field(
        description="layer -> neuron indices: sorted, unique, within range"
    )
    parts: dict[str, dict[str, list[int]]] = Field(
        default_factory=dict,
        description="score -> the neurons of the mask that it chose, where several did",
    )
    created: datetime = Field(default_factory=now)
    tool: ToolInfo = Field(default_factory=ToolInfo)

    @classmethod
    def of(
        cls,
        neurons: NeuronSet,
        model: ModelInfo,
        method: MethodInfo,
        prompts: MaskPrompts,
        parts: Mapping[str, NeuronSet] | None = None,
    ) -> "MaskFile":
        """Describe ``neurons`` of ``model``, and which score chose which of them."""
        return cls(
            model=model,
            method=method,
            prompts=prompts,
            count=len(neurons),
            fraction=neurons.fraction,
            neurons=_as_json(neurons),
            parts={name: _as_json(part) for name, part in (parts or {}).items()},
        )

    def neuron_set(self) -> NeuronSet:
        """The neurons as a set with its algebra."""
        return self._set_of(self.neurons)

    def part(self, name: str) -> NeuronSet:
        """The neurons that one score chose.

        Raises:
            SafeNeuronError: the mask does not say.
        """
        if name not in self.parts:
            raise SafeNeuronError(
                f"the mask does not say which neurons {name.upper()} chose; leave that setting "
                "out, or make the mask with 'safeneuron identify --method es+sas'"
            )
        return self._set_of(self.parts[name])

    def _set_of(self, neurons: dict[str, list[int]]) -> NeuronSet:
        return NeuronSet(
            self.model.neurons_per_layer, {int(layer): ids for layer, ids in neurons.items()}
        )

    @property
    def sha256(self) -> str:
        """Names the neurons and the model's shape, whatever else the file says."""
        return sha256_text(canonical_json([self.model.neurons_per_layer, self.neurons]))

    def to_json(self) -> str:
        """The file's text."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_atomically(path, self.to_json())


def _as_json(neurons: NeuronSet) -> dict[str, list[int]]:
    return {str(layer): ids.tolist() for layer, ids in neurons.layers().items()}


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the mask file, as shipped in ``toolkit/data``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA,
        **MaskFile.model_json_schema(by_alias=True),
    }


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise SafeNeuronError(f"the key {repeated!r} stands twice")
    return dict(pairs)


def parse_mask(text: str, where: str = "mask") -> MaskFile:
    """Read a mask from its JSON text.

    Args:
        text: the file's contents.
        where: how errors name the file.

    Raises:
        SafeNeuronError: it is not JSON, has another schema, or names neurons that are
            repeated, unsorted or out of range.
    """
    if len(text) > LARGEST_MASK:
        raise SafeNeuronError(f"{where} is larger than {LARGEST_MASK >> 20} MB, so it is no mask")
    try:
        data = json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # numbers too long are a plain ValueError
        raise SafeNeuronError(f"{where} is not JSON: {error}") from error
    except SafeNeuronError as error:
        raise SafeNeuronError(f"{where}: {error}") from error
    if not isinstance(data, dict):
        raise SafeNeuronError(f"{where} is not a mask: expected an object with a schema")
    if data.get("schema") != SCHEMA:
        raise SafeNeuronError(
            f"{where} has schema {str(data.get('schema'))[:60]!r}, not {SCHEMA!r}; "
            "make a mask with 'safeneuron identify'"
        )
    try:
        # Strict, so that true is no 1 and "5" no 5, as the JSON Schema has it.
        mask = MaskFile.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SafeNeuronError(f"{where}: {place}: {first['msg']}") from error
    if mask.model.layers != len(mask.model.neurons_per_layer):
        raise SafeNeuronError(
            f"{where}: model.layers is {mask.model.layers} but neurons_per_layer has "
            f"{len(mask.model.neurons_per_layer)} entries"
        )
    for listed in (mask.neurons, *mask.parts.values()):
        for layer, indices in listed.items():
            if not LAYER.fullmatch(layer):
                raise SafeNeuronError(f"{where}: neurons: {layer[:20]!r} is not a layer number")
            if indices != sorted(indices):
                raise SafeNeuronError(f"{where}: neurons of layer {layer} are not sorted")
    try:
        neurons = mask.neuron_set()
        strays = {name: mask.part(name) - neurons for name in mask.parts}
    except SafeNeuronError as error:
        raise SafeNeuronError(f"{where}: {error}") from error
    for name, stray in strays.items():
        if len(stray):
            raise SafeNeuronError(f"{where}: parts.{name} names neurons that the mask has not")
    if mask.count != len(neurons):
        raise SafeNeuronError(f"{where}: count is {mask.count} but it names {len(neurons)}")
    if abs(mask.fraction - neurons.fraction) > 1e-6:
        raise SafeNeuronError(
            f"{where}: fraction is {mask.fraction} but the neurons are {neurons.fraction:.8f}"
        )
    return mask


def read_mask(path: Path) -> MaskFile:
    """Read and validate a mask file.

    Raises:
        SafeNeuronError: the file is missing, unreadable or not a valid mask.
    """
    try:
        text = read_text(path, LARGEST_MASK)
    except UnicodeDecodeError as error:
        raise SafeNeuronError(f"{path} is not UTF-8 text, so it is not a mask file") from error
    except OSError as error:
        raise SafeNeuronError(
            f"cannot read the mask {path}: {error.strerror}; make one with 'safeneuron identify'"
        ) from error
    return parse_mask(text, str(path))


def require_fit(mask: MaskFile, model: ModelInfo, ancestors: list[str], force: bool) -> None:
    """Refuse a mask that was made for another model.

    Args:
        mask: the mask about to be used.
        model: the model it is about to be used on.
        ancestors: fingerprints of the models this one was trained from; masks of those
            still name its neurons, so they are let through.
        force: use a mask of another model of the same shape all the same.

    Raises:
        SafeNeuronError: the shapes differ, or the fingerprints do and ``force`` is off.
    """
    if mask.model.neurons_per_layer != model.neurons_per_layer:
        raise SafeNeuronError(
            f"the mask is for a model of {mask.model.layers} layers and {mask.model.neurons} "
            f"neurons ({mask.model.source}), but {model.source} has {model.layers} layers and "
            f"{model.neurons}; identify on this model"
        )
    if not force and mask.model.fingerprint not in {model.fingerprint, *ancestors}:
        raise SafeNeuronError(
            f"the mask was made for another model ({mask.model.source}, fingerprint "
            f"{mask.model.fingerprint[:12]}), not {model.source} ({model.fingerprint[:12]}); "
            "identify on this model, or force it"
        )
