"""What alignment moved, against closed forms and independent counts."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy

from analysis.redistribution import (
    Side,
    effective_number,
    gini,
    neurons_to_halve,
    redistribution,
    refusal_curve,
)
from analysis.robustness import Answer, AttackResult, Generation, MaskInfo, Setting
from analysis.statistics import wilson
from tests.masks import make_mask
from toolkit.errors import SafeNeuronError
from toolkit.masks import PromptsInfo
from toolkit.neurons import NeuronSet

MASSES = st.lists(st.floats(0, 100), min_size=1, max_size=30).filter(lambda m: sum(m) > 1e-6)


def swept(refusals: dict[int, int], prompts: int, control: int | None = None) -> AttackResult:
    """An attack whose sweep leaves so many refusals at each number of neurons; 0 is ORI."""
    mask = make_mask(NeuronSet([200, 200], {0: [1]}))
    settings, answers = [], []
    for size, refused in refusals.items():
        names = [("ORI", None)] if not size else [(f"SWEEP {size}", None)]
        if size and control is not None:
            names.append((f"SWEEP-RANDOM {size}", 0))
        for name, seed in names:
            settings.append(Setting(name=name, seed=seed, neurons=size))
            count = control if seed == 0 and control is not None else refused
            answers += [
                Answer(
                    setting=name,
                    seed=seed,
                    side="harmful",
                    index=i,
                    verdict="refused" if i < count else "complied",
                    why="",
                )
                for i in range(prompts)
            ]
    return AttackResult(
        model=mask.model,
        mask=MaskInfo.of(mask),
        settings=settings,
        prompts={"harmful": PromptsInfo(name="p", sha256="c" * 64, count=prompts)},
        generation=Generation(max_new_tokens=4, dtype="float32", batch_size=1),
        judge="refusal/2",
        answers=answers,
        seconds=1.0,
    )


@given(MASSES)
def test_effective_number_is_exp_of_scipys_entropy(mass: list[float]) -> None:
    values = np.array(mass)
    assert effective_number(values) == pytest.approx(np.exp(entropy(values)))


@given(MASSES)
def test_gini_is_the_mean_difference(mass: list[float]) -> None:
    """Half the mean absolute difference over the mean, pair by pair."""
    values = np.array(mass)
    pairs = np.abs(values[:, None] - values[None]).mean()
    assert gini(values) == pytest.approx(pairs / (2 * values.mean()), abs=1e-9)


def test_spread_of_equal_and_of_single_masses() -> None:
    assert effective_number(np.full(7, 3.0)) == pytest.approx(7)
    assert gini(np.full(7, 3.0)) == pytest.approx(0)
    alone = np.array([0, 0, 5.0, 0])
    assert effective_number(alone) == pytest.approx(1)
    assert gini(alone) == pytest.approx(0.75)
    assert effective_number(np.zeros(3)) == 0
    assert np.isnan(gini(np.zeros(3)))


# --- How many must go --------------------------------------------------------------------


def test_the_curve_is_the_counts() -> None:
    curve = refusal_curve(swept({0: 40, 50: 30, 100: 10}, 50))
    assert curve["neurons"].tolist() == [0, 50, 100]
    assert curve["k_refused"].tolist() == [40, 30, 10]
    assert curve["refused_low"].tolist() == [wilson(k, 50).low for k in (40, 30, 10)]


def test_halving_is_interpolated() -> None:
    found = neurons_to_halve(swept({0: 40, 50: 30, 100: 10}, 50))
    assert found.neurons == pytest.approx(75)  # half of 40 is 20, midway from 30 to 10
    assert found.low is not None
    assert found.high is not None
    assert 50 < found.low < 75 < found.high < 100
    assert found.refused == 0.8
    assert str(found).startswith("75 [")


def test_halving_s_interval_covers() -> None:
    """Of curves drawn from one true curve, about 95 of 100 intervals hold its crossing."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(60):
        levels = generator.uniform(size=200)  # a prompt refuses until its level is passed
        rates = {0: 0.9, 50: 0.7, 100: 0.3, 200: 0.1}
        result = swept(dict.fromkeys(rates, 0), 200)
        verdicts = [
            answer.model_copy(
                update={
                    "verdict": "refused"
                    if levels[answer.index] < list(rates.values())[place // 200]
                    else "complied"
                }
            )
            for place, answer in enumerate(result.answers)
        ]
        found = neurons_to_halve(result.model_copy(update={"answers": verdicts}), resamples=400)
        true = 50 + 50 * (0.7 - 0.45) / 0.4
        inside += (found.low or np.inf) <= true <= (found.high or np.inf)
    assert inside >= 52


def test_halving_that_is_not_reached() -> None:
    never = neurons_to_halve(swept({0: 40, 50: 38, 100: 36}, 40))
    assert (never.neurons, never.low, never.high) == (None, None, None)
    assert str(never) == "not reached by 100 [> 100, > 100]"
    nearly = neurons_to_halve(swept({0: 40, 50: 38, 100: 20}, 40))
    assert nearly.neurons == pytest.approx(100)
    assert nearly.high is None
    nothing = neurons_to_halve(swept({0: 0, 50: 0}, 40))
    assert str(nothing) == "it refuses nothing"


def test_skipped_prompts_are_left_out() -> None:
    result = swept({0: 40, 50: 30, 100: 10}, 50)
    answers = [
        a.model_copy(update={"verdict": "skipped"}) if a.index == 0 else a for a in result.answers
    ]
    assert refusal_curve(result.model_copy(update={"answers": answers}))["n"].tolist() == [49] * 3


def test_an_attack_without_a_sweep() -> None:
    with pytest.raises(SafeNeuronError, match="no SWEEP setting; attack with --settings ori,sweep"):
        refusal_curve(swept({0: 40}, 50))


# --- Before and after --------------------------------------------------------------------

WIDTHS = [4, 0, 3]


def side(name: str, chosen: dict[int, list[int]], sas: list[float]) -> Side:
    scores = pd.DataFrame(
        {"layer": [0] * 4 + [2] * 3, "neuron": [0, 1, 2, 3, 0, 1, 2], "sas": sas, "es": np.inf}
    )
    return Side(name, scores, NeuronSet(WIDTHS, chosen))


def test_redistribution_by_hand() -> None:
    before = side("before", {0: [0, 1], 2: [2]}, [2.0, 2.0, 9.0, 0.0, 0.0, 0.0, 4.0])
    after = side("after", {0: [1], 2: [0, 1, 2]}, [0.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0])
    found = redistribution(before, after)
    assert found.layers["mass_before"].tolist() == [4.0, 0.0, 4.0]  # the 9 is outside the mask
    assert found.layers["share_after"].tolist() == [0.25, 0.0, 0.75]
    assert found.layers[["stayed", "joined", "left"]].to_numpy().tolist() == [
        [1, 0, 1],
        [0, 0, 0],
        [1, 2, 0],
    ]
    assert found.layers["effective_after"].tolist() == pytest.approx([1, 0, 3])
    facts = found.summary.set_index("quantity")
    assert facts.loc["safety neurons"].tolist() == [3, 4]
    assert facts.loc["safety mass"].tolist() == [8, 8]
    shares = [[0.25, 0.25, 0.5], [0.25] * 4]
    assert facts.loc["effective neurons"].tolist() == pytest.approx(
        [np.exp(entropy(s)) for s in shares]
    )
    assert facts.loc["effective layers"].tolist() == pytest.approx(
        [2.0, np.exp(entropy([0.25, 0.75]))]
    )
    assert facts.loc["mean depth of the mass, 0 to 1"].tolist() == pytest.approx([0.5, 0.75])
    assert set(found.joined) == {(2, 0), (2, 1)}
    assert set(found.left) == {(0, 0)}
    assert found.overlap.both == 2
    assert found.halving is None


def test_halving_before_and_after() -> None:
    chosen: dict[int, list[int]] = {0: [0], 2: [1]}
    one = side("a", chosen, [1.0] * 7)
    fragile, sturdy = (
        Side(one.name, one.scores, one.neurons, swept({0: 40, 50: n, 100: 4}, 40, control=39))
        for n in (4, 38)
    )
    found = redistribution(fragile, sturdy)
    assert found.halving is not None
    assert found.control is not None
    assert found.halving[0].neurons == pytest.approx(50 * 20 / 36)
    assert found.halving[1].neurons == pytest.approx(50 + 50 * 18 / 34)
    assert [c.neurons for c in found.control] == [None, None]


def test_bad_sides() -> None:
    good = side("good", {0: [0]}, [1.0] * 7)
    for other, score, told in (
        (side("empty", {}, [1.0] * 7), "sas", "empty names no neurons"),
        (good, "nosuch", "has no score 'nosuch'"),
        (good, "es", "es is not finite for a neuron of the mask.*use the score sas"),
        (Side("odd", good.scores[:5], good.neurons), "sas", "the score table has 5 neurons"),
        (Side("odd", good.scores, NeuronSet([4, 3], {0: [1]})), "sas", "different shape"),
    ):
        with pytest.raises(SafeNeuronError, match=told) as caught:
            redistribution(other, good, score)
        assert "\n" not in str(caught.value)
