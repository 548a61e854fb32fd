"""The mask file: what is written is read back, and what is no mask is refused in a line."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from toolkit.errors import SafeNeuronError
from toolkit.masks import (
    MaskFile,
    MaskPrompts,
    MethodInfo,
    ModelInfo,
    PromptsInfo,
    json_schema,
    parse_mask,
    read_mask,
    require_fit,
)
from toolkit.neurons import NeuronSet

WIDTHS = [4, 0, 6]
MODEL = ModelInfo(
    source="a/model",
    fingerprint="a" * 64,
    architecture="LlamaForCausalLM",
    layers=3,
    neurons_per_layer=WIDTHS,
)
PROMPTS = MaskPrompts(
    harmful=PromptsInfo(name="bad", sha256="b" * 64, count=10),
    harmless=PromptsInfo(name="good", sha256="c" * 64, count=12),
)
NEURONS = NeuronSet(WIDTHS, {0: [1, 3], 2: [5]})


def make(neurons: NeuronSet = NEURONS) -> MaskFile:
    method = MethodInfo(name="es", parameters={"tau_es": 2.0, "position": "last"})
    return MaskFile.of(neurons, MODEL, method, PROMPTS, {"es": neurons})


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(make().to_json()), **fields})


def with_model(**fields: Any) -> str:
    data = json.loads(make().to_json())
    data["model"] |= fields
    return json.dumps(data)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "mask.json"
    make().write(path)
    mask = read_mask(path)
    assert mask == make().model_copy(update={"created": mask.created})
    assert mask.neuron_set() == NEURONS
    assert mask.part("es") == NEURONS
    assert mask.count == 3
    assert mask.fraction == 0.3
    assert json.loads(path.read_text())["schema"] == "safeneuron.neuron-mask/1"
    assert json.loads(path.read_text())["neurons"] == {"0": [1, 3], "2": [5]}


def test_an_empty_mask_is_a_mask() -> None:
    empty = NeuronSet.empty(WIDTHS)
    assert parse_mask(make(empty).to_json()).neuron_set() == empty


def test_hash_is_of_the_neurons_alone() -> None:
    other_model = MODEL.model_copy(update={"source": "elsewhere"})
    same = make().model_copy(update={"model": other_model})
    assert same.sha256 == make().sha256
    assert make(NeuronSet(WIDTHS, {0: [1, 3]})).sha256 != make().sha256


def test_the_shipped_json_schema_is_the_code_s() -> None:
    shipped = files("toolkit").joinpath("data/neuron-mask.schema.json").read_text("utf-8")
    assert json.loads(shipped) == json_schema()


def test_a_written_mask_validates_against_the_json_schema() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    jsonschema.Draft202012Validator.check_schema(json_schema())
    validator.validate(json.loads(make().to_json()))
    for broken in (changed(schema="x"), changed(count=-1), changed(extra=1), changed(neurons=[])):
        assert list(validator.iter_errors(json.loads(broken)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("[1, 2]", "is not a mask"),
        ("{}", "has schema 'None'"),
        (changed(schema="safeneuron.neuron-mask/2"), "has schema 'safeneuron.neuron-mask/2'"),
        (changed(extra=1), "extra"),
        (changed(site="attention"), "site"),
        (changed(created="yesterday"), "created"),
        (changed(neurons={"0": [1, 3], "2": [6]}), "neuron 6 is out of range"),
        (changed(neurons={"0": [-1, 3], "2": [5]}), "neuron -1 is out of range"),
        (changed(neurons={"0": [1, 3], "1": [0]}), "neuron 0 is out of range"),
        (changed(neurons={"0": [1, 3], "7": [5]}), "layer 7 is out of range"),
        (changed(neurons={"0": [1, 1], "2": [5]}), "more than once"),
        (changed(neurons={"0": [3, 1], "2": [5]}), "not sorted"),
        (changed(neurons={"0": [1, 3], "02": [5]}), "'02' is not a layer number"),
        (changed(neurons={"0": [1, 3], "-2": [5]}), "'-2' is not a layer number"),
        (changed(neurons={"0": [1, 3], "two": [5]}), "'two' is not a layer number"),
        (changed(neurons={"0": [1, 3], "2": ["five"]}), "neurons.2.0"),
        (changed(neurons={"0": [1, 3], "2": [5.5]}), "neurons.2.0"),
        (changed(count=4), "count is 4 but it names 3"),
        (changed(fraction=0.5), "fraction is 0.5"),
        (with_model(layers=4), "layers is 4 but neurons_per_layer has 3"),
        (with_model(fingerprint="short"), "model.fingerprint"),
        (with_model(neurons_per_layer=[4, -1, 6]), "neurons_per_layer"),
        (changed(neurons={"0": [1, 3], "2": [10**30]}), "neuron out of range"),
        (changed(neurons={"0": [1, 3], "9" * 5000: [0]}), "is not a layer number"),
        ('{"count": ' + "9" * 5000 + "}", "is not JSON"),
        (changed(neurons={"0": [1, 3], "2": ["5"]}), "neurons.2.0"),
        (changed(neurons={"0": [True, 3], "2": [5]}), "neurons.0.0"),
        (changed(fraction=float("nan")), "fraction"),
        (changed(parts={"es": {"0": [99]}}), "neuron 99 is out of range"),
        (changed(parts={"es": {"0": [0]}}), "parts.es names neurons that the mask has not"),
        (changed(parts={"es": {"first": [0]}}), "'first' is not a layer number"),
        (make().to_json().replace('"count": 3,', '"count": 3, "count": 3,'), "'count' stands"),
        (make().to_json().replace('"2": [', '"0": ['), "'0' stands twice"),
    ],
)
def test_refusals_are_one_line(text: str, message: str) -> None:
    with pytest.raises(SafeNeuronError, match=message) as caught:
        parse_mask(text, "m.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("m.json")


def test_unreadable_files(tmp_path: Path) -> None:
    path = tmp_path / "mask.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SafeNeuronError, match="not UTF-8"):
        read_mask(path)
    with pytest.raises(SafeNeuronError, match=r"cannot read the mask .*No such file"):
        read_mask(tmp_path / "absent.json")
    with pytest.raises(SafeNeuronError, match="is not a file"):
        read_mask(tmp_path)


def test_a_part_that_the_mask_does_not_name() -> None:
    with pytest.raises(SafeNeuronError, match="which neurons SAS chose"):
        make().part("sas")


def test_fit() -> None:
    mask = make()
    require_fit(mask, MODEL, [], force=False)
    child = MODEL.model_copy(update={"fingerprint": "d" * 64, "source": "child"})
    with pytest.raises(SafeNeuronError, match="made for another model"):
        require_fit(mask, child, [], force=False)
    require_fit(mask, child, ["e" * 64, MODEL.fingerprint], force=False)
    require_fit(mask, child, [], force=True)
    wider = child.model_copy(update={"neurons_per_layer": [4, 0, 7]})
    for force in (False, True):
        with pytest.raises(SafeNeuronError, match="identify on this model"):
            require_fit(mask, wider, [MODEL.fingerprint], force)
