"""Each peer's score against an independent computation, on a gated and a non-gated model."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from analysis.attacks.context import Contrast
from analysis.attacks.refusal_direction import find_direction
from analysis.scores import evaluate, find_score
from analysis.scores.neurostrike import probe_weights
from analysis.scores.resampling import bootstrap
from analysis.scores.table import score_moments
from tests.tiny import HARMFUL, HARMLESS, save_tiny
from toolkit.capture.activations import capture_activations
from toolkit.capture.answers import own_answers
from toolkit.capture.base import render
from toolkit.capture.change import rms_change
from toolkit.capture.gradients import token_means, tokens_after
from toolkit.capture.hooks import HooksBackend
from toolkit.capture.moments import Moments
from toolkit.capture.projections import largest_outputs
from toolkit.capture.weights import column_norms, project_columns, snip, wanda
from toolkit.errors import SafeNeuronError
from toolkit.forced import Forced
from toolkit.generate import prompt_ids
from toolkit.models.load import LoadedModel, load_model
from toolkit.progress import silent
from toolkit.prompt_sets import Prompt, PromptSet
from toolkit.refusal_odds import refusal_score, refusal_tokens

Array = npt.NDArray[np.float64]

# A gate with biases; none, with weights stored [in, out]; none, batch and tokens in one.
FAMILIES = ("llama", "gpt2", "opt")
DOWN = {
    "llama": "model.layers.{}.mlp.down_proj",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "opt": "model.decoder.layers.{}.fc2",
}
INTO = {
    "llama": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "gpt2": ("transformer.h.{}.mlp.c_fc",),
    "opt": ("model.decoder.layers.{}.fc1",),
}
ANSWERS = ("I'm sorry, I can't help", "Unfortunately that would hurt somebody", "paint a boat")


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = save_tiny(tmp_path_factory.mktemp(request.param), request.param)
    return load_model(str(folder), device="cpu")


def family(loaded: LoadedModel) -> str:
    return str(loaded.model.config.model_type)


@contextmanager
def inputs_of(loaded: LoadedModel, name: str) -> Iterator[list[torch.Tensor]]:
    """What a module is given, ``[tokens, size]`` each call, for one prompt at a time."""
    seen: list[torch.Tensor] = []
    module = loaded.model.get_submodule(name)

    def hook(_: object, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))

    handle = module.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()


def neurons(loaded: LoadedModel, layer: int, ids: list[int]) -> Array:
    """Activations of one unpadded sequence, ``[tokens, width]``."""
    with inputs_of(loaded, DOWN[family(loaded)].format(layer)) as seen, torch.no_grad():
        loaded.model(torch.tensor([ids]))
    values: Array = seen[0].double().numpy()
    return values


def matrix(loaded: LoadedModel, name: str) -> Array:
    """A projection's weight as ``[out, in]``."""
    weight: Array = loaded.model.get_submodule(name).weight.detach().double().numpy()
    return weight.T if family(loaded) == "gpt2" else weight


def forced(loaded: LoadedModel) -> list[Forced]:
    tokenizer = loaded.tokenizer
    return [
        Forced(prompt_ids(loaded, text), tokenizer(answer)["input_ids"])
        for text, answer in zip(HARMFUL, ANSWERS, strict=False)
    ]


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "norm"])
def test_activations_are_those_of_one_prompt_at_a_time(loaded: LoadedModel, pooling: Any) -> None:
    texts = [HARMFUL[0], "Hi", HARMFUL[3]]
    got = capture_activations(loaded, HooksBackend(loaded), texts, pooling, batch_size=2)
    for row, text in enumerate(texts):
        shown = render(loaded.tokenizer, text)
        for layer in range(3):
            values = neurons(loaded, layer, shown.ids)
            own = values[np.array(shown.own)]
            expected = {
                "last": values[-1],
                "mean": own.mean(axis=0),
                "max": own.max(axis=0),
                "norm": np.sqrt((own**2).sum(axis=0)),
            }[pooling]
            np.testing.assert_allclose(got[layer][row], expected, rtol=1e-4, atol=1e-5)


