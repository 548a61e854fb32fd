"""Model sources: fingerprints, lineage, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tiny import save_tiny, tiny_model, tiny_tokenizer
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, PromptsInfo, require_fit
from toolkit.models.load import load_model
from toolkit.models.sources import CARD, resolve
from toolkit.neurons import NeuronSet


def test_a_fingerprint_names_the_weights_not_the_place(tiny_llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    other = save_tiny(tmp_path / "other", seed=1)
    first, second, third = (resolve(str(path)) for path in (tiny_llama, copy, other))
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert first.tokenizer == third.tokenizer


def test_a_change_of_weights_is_noticed_though_hashes_are_remembered(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    before = resolve(str(folder)).fingerprint
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert resolve(str(folder)).fingerprint != before


def test_masks_of_ancestors_fit(tmp_path: Path) -> None:
    parent = load_model(str(save_tiny(tmp_path / "parent")))
    child_path = save_tiny(tmp_path / "child", seed=1)
    side = PromptsInfo(name="p", sha256="0" * 64, count=2)
    mask = MaskFile.of(
        NeuronSet(parent.layout.widths, {0: [1]}),
        parent.info,
        MethodInfo(name="es"),
        MaskPrompts(harmful=side, harmless=side),
    )
    stranger = load_model(str(child_path))
    with pytest.raises(SafeNeuronError, match="another model"):
        require_fit(mask, stranger.info, stranger.folder.ancestors, force=False)
    require_fit(mask, stranger.info, stranger.folder.ancestors, force=True)
    card = {"ancestors": [parent.folder.fingerprint]}
    (child_path / CARD).write_text(json.dumps(card), "utf-8")
    child = load_model(str(child_path))
    require_fit(mask, child.info, child.folder.ancestors, force=False)


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match=r"config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", "utf-8")
    with pytest.raises(SafeNeuronError, match="weights"):
        resolve(str(tmp_path))
    note = tmp_path / "note.txt"
    note.write_text("hello", "utf-8")
    with pytest.raises(SafeNeuronError, match=r"not a \.gguf"):
        resolve(str(note))


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(SafeNeuronError, match="tokenizer"):
        load_model(str(tmp_path))


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF but not really")
    with pytest.raises(SafeNeuronError, match="GGUF"):
        resolve(str(path))
    assert not list((tmp_path / "home" / "models").glob("model-*/config.json"))


def test_weights_that_are_cut_short(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "m")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SafeNeuronError, match="cannot load"):
        load_model(str(folder))


def test_a_tokenizer_without_padding_gets_one(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    tiny_model().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    assert load_model(str(folder)).tokenizer.pad_token == "<|im_end|>"
