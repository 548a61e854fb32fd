"""From prompts to moments: rendering, padding, pooling, and three libraries that agree."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.tiny import FAMILIES, HARMFUL, save_tiny, tiny_tokenizer
from toolkit.capture.backends import BACKENDS, make_backend
from toolkit.capture.base import (
    POSITIONS,
    Batch,
    LayerSink,
    Position,
    batches,
    capture_moments,
    pool,
    render,
)
from toolkit.capture.parity import TOLERANCE, check_layout, compare_backends
from toolkit.errors import SafeNeuronError
from toolkit.models.layout import LayerSite, Layout
from toolkit.models.load import LoadedModel, load_model

# Of different lengths, so that most rows of a batch are padded.
TEXTS = [*HARMFUL[:6], "hi", "a much longer question, about " + "cars and boats, " * 5 + "and more"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("families")


@pytest.fixture
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu")


def of_family(folders: Path, family: str) -> LoadedModel:
    folder = folders / family
    if not folder.exists():
        save_tiny(folder, family)
    return load_model(str(folder), device="cpu")


def only_batch(loaded: LoadedModel, texts: list[str]) -> Batch:
    found = list(batches([render(loaded.tokenizer, text) for text in texts], 99, 0))
    assert len(found) == 1
    return found[0]


def test_own_tokens_spell_the_message() -> None:
    tokenizer = tiny_tokenizer()
    for text in (*TEXTS, "user", "assistant", "assistant\nuser", "a", "im_start"):
        rendered = render(tokenizer, text)
        own = [i for i, mine in zip(rendered.ids, rendered.own, strict=True) if mine]
        # A token may span the message's end and the template's newline, never more.
        assert tokenizer.decode(own).strip() == text
        assert rendered.ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
        assert tokenizer.decode(rendered.ids).endswith("<|im_start|>assistant\n")
        assert not rendered.own[-1]
        assert not rendered.own[0]


def test_special_tokens_inside_a_message_are_not_its_own() -> None:
    tokenizer = tiny_tokenizer()
    rendered = render(tokenizer, "one <|im_end|> two")
    own = {i for i, mine in zip(rendered.ids, rendered.own, strict=True) if mine}
    assert not own & set(tokenizer.all_special_ids)
    assert own


def test_without_a_template_the_text_is_all() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    rendered = render(tokenizer, "Explain how")
    assert tokenizer.decode(rendered.ids) == "Explain how"
    assert all(rendered.own)


def test_templates_that_hide_the_message() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] | upper }}"
    with pytest.raises(SafeNeuronError, match="rewrites the prompt 'Explain'"):
        render(tokenizer, "Explain")
    tokenizer.chat_template = "{{ messages[0]['content'] | trim }}"
    assert any(render(tokenizer, "  Explain ").own)
    with pytest.raises(SafeNeuronError, match="no tokens of its own"):
        render(tiny_tokenizer(), "<|im_end|>")


def test_batches_are_sorted_padded_right_and_whole() -> None:
    tokenizer = tiny_tokenizer()
    rendered = [render(tokenizer, text) for text in TEXTS]
    found = list(batches(rendered, 3, 0))
    assert [len(batch.rows) for batch in found] == [3, 3, 2]
    assert sorted(row for batch in found for row in batch.rows) == list(range(len(TEXTS)))
    lengths = [int(n) for batch in found for n in batch.attention.sum(dim=1)]
    assert lengths == sorted(lengths)
    for batch in found:
        for place, row in enumerate(batch.rows):
            size = len(rendered[row].ids)
            assert batch.ids[place].tolist()[:size] == rendered[row].ids
            assert batch.own[place].tolist()[:size] == rendered[row].own
            assert batch.attention[place].tolist() == [1] * size + [0] * (batch.ids.shape[1] - size)
            assert not batch.own[place, size:].any()


@pytest.mark.parametrize("scattered", [False, True])
def test_pool_equals_a_plain_loop(scattered: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(4, 9, 5, generator=generator)
    attention = torch.zeros(4, 9, dtype=torch.long)
    own = torch.zeros(4, 9, dtype=torch.bool)
    for row, (low, high, end) in enumerate([(1, 3, 5), (0, 9, 9), (4, 5, 6), (2, 8, 8)]):
        attention[row, :end] = 1
        own[row, low:high] = True
    if scattered:
        own[1, 4] = own[3, 5] = False
    batch = Batch(torch.zeros(4, 9, dtype=torch.long), attention, own, [0, 1, 2, 3])
    # Negative everywhere on own tokens of one row: padding must not win the maximum.
    activations[2] = -activations[2].abs() - 1
    activations[attention == 0] = 1e6
    for row in range(4):
        tokens = [activations[row, t].tolist() for t in range(9) if own[row, t]]
        last = [t for t in range(9) if attention[row, t]][-1]
        columns = list(zip(*tokens, strict=True))
        expected: dict[Position, list[float]] = {
            "last": activations[row, last].tolist(),
            "mean": [sum(column) / len(column) for column in columns],
            "max": [max(column) for column in columns],
        }
        for position in POSITIONS:
            pooled = pool(activations, batch, position)
            assert pooled.shape == (4, 5)
            assert pooled[row].tolist() == pytest.approx(expected[position], rel=1e-5)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_batch_size_change_nothing(
    loaded: LoadedModel, backend: str, position: Position
) -> None:
    runner = make_backend(backend, loaded)
    alone = capture_moments(loaded, runner, TEXTS, position, batch_size=1)
    together = capture_moments(loaded, runner, TEXTS, position, batch_size=len(TEXTS))
    for one, all_ in zip(alone, together, strict=True):
        assert one.count == all_.count == len(TEXTS)
        np.testing.assert_allclose(one.mean, all_.mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(one.m2, all_.m2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("position", POSITIONS)
def test_moments_equal_numpy_on_all_prompts(loaded: LoadedModel, position: Position) -> None:
    rows: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    heard: list[int] = []
    for text in TEXTS:
        # Each prompt by itself through the whole model, without any of our batching.
        rendered = render(loaded.tokenizer, text)
        handles = [
            loaded.layout.down(loaded.model, layer).register_forward_pre_hook(
                lambda _, inputs, kept=kept: kept.append(inputs[0][0])
            )
            for layer, kept in rows.items()
        ]
        with torch.no_grad():
            loaded.model(torch.tensor([rendered.ids]))
        for handle in handles:
            handle.remove()
        for kept in rows.values():
            own = kept[-1][torch.tensor(rendered.own)]
            pooled = {"last": kept[-1][-1], "mean": own.mean(dim=0), "max": own.amax(dim=0)}
            kept[-1] = pooled[position]
    backend = make_backend("torch", loaded)
    moments = capture_moments(loaded, backend, TEXTS, position, 3, heard.append)
    assert heard == [3, 3, 2]
    for layer, kept in rows.items():
        x = torch.stack(kept).double().numpy()
        np.testing.assert_allclose(moments[layer].mean, x.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moments[layer].variance, x.var(axis=0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_backends_agree_on_every_activation(folders: Path, family: str) -> None:
    loaded = of_family(folders, family)
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    results = compare_backends(loaded, TEXTS, BACKENDS, batch_size=3)
    assert [result.backend for result in results] == [*BACKENDS, "layout"]
    for result in results:
        assert result.reason is None
        assert result.agrees
        assert result.difference is not None
        assert result.difference <= TOLERANCE
        assert result.neurons == result.expected == sum(loaded.layout.widths)
        assert result.seconds > 0
    # The model handed in is as it was, by name and by value.
    after = loaded.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("position", POSITIONS)
def test_backends_agree_on_moments(folders: Path, family: str, position: Position) -> None:
    loaded = of_family(folders, family)
    reference, *others = (
        capture_moments(loaded, make_backend(name, loaded), TEXTS, position, 3) for name in BACKENDS
    )
    for other in others:
        for a, b in zip(reference, other, strict=True):
            np.testing.assert_allclose(b.mean, a.mean, rtol=0, atol=1e-5 * abs(a.mean).max())
            np.testing.assert_allclose(b.m2, a.m2, rtol=0, atol=1e-5 * abs(a.m2).max())


class Fake:
    """A backend that hands over what it is told to."""

    name = "fake"

    def __init__(self, layers: list[Tensor]) -> None:
        self.layers = layers

    def run(self, batch: Batch, sink: LayerSink) -> None:
        for layer, value in enumerate(self.layers):
            sink(layer, value.expand(*batch.ids.shape, -1))


def fakes() -> Iterator[tuple[list[Tensor], str]]:
    good = torch.ones(64)
    bad = good.clone()
    yield [good, torch.ones(63), good], "layer 1 gave .*63.*, expected .*64"
    yield [good, good], "gave 2 of 3 layers"
    for value in (float("nan"), float("inf"), float("-inf")):
        bad = good.clone()
        bad[7] = value
        yield [good, bad, good], "layer 1 are not finite"


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize(("layers", "message"), list(fakes()))
def test_wrong_activations_are_refused(
    loaded: LoadedModel, layers: list[Tensor], message: str, position: Position
) -> None:
    with pytest.raises(SafeNeuronError, match=message):
        capture_moments(loaded, Fake(layers), TEXTS, position, 3)


def test_one_prompt_is_too_few(loaded: LoadedModel) -> None:
    for texts in ([], ["hi"]):
        with pytest.raises(SafeNeuronError, match="too few for a variance"):
            capture_moments(loaded, Fake([]), texts, "last")


@pytest.mark.parametrize("name", BACKENDS)
def test_an_error_in_the_sink_comes_out_as_it_is(loaded: LoadedModel, name: str) -> None:
    def refuse(layer: int, activations: Tensor) -> None:
        raise SafeNeuronError("no room")

    backend = make_backend(name, loaded)
    batch = only_batch(loaded, TEXTS)
    with pytest.raises(SafeNeuronError, match=r"^no room$"):
        backend.run(batch, refuse)
    seen: list[int] = []
    backend.run(batch, lambda layer, _: seen.append(layer))  # no hook is left behind
    assert seen == [0, 1, 2]


def test_an_unknown_backend(loaded: LoadedModel) -> None:
    with pytest.raises(SafeNeuronError, match="no backend 'jax'; choose one of torch, tra"):
        make_backend("jax", loaded)


def test_a_library_that_is_not_there(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(SafeNeuronError, match=r"nnsight can't be imported .* --backend torch"):
        make_backend("nnsight", loaded)


def test_doctor_reports_what_is_not_supported(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Helium is a Llama by another name, which TransformerLens has not got.
    monkeypatch.setitem(FAMILIES, "helium", FAMILIES["mistral"])
    loaded = of_family(folders, "helium")
    torch_, bridge, nnsight, layout = compare_backends(loaded, TEXTS, BACKENDS)
    assert torch_.agrees
    assert nnsight.agrees
    assert layout.agrees
    assert not bridge.agrees
    assert bridge.difference is None
    assert bridge.reason is not None
    assert "does not support HeliumForCausalLM" in bridge.reason
    assert bridge.reason.endswith("use --backend torch")
    assert "\n" not in bridge.reason


def test_doctor_sees_other_weights(folders: Path) -> None:
    loaded = of_family(folders, "llama")
    with torch.no_grad():
        loaded.model.get_submodule("model.layers.1.mlp.up_proj").weight[5] *= 1.01
    result = compare_backends(loaded, TEXTS, ["nnsight"])[0]
    assert not result.agrees
    assert result.difference is not None
    assert result.difference > TOLERANCE
    assert result.reason is not None
    assert "differs by" in result.reason


def test_doctor_sees_a_wrong_layout(loaded: LoadedModel) -> None:
    assert check_layout(loaded, TEXTS).agrees
    first, *rest = loaded.layout.sites
    # The columns of the next layer's projection in place of this one's.
    wrong = LayerSite(first.down, first.width, rest[0].slices)
    loaded.layout = Layout("Llama", loaded.layout.blocks, (wrong, *rest))
    result = check_layout(loaded, TEXTS)
    assert not result.agrees
    assert result.reason is not None
    assert "misreads the architecture" in result.reason


def test_doctor_needs_prompts(loaded: LoadedModel) -> None:
    with pytest.raises(SafeNeuronError, match="at least one"):
        compare_backends(loaded, [], ["torch"])
