"""Exports, each tested by using the exported thing: on a tiny model, or by reading it back."""

import importlib.util
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from analysis.exports.images import write_figure
from analysis.exports.masks import FORMATS, export_mask, neurons_frame, read_safetensors
from analysis.figures import layer_fraction_figure
from analysis.tables import markdown_table, write_table
from tests.masks import make_mask
from tests.tiny import save_tiny
from toolkit.errors import SafeNeuronError
from toolkit.intervene import Intervention, intervene
from toolkit.masks import MaskFile, read_mask
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet

CHOSEN = {0: [1, 2, 40, 63], 2: [5, 6, 30]}
TOKENS = torch.arange(3, 20)[None]


@pytest.fixture(scope="module", params=["llama", "gpt2", "opt"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return load_model(str(folder), device="cpu")


@pytest.fixture
def mask(loaded: LoadedModel) -> MaskFile:
    neurons = NeuronSet(loaded.layout.widths, CHOSEN)
    return make_mask(neurons, {"es": NeuronSet(loaded.layout.widths, {0: [1]})}, loaded.info)


def ablated(loaded: LoadedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the whole model and of the one without the neurons, by our own hooks."""
    neurons = NeuronSet(loaded.layout.widths, CHOSEN)
    with torch.no_grad():
        whole = loaded.model(TOKENS).logits
        with intervene(loaded.model, loaded.layout, Intervention(neurons)):
            return whole, loaded.model(TOKENS).logits


def imported(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_hook_list_ablates_in_transformerlens(
    loaded: LoadedModel, mask: MaskFile, tmp_path: Path
) -> None:
    from toolkit.capture.transformerlens import TransformerLensBackend

    path = tmp_path / "mask_hooks.py"
    export_mask(mask, "transformerlens", path)
    module = imported(path)
    assert module.ABOUT["model"]["fingerprint"] == loaded.info.fingerprint
    hooks = module.fwd_hooks()
    assert [name for name, _ in hooks] == [f"blocks.{i}.mlp.out.hook_in" for i in (0, 2)]
    bridge: Any = TransformerLensBackend(loaded)._bridge
    with torch.no_grad():
        plain = bridge(TOKENS)
        with bridge.hooks(fwd_hooks=hooks):
            without = bridge(TOKENS)
    whole, expected = ablated(loaded)
    torch.testing.assert_close(plain, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(without, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(plain, without, atol=1e-3)


@pytest.mark.filterwarnings("ignore:.*was never reached:UserWarning")
def test_the_edit_ablates_in_nnsight(loaded: LoadedModel, mask: MaskFile, tmp_path: Path) -> None:
    from nnsight import NNsight

    path = tmp_path / f"mask_edit_{loaded.layout.architecture}.py"
    export_mask(mask, "nnsight", path)
    module = imported(path)
    model: Any = NNsight(load_model(loaded.folder, device="cpu").model)
    assert list(module.sites(model).values()) == [site.down for site in loaded.layout.sites]
    edited = module.edit(model)
    with torch.no_grad():
        with edited.trace(TOKENS):
            without = edited.output.logits.save()
        with model.trace(TOKENS):
            plain = model.output.logits.save()
    whole, expected = ablated(loaded)
    torch.testing.assert_close(plain, whole)
    torch.testing.assert_close(without, expected)
    module.WIDTHS.append(64)
    with pytest.raises(ValueError, match="the mask is for 4 layers, the model has 3"):
        module.edit(model)


@pytest.mark.filterwarnings("ignore:.*was never reached:UserWarning")
def test_the_edit_holds_at_every_step_of_generation(tiny_llama: Path, tmp_path: Path) -> None:
    from nnsight import TransformersModel

    loaded = load_model(str(tiny_llama), device="cpu")
    neurons = NeuronSet(loaded.layout.widths, {0: range(40), 2: range(50)})
    export_mask(make_mask(neurons, model=loaded.info), "nnsight", tmp_path / "mask_generate.py")
    asked = {"attention_mask": torch.ones_like(TOKENS), "max_new_tokens": 6, "do_sample": False}
    with torch.no_grad(), intervene(loaded.model, loaded.layout, Intervention(neurons)):
        expected = loaded.model.generate(TOKENS, **asked)
    plain = loaded.model.generate(TOKENS, **asked)
    model: Any = TransformersModel(loaded.model, tokenizer=loaded.tokenizer, task="text-generation")
    edited = imported(tmp_path / "mask_generate.py").edit(model)
    with torch.no_grad(), edited.generate(TOKENS, max_new_tokens=6, do_sample=False) as tracer:
        told = tracer.result.save()
    assert told.tolist() == expected.tolist() != plain.tolist()


def test_the_boolean_tensors_ablate_by_hand(
    loaded: LoadedModel, mask: MaskFile, tmp_path: Path
) -> None:
    path = tmp_path / "mask.safetensors"
    export_mask(mask, "safetensors", path)
    assert read_safetensors(path) == mask.neuron_set()
    tensors = load_file(path)
    handles = []
    for layer, site in enumerate(loaded.layout.sites):
        keep = ~tensors[f"layers.{layer}"]
        assert keep.dtype == torch.bool

        def hook(_: Any, inputs: tuple[Any, ...], keep: torch.Tensor = keep) -> tuple[Any, ...]:
            return (inputs[0] * keep,)

        module = loaded.model.get_submodule(site.down)
        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        without = loaded.model(TOKENS).logits
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(without, ablated(loaded)[1])


def test_the_json_ablates_again(loaded: LoadedModel, mask: MaskFile, tmp_path: Path) -> None:
    export_mask(mask, "json", tmp_path / "mask.json")
    again = read_mask(tmp_path / "mask.json")
    assert again == mask
    with torch.no_grad(), intervene(loaded.model, loaded.layout, Intervention(again.neuron_set())):
        torch.testing.assert_close(loaded.model(TOKENS).logits, ablated(loaded)[1])


def test_tables_of_neurons(mask: MaskFile, tmp_path: Path) -> None:
    expected = neurons_frame(mask)
    assert expected[["layer", "neuron"]].to_numpy().tolist() == [list(n) for n in mask.neuron_set()]
    assert expected["es"].tolist() == [True, *[False] * 6]
    for form in ("csv", "parquet", "markdown", "html"):
        export_mask(mask, form, tmp_path / f"mask{FORMATS[form][0]}")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "mask.csv"), expected)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "mask.parquet"), expected)
    lines = (tmp_path / "mask.md").read_text("utf-8").splitlines()
    assert lines[0] == "| layer | neuron | es |"
    assert lines[2:5] == ["| 0 | 1 | True |", "| 0 | 2 | False |", "| 0 | 40 | False |"]
    page = (tmp_path / "mask.html").read_text("utf-8")
    assert "7 of" in page
    assert "1 2 40 63" in page
    assert page.count("<tr>") == 3


@pytest.mark.parametrize(
    ("form", "name", "told"),
    [
        ("nosuch", "m.json", "no format 'nosuch'; choose one of json, safetensors"),
        ("nnsight", "m.json", r"name a file of the format nnsight \.py"),
        ("json", "file/m.json", "is not a folder you may write to"),
    ],
)
def test_what_cannot_be_exported(form: str, name: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SafeNeuronError, match=told) as caught:
        export_mask(make_mask(NeuronSet([4], {0: [1]})), form, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_safetensors_that_are_no_mask(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"layers.0": np.ones(3)}, tmp_path / "other.safetensors")
    save_file({"weight": np.ones(3)}, tmp_path / "weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    for name in ("other", "weights", "broken", "missing"):
        with pytest.raises(SafeNeuronError, match=f"{name}.safetensors"):
            read_safetensors(tmp_path / f"{name}.safetensors")


def test_tables_by_the_end_of_their_name(tmp_path: Path) -> None:
    table = pd.DataFrame({"name": ["a|b", "<c>"], "value": [0.123456, None], "n": [1, 2]})
    for ending in ("csv", "parquet", "md", "html"):
        write_table(table, tmp_path / f"t.{ending}")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    assert markdown_table(table).splitlines()[2:] == ["| a\\|b | 0.1235 | 1 |", "| <c> | - | 2 |"]
    page = (tmp_path / "t.html").read_text("utf-8")
    assert "&lt;c&gt;" in page
    assert "<td>0.1235</td>" in page
    with pytest.raises(SafeNeuronError, match=r"name a table \.csv"):
        write_table(table, tmp_path / "t.xlsx")


def test_figures_without_a_browser(tmp_path: Path) -> None:
    figure = layer_fraction_figure(NeuronSet([10, 20], {0: [1], 1: [2, 3]}))
    for ending in ("html", "json"):
        write_figure(figure, tmp_path / f"f.{ending}")
    assert json.loads((tmp_path / "f.json").read_text())["data"][0]["type"] == "bar"
    assert "<html>" in (tmp_path / "f.html").read_text("utf-8")
    with pytest.raises(SafeNeuronError, match=r"name a figure \.png"):
        write_figure(figure, tmp_path / "f.gif")


def test_no_browser_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\nmore lines")

    figure = layer_fraction_figure(NeuronSet([10], {0: [1]}))
    monkeypatch.setattr(type(figure), "to_image", refuse)
    with pytest.raises(SafeNeuronError, match=r"requires Google Chrome.*or write \.html") as caught:
        write_figure(figure, tmp_path / "f.png")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
def test_figures_as_pictures(tmp_path: Path) -> None:
    assert any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
    figure = layer_fraction_figure(NeuronSet([10, 20], {0: [1], 1: [2, 3]}))
    for ending in ("png", "svg"):
        write_figure(figure, tmp_path / f"f.{ending}")
    picture = (tmp_path / "f.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = (int.from_bytes(picture[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (1800, 600)
    root = ET.fromstring((tmp_path / "f.svg").read_text("utf-8"))
    assert root.tag.endswith("svg")
    assert "selected neurons, %" in "".join(root.itertext())