def test_t_and_rank_sum_are_scipy_s(loaded: LoadedModel) -> None:
    backend = HooksBackend(loaded)
    harmful, harmless = (
        capture_activations(loaded, backend, texts, "mean") for texts in (HARMFUL, HARMLESS[:15])
    )
    widths = loaded.layout.widths
    unsafe, safe = (np.concatenate(side, axis=1).astype(np.float64) for side in (harmful, harmless))
    moments = [[Moments.of(layer) for layer in side] for side in (harmful, harmless)]
    t = score_moments("t", *moments, widths)
    # A ReLU may leave a neuron at zero on every prompt.
    alive = (unsafe.std(axis=0) > 0) | (safe.std(axis=0) > 0)
    expected = stats.ttest_ind(unsafe[:, alive], safe[:, alive], axis=0, alternative="greater")
    np.testing.assert_allclose(t.values[alive], expected.statistic, rtol=1e-6)
    assert t.p is not None
    np.testing.assert_allclose(t.p[alive], expected.pvalue, rtol=1e-5)
    # Constant on both sides: nothing where the constants agree, without bound where they don't.
    gap = np.sign(unsafe[0, ~alive] - safe[0, ~alive])
    beyond = np.select([gap > 0, gap < 0], [np.inf, -np.inf], 0.0)
    np.testing.assert_array_equal(t.values[~alive], beyond)
    np.testing.assert_array_equal(t.p[~alive], (1 - gap) / 2)

    auc = find_score("auc")
    labels = [1] * len(unsafe) + [0] * len(safe)
    got = evaluate(auc.function, "auc", (harmful, harmless), widths)
    by_hand = [roc_auc_score(labels, column) for column in np.concatenate([unsafe, safe]).T]
    np.testing.assert_allclose(got, by_hand)
    assert auc.p_value is not None
    p = evaluate(auc.p_value, "auc", (harmful, harmless), widths)
    u = stats.mannwhitneyu(unsafe, safe, alternative="greater", method="asymptotic")
    np.testing.assert_allclose(p, u.pvalue, rtol=1e-9)


def test_rank_sum_with_ties_and_without_variance() -> None:
    harmful = np.array([[1.0, 0, 7], [2, 0, 7], [2, 1, 7]])
    harmless = np.array([[1.0, 0, 7], [1, 1, 7], [2, 0, 7], [0, 0, 7]])
    auc = find_score("auc")
    assert auc.p_value is not None
    # Pairs won plus half the ties of 12: 3.5 + ... counted by hand.
    won = [
        np.mean([(a > b) + (a == b) / 2 for a in harmful[:, j] for b in harmless[:, j]])
        for j in range(3)
    ]
    np.testing.assert_allclose(auc.function(harmful, harmless), won)
    assert won[2] == 0.5
    p = auc.p_value(harmful, harmless)
    expected = stats.mannwhitneyu(
        harmful[:, :2], harmless[:, :2], alternative="greater", method="asymptotic"
    )
    np.testing.assert_allclose(p[:2], expected.pvalue)
    assert p[2] == 1.0


def test_neurostrike_reads_the_largest_outputs(loaded: LoadedModel) -> None:
    into = INTO[family(loaded)]
    sides = [largest_outputs(loaded, texts[:6], 4) for texts in (HARMFUL, HARMLESS)]
    by_hand: list[dict[tuple[int, int], Array]] = [{}, {}]
    for side, texts in enumerate((HARMFUL, HARMLESS)):
        for layer in range(3):
            for which, name in enumerate(into):
                rows = []
                for text in texts[:6]:
                    shown = render(loaded.tokenizer, text)
                    module = name.format(layer)
                    with inputs_of(loaded, module) as seen, torch.no_grad():
                        loaded.model(torch.tensor([shown.ids]))
                    out = seen[0].double().numpy() @ matrix(loaded, module).T
                    out += loaded.model.get_submodule(module).bias.detach().numpy()
                    rows.append(out[np.array(shown.own)].max(axis=0))
                by_hand[side][layer, which] = np.array(rows)
    for side, found in enumerate(sides):
        assert found.keys() == by_hand[side].keys()
        for place, values in found.items():
            np.testing.assert_allclose(values, by_hand[side][place], rtol=1e-4, atol=1e-5)
    harmful, harmless = (
        [[side[place].numpy() for place in sorted(side) if place[0] == 1]] for side in sides
    )
    score = find_score("neurostrike").function(harmful[0], harmless[0])
    labels = torch.tensor([1.0] * 6 + [0.0] * 6)
    expected = []
    for unsafe, safe in zip(harmful[0], harmless[0], strict=True):
        w = probe_weights(torch.from_numpy(np.concatenate([unsafe, safe])), labels).numpy()
        z = np.abs(stats.zscore(w.astype(np.float64)))
        expected.append(np.where(w > 0, z, -z))
    np.testing.assert_allclose(score, np.max(expected, axis=0), rtol=1e-3, atol=1e-4)


