"""What training passes are without: the right neurons, drawn the same however a run goes."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax

from toolkit.intervene import intervene
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.rows import Plan
from toolkit.train.ablation import DrawnAblation, FixedAblation
from toolkit.train.finding import Candidate, FindAgain, Found
from toolkit.train.recipes import Mixture
from toolkit.train.trainers import guard_losses

NO_PROBE = Mixture(whole=0.15, rounds=0.3, share=0.4, hold=0.15, probe=0.0)
IDS = torch.arange(3, 15).repeat(4, 1) + torch.arange(4)[:, None]


@pytest.fixture
def loaded(tiny_llama: Path) -> LoadedModel:
    return load_model(str(tiny_llama), device="cpu")


@pytest.fixture
def found(loaded: LoadedModel) -> Found:
    widths = loaded.layout.widths
    rounds = (NeuronSet(widths, {0: [1, 2]}), NeuronSet(widths, {1: [3]}))
    head = NeuronSet(widths, {0: range(20), 1: range(20)})
    return Found(rounds, head, (Candidate(0, 9, 0.5), Candidate(2, 4, -1.5)))


def drawn(loaded: LoadedModel, found: Found, **update: Any) -> DrawnAblation:
    frozen = NeuronSet(loaded.layout.widths, {2: [7]})
    values: dict[str, Any] = {"mixture": NO_PROBE, "seed": 0} | update
    ablation = DrawnAblation(loaded, frozen, **values)
    ablation.update(found, 0)
    return ablation


def neurons_of(plan: Plan) -> set[tuple[int, int]]:
    return {neuron for step in plan.interventions for neuron in step.neurons}


def test_each_pair_is_run_as_its_draw_says(loaded: LoadedModel, found: Found) -> None:
    ablation = drawn(loaded, found, seed=3)
    ablation.begin_step(5)
    with ablation.around(2, 2), torch.no_grad():
        together = loaded.model(input_ids=IDS).logits
    for row in range(4):
        plan = ablation.draw(5, row % 2)
        with ExitStack() as stack, torch.no_grad():
            for step in plan.interventions:
                stack.enter_context(intervene(loaded.model, loaded.layout, step))
            alone = loaded.model(input_ids=IDS[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        whole = loaded.model(input_ids=IDS).logits
    assert not torch.equal(whole, together)


def test_draws_do_not_depend_on_how_the_batch_is_cut(loaded: LoadedModel, found: Found) -> None:
    def rows(parts: list[int], process: tuple[int, int] = (0, 1)) -> list[set[tuple[int, int]]]:
        ablation = drawn(loaded, found, process=process)
        ablation.begin_step(2)
        seen: list[set[tuple[int, int]]] = []
        draw = ablation.draw
        ablation.draw = lambda step, row: (seen.append(neurons_of(draw(step, row))), Plan())[1]  # type: ignore[method-assign]
        for part in parts:
            with ablation.around(part, 2):
                pass
        return seen

    whole = rows([8])
    assert len({frozenset(row) for row in whole}) > 3
    assert rows([4, 4]) == rows([1] * 8) == whole
    # Two processes draw what one would have drawn for the pairs that each is dealt.
    assert rows([4], (0, 2)) == whole[:4]
    assert rows([2, 2], (1, 2)) == whole[2:4] + whole[6:]


def test_the_mixture_is_what_it_says(loaded: LoadedModel, found: Found) -> None:
    ablation = drawn(loaded, found)
    kinds: Counter[str] = Counter()
    parts = []
    frozen = {(2, 7)}
    by_rounds = [frozen | set(found.rounds[0])]
    by_rounds.append(by_rounds[0] | set(found.rounds[1]))
    for row in range(3000):
        plan = ablation.draw(1, row)
        neurons = neurons_of(plan)
        if plan.empty:
            kinds["whole"] += 1
        elif plan.interventions[0].action == "hold":
            kinds["hold"] += 1
            assert 1 <= len(neurons) <= 2
            means = {(0, 9): 0.5, (2, 4): -1.5}
            for step in plan.interventions:
                factor = step.value / means[next(iter(step.neurons))]
                assert min(abs(factor - f) for f in NO_PROBE.factors) < 1e-9
        elif neurons in by_rounds:
            kinds[f"rounds {by_rounds.index(neurons) + 1}"] += 1
        else:
            kinds["share"] += 1
            assert frozen <= neurons <= frozen | set(found.head)
            parts.append((len(neurons) - 1) / len(found.head))
    own = NO_PROBE
    shares = {"whole": own.whole, "hold": own.hold, "share": own.share, "rounds 1": own.rounds / 2}
    for kind, share in shares.items():
        assert abs(kinds[kind] / 3000 - share) < 4 * np.sqrt(0.25 / 3000), kind
    # A part uniform on [1/4, 1] has mean 5/8.
    assert abs(np.mean(parts) - 0.625) < 0.04


def test_what_a_probe_finds_is_drawn_where_asked(loaded: LoadedModel, found: Found) -> None:
    probed = NeuronSet(loaded.layout.widths, {1: [30, 31]})
    asked = drawn(loaded, replace(found, probed=probed), mixture=replace(NO_PROBE, probe=0.25))
    without = drawn(loaded, found)
    both = {(2, 7), (1, 30), (1, 31)}
    count = sum(neurons_of(asked.draw(1, row)) == both for row in range(2000))
    # 0.25 beside weights that sum to one.
    assert abs(count / 2000 - 0.2) < 4 * np.sqrt(0.25 / 2000)
    assert all(neurons_of(without.draw(1, row)) != both for row in range(200))
    # Nobody looked: then it is as a round.
    unasked = drawn(loaded, found, mixture=Mixture(probe=1.0, whole=0, rounds=0, share=0, hold=0))
    assert neurons_of(unasked.draw(1, 0)) >= {(2, 7)}


def test_before_the_first_search_there_is_the_mask_alone(loaded: LoadedModel) -> None:
    frozen = NeuronSet(loaded.layout.widths, {2: [7, 8]})
    ablation = DrawnAblation(loaded, frozen, Mixture(), 0)
    seen = {frozenset(neurons_of(ablation.draw(0, row))) for row in range(200)}
    assert seen == {frozenset(), frozenset({(2, 7), (2, 8)})}


def test_no_gradient_reaches_what_is_removed(loaded: LoadedModel) -> None:
    neurons = NeuronSet(loaded.layout.widths, {1: [4]})
    ablation = FixedAblation(loaded, NeuronSet.empty(loaded.layout.widths))
    ablation.update(Found((neurons,), neurons), 0)
    with ablation.around(4, 1):
        loaded.model(input_ids=IDS, labels=IDS).loss.backward()
    up = loaded.model.get_parameter("model.layers.1.mlp.up_proj.weight").grad
    assert not up[4].any()
    assert up[5].any()


def test_found_reads_back(found: Found) -> None:
    again = Found.from_json(found.to_json())
    assert again == found


def test_it_looks_every_so_many_steps_and_remembers(found: Found, tmp_path: Path) -> None:
    heard: list[tuple[int, Found]] = []
    looked = []

    def finder() -> Found:
        looked.append(1)
        return found

    def search(resumed: Path | None) -> FindAgain:
        heard.clear()
        looked.clear()
        return FindAgain(finder, 3, lambda what, step: heard.append((step, what)), resumed)

    def begin(callback: FindAgain, *steps: int) -> list[int]:
        for step in steps:
            callback.on_step_begin(None, SimpleNamespace(global_step=step), None)
        return [step for step, _ in heard]

    callback = search(None)
    assert begin(callback, *range(8)) == [0, 3, 6]
    checkpoint = tmp_path / "checkpoint-8"
    checkpoint.mkdir()
    state = SimpleNamespace(global_step=8, is_world_process_zero=True)
    callback.on_save(SimpleNamespace(output_dir=str(tmp_path)), state, None)
    # Between two looks a resumed run goes on with what was found; at one it looks again.
    assert begin(search(checkpoint), 8, 9) == [8, 9]
    assert heard[0][1] == found
    assert len(looked) == 1
    assert begin(search(checkpoint), 9, 10) == [9]
    assert len(looked) == 1


def test_guard_losses_by_hand() -> None:
    generator = np.random.default_rng(0)
    whole, pruned = generator.normal(size=(2, 5, 7))
    tokens = generator.integers(0, 7, 5)
    w = torch.tensor(whole, requires_grad=True)
    p = torch.tensor(pruned, requires_grad=True)
    parts = guard_losses(w, p, torch.tensor(tokens))
    log_w, log_p = log_softmax(whole, axis=1), log_softmax(pruned, axis=1)
    rows = np.arange(5)
    assert parts["whole"].item() == pytest.approx(-log_w[rows, tokens].sum())
    assert parts["pruned"].item() == pytest.approx(-log_p[rows, tokens].sum())
    assert parts["divergence"].item() == pytest.approx((np.exp(log_p) * (log_p - log_w)).sum())
    # The divergence moves the pruned pass alone.
    parts["divergence"].backward()
    assert w.grad is None
    assert p.grad is not None
    assert p.grad.abs().sum() > 0


def test_an_intervention_of_nothing_is_none(loaded: LoadedModel) -> None:
    empty = FixedAblation(loaded, NeuronSet.empty(loaded.layout.widths))
    with torch.no_grad():
        plain = loaded.model(input_ids=IDS).logits
        with empty.around(4, 1):
            same = loaded.model(input_ids=IDS).logits
    assert torch.equal(plain, same)