def test_sntune_is_removing_one_neuron_at_a_time(loaded: LoadedModel) -> None:
    texts = HARMFUL[:4]
    norms = capture_activations(loaded, HooksBackend(loaded), texts, "norm", 3)
    columns = column_norms(loaded)
    for layer in range(3):
        got = find_score("sntune").function(norms[layer] * columns[layer])
        name = DOWN[family(loaded)].format(layer)
        module = loaded.model.get_submodule(name)
        for index in (0, 13, 40):
            importances = []
            for text in texts:
                shown = render(loaded.tokenizer, text)
                outputs = []
                for kept in (1.0, 0.0):
                    said: list[torch.Tensor] = []

                    def silence(
                        _: object, inputs: tuple[torch.Tensor, ...], kept: float = kept
                    ) -> tuple[torch.Tensor, ...]:
                        changed = inputs[0].clone()
                        changed[..., index] *= kept  # noqa: B023
                        return (changed,)

                    def listen(
                        _: object, __: object, out: torch.Tensor, said: list[torch.Tensor] = said
                    ) -> None:
                        said.append(out.reshape(-1, out.shape[-1]))

                    handles = [
                        module.register_forward_pre_hook(silence),
                        module.register_forward_hook(listen),
                    ]
                    with torch.no_grad():
                        loaded.model(torch.tensor([shown.ids]))
                    for handle in handles:
                        handle.remove()
                    outputs.append(said[0][torch.tensor(shown.own)])
                importances.append(float((outputs[0] - outputs[1]).norm()))
            assert got[index] == pytest.approx(min(importances), rel=1e-3, abs=1e-5)


def test_wanda_is_numpy_s(loaded: LoadedModel) -> None:
    rows = forced(loaded)
    got = wanda(loaded, rows, batch_size=2)
    for layer in range(3):
        expected = np.zeros(loaded.layout.widths[layer])
        for name in (DOWN[family(loaded)], *INTO[family(loaded)]):
            module = name.format(layer)
            tokens = []
            for row in rows:
                with inputs_of(loaded, module) as seen, torch.no_grad():
                    loaded.model(torch.tensor([row.prompt + row.answer]))
                tokens.append(seen[0][len(row.prompt) :].double().numpy())
            rms = np.sqrt((np.concatenate(tokens) ** 2).mean(axis=0))
            importance = np.abs(matrix(loaded, module)) * rms
            expected += importance.sum(axis=0 if name == DOWN[family(loaded)] else 1)
        score = find_score("wanda").function(got[layer])
        np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_snip_is_autograd_s(loaded: LoadedModel) -> None:
    rows = forced(loaded)
    got = snip(loaded, rows, batch_size=2)
    assert all(p.requires_grad and p.grad is None for p in loaded.model.parameters())
    names = [
        name.format(layer)
        for layer in range(3)
        for name in (DOWN[family(loaded)], *INTO[family(loaded)])
    ]
    weights = {name: loaded.model.get_submodule(name).weight for name in names}
    importance = {name: np.zeros(matrix(loaded, name).shape) for name in names}
    for row in rows:
        ids = torch.tensor([row.prompt + row.answer])
        logits = loaded.model(ids).logits[0, len(row.prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.answer))
        for name, gradient in zip(
            names, torch.autograd.grad(loss, list(weights.values())), strict=True
        ):
            product = (weights[name] * gradient).detach().abs().double().numpy()
            importance[name] += (product.T if family(loaded) == "gpt2" else product) / len(rows)
    for layer in range(3):
        down = importance[DOWN[family(loaded)].format(layer)].sum(axis=0)
        into = [importance[n.format(layer)].sum(axis=1) for n in INTO[family(loaded)]]
        score = find_score("snip").function(got[layer])
        np.testing.assert_allclose(score, down + sum(into), rtol=2e-3, atol=1e-7)


def test_the_gradient_score_is_autograd_s(loaded: LoadedModel) -> None:
    sides = {"harmful": HARMFUL[:5], "harmless": HARMLESS[:4]}
    tail = tokens_after(loaded, HARMFUL[0])
    tokens = refusal_tokens(loaded)
    means = {side: token_means(loaded, texts, tail, 3) for side, texts in sides.items()}
    for layer in range(3):
        module = loaded.model.get_submodule(DOWN[family(loaded)].format(layer))
        gradient, activation = {}, {}
        for side, texts in sides.items():
            slopes, values = [], []
            for text in texts:
                held: list[torch.Tensor] = []

                def hook(
                    _: object,
                    inputs: tuple[torch.Tensor, ...],
                    held: list[torch.Tensor] = held,
                ) -> None:
                    inputs[0].retain_grad()
                    held.append(inputs[0])

                handle = module.register_forward_pre_hook(hook)
                logits = loaded.model(torch.tensor([prompt_ids(loaded, text)])).logits[:, -1]
                handle.remove()
                (-refusal_score(logits, tokens)).sum().backward()
                assert held[0].grad is not None
                width = held[0].shape[-1]
                slopes.append(held[0].grad.reshape(-1, width)[-tail:].double().numpy())
                values.append(held[0].detach().reshape(-1, width)[-tail:].double().numpy())
                loaded.model.zero_grad(set_to_none=True)
            gradient[side], activation[side] = np.mean(slopes, axis=0), np.mean(values, axis=0)
        unsafe, safe = activation["harmful"], activation["harmless"]
        expected = (gradient["harmful"] + gradient["harmless"]) * (safe - unsafe)
        expected[np.abs(unsafe) <= np.abs(safe)] = -np.inf
        got = find_score("gradient").function(means["harmful"][layer], means["harmless"][layer])
        np.testing.assert_allclose(got, expected.max(axis=0), rtol=1e-2, atol=1e-7)


def test_the_direction_score_is_a_dot_product(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", float("inf"))
    prompts: dict[Any, PromptSet] = {
        side: PromptSet(side, tuple(map(Prompt, texts[:8])))
        for side, texts in (("harmful", HARMFUL), ("harmless", HARMLESS))
    }
    found = find_direction(Contrast(loaded, prompts, 4, silent))
    unit = found.direction.double().numpy()
    unit /= np.sqrt((unit**2).sum())
    for layer, got in enumerate(project_columns(loaded, 3 * found.direction)):
        down = matrix(loaded, DOWN[family(loaded)].format(layer))
        np.testing.assert_allclose(find_score("direction").function(got), unit @ down, rtol=1e-6)


def test_change_is_the_root_mean_square_difference(loaded: LoadedModel, tmp_path: Path) -> None:
    other = load_model(str(save_tiny(tmp_path / "other", family(loaded), seed=1)), device="cpu")
    rows = own_answers(loaded, HARMFUL[:3], 5, instead=lambda place, _: ANSWERS[place])
    got = rms_change(loaded, other, rows, batch_size=2)
    for layer in range(3):
        apart = []
        for row in rows:
            ids = row.prompt + row.answer
            both = [neurons(model, layer, ids) for model in (loaded, other)]
            apart.append((both[0] - both[1])[len(row.prompt) :])
        expected = np.sqrt((np.concatenate(apart) ** 2).mean(axis=0))
        np.testing.assert_allclose(find_score("change").function(got[layer]), expected, rtol=1e-4)


def test_models_that_can_t_be_compared(tmp_path: Path) -> None:
    llama, gpt2 = (load_model(str(save_tiny(tmp_path / n, n))) for n in ("llama", "gpt2"))
    with pytest.raises(SafeNeuronError, match="have different shapes"):
        rms_change(llama, gpt2, forced(llama))


@pytest.mark.parametrize("name", ["es", "auc"])
def test_bootstrap_draws_prompts(name: str) -> None:
    generator = np.random.default_rng(0)
    harmful = generator.normal([0.0, 2.0, -1.0], 1.0, size=(60, 3))
    harmless = generator.normal(0.0, 1.0, size=(50, 3))
    score = find_score(name)
    low, high = bootstrap(score, harmful, harmless, 400, seed=1)

    # SciPy's own percentile bootstrap, with its own draws.
    def statistic(a: Array, b: Array) -> Array:
        sides: list[Any] = [a, b]
        if name == "es":
            sides = [Moments.of(a), Moments.of(b)]
        values: Array = score.function(*sides)
        return values

    drawn = stats.bootstrap(
        (harmful, harmless),
        statistic,
        n_resamples=400,
        vectorized=False,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    width = high - low
    assert (np.abs(low - drawn.low) < 0.25 * width).all()
    assert (np.abs(high - drawn.high) < 0.25 * width).all()
    value = statistic(harmful, harmless)
    assert (low < value).all()
    assert (value < high).all()
    again = bootstrap(score, harmful, harmless, 400, seed=1)
    assert again[0].tolist() == low.tolist()


def test_bootstrap_where_there_is_none() -> None:
    with pytest.raises(SafeNeuronError, match="snip has no bootstrap"):
        bootstrap(find_score("snip"), np.zeros((2, 2)), np.zeros((2, 2)), 10)
