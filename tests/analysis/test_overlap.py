"""Overlap against SciPy, closed forms and 2,000 simulated random masks."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom, kstest, spearmanr

from analysis.overlap.chance import P_FLOOR, Null, hypergeometric, intersection, total
from analysis.overlap.composition import CLASSES, composition
from analysis.overlap.kway import expected_ratio, kway_table
from analysis.overlap.operands import Operand, as_sets, read_operand, read_scores
from analysis.overlap.pairs import overlap_by_layer, overlap_table, pair_overlap
from analysis.overlap.ranks import rank_correlation
from tests.masks import mask_file
from toolkit.errors import SafeNeuronError
from toolkit.neurons import NeuronSet

WIDTHS = [120, 0, 60, 200]
DRAWS = 2_000


def draw(generator: np.random.Generator, widths: list[int], sizes: list[int]) -> NeuronSet:
    """A random set of given sizes, uniform over all of them."""
    return NeuronSet(
        widths,
        {
            layer: generator.choice(n, size, replace=False)
            for layer, (n, size) in enumerate(zip(widths, sizes, strict=True))
            if size
        },
    )


def near(simulated: list[float], expected: float, errors: float = 3.0) -> None:
    """The mean of simulations is within some standard errors of what was computed."""
    values = np.array(simulated)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - expected) <= errors * error + 1e-12, (values.mean(), expected, error)


# --- The null ----------------------------------------------------------------------------


@given(st.integers(1, 80), st.data())
def test_hypergeometric_is_scipys(width: int, data: st.DataObject) -> None:
    a, b = data.draw(st.integers(0, width)), data.draw(st.integers(0, width))
    null = hypergeometric(width, a, b)
    counts = np.arange(-1, width + 2)
    mine = np.zeros(len(counts))
    mine[null.low + 1 : null.low + 1 + len(null.pmf)] = null.pmf
    assert mine == pytest.approx(hypergeom.pmf(counts, width, a, b), rel=1e-9, abs=1e-39)


def test_tails_of_wide_layers_are_scipys() -> None:
    null = hypergeometric(28_672, 287, 287)
    for observed in (0, 3, 10, 25):
        assert null.at_least(observed) == pytest.approx(
            hypergeom.sf(observed - 1, 28_672, 287, 287), rel=1e-9
        )
        assert null.at_most(observed) == pytest.approx(
            hypergeom.cdf(observed, 28_672, 287, 287), rel=1e-9
        )
    assert null.at_least(287) == P_FLOOR


def test_the_sum_over_layers_is_the_convolution() -> None:
    parts = [(30, 5, 8), (50, 10, 10), (20, 0, 3), (7, 7, 4)]
    null = total([hypergeometric(*part) for part in parts])
    # Every combination of the layers' counts, one by one.
    exact = np.zeros(41)
    pmfs = [hypergeom.pmf(np.arange(11), *part) for part in parts]
    for counts in np.ndindex(11, 11, 11, 11):
        exact[sum(counts)] += np.prod([pmf[c] for pmf, c in zip(pmfs, counts, strict=True)])
    mine = np.zeros(41)
    mine[null.low : null.low + len(null.pmf)] = null.pmf
    assert mine == pytest.approx(exact, rel=1e-9, abs=1e-39)
    assert null.mean == pytest.approx(sum(a * b / n for n, a, b in parts))


def test_eighty_wide_layers_with_large_sets_stay_quick() -> None:
    null = total([hypergeometric(28_672, 2_867, 2_867)] * 80)
    mean = 80 * 2_867**2 / 28_672
    variance = 80 * hypergeom.var(28_672, 2_867, 2_867)
    assert null.mean == pytest.approx(mean)
    assert float(null.pmf @ (null.counts - mean) ** 2) == pytest.approx(variance)


def test_intersection_of_many_agrees_with_simulation() -> None:
    generator = np.random.default_rng(3)
    sizes = [30, 45, 50]
    null = intersection(60, sizes)
    found = []
    for _ in range(DRAWS):
        sets = [set(generator.choice(60, size, replace=False).tolist()) for size in sizes]
        found.append(float(len(set.intersection(*sets))))
    near(found, null.mean)
    assert null.mean == pytest.approx(60 * 0.5 * 0.75 * 50 / 60)
    assert np.mean(np.array(found) >= 21) == pytest.approx(null.at_least(21), abs=0.03)


# --- Pairs -------------------------------------------------------------------------------


def test_chance_agrees_with_simulated_masks() -> None:
    """Must hold 2: expected values within the standard error of 2,000 random masks."""
    generator = np.random.default_rng(0)
    first = draw(generator, WIDTHS, [12, 0, 20, 30])
    second = draw(generator, WIDTHS, [24, 0, 9, 50])
    computed, layers = pair_overlap(first, second)
    found: dict[str, list[float]] = {"both": [], "jaccard": [], "overlap": []}
    by_layer: list[list[float]] = [[], [], []]
    more = 0
    for _ in range(DRAWS):
        other = draw(generator, WIDTHS, second.counts().tolist())
        both = len(first & other)
        found["both"].append(both)
        found["jaccard"].append(both / len(first | other))
        found["overlap"].append(both / min(len(first), len(other)))
        more += both >= computed.both
        for place, layer in enumerate((0, 2, 3)):
            mine, theirs = set(first.layer(layer)), set(other.layer(layer))
            by_layer[place].append(len(mine & theirs) / len(mine | theirs))
    for name, values in found.items():
        near(values, getattr(computed, f"{name}_chance"))
    for place, layer in enumerate((0, 2, 3)):
        near(by_layer[place], layers[layer].jaccard_chance)
    p = computed.p_more
    assert abs(more / DRAWS - p) <= 3 * np.sqrt(p * (1 - p) / DRAWS)
    inside = [computed.jaccard_low <= value <= computed.jaccard_high for value in found["jaccard"]]
    assert np.mean(inside) >= 0.95 - 0.015


def test_identical_is_one_and_disjoint_is_zero() -> None:
    chosen = NeuronSet(WIDTHS, {0: [1, 5], 2: [7], 3: [0, 100]})
    whole, layers = pair_overlap(chosen, chosen)
    assert (whole.jaccard, whole.overlap, whole.both) == (1.0, 1.0, 5)
    assert [row.jaccard for row in layers if row.first] == [1.0] * 3
    assert whole.p_fewer == 1.0
    others = NeuronSet(WIDTHS, {0: [2, 6], 2: [8], 3: [1, 101]})
    apart, _ = pair_overlap(chosen, others)
    assert (apart.jaccard, apart.overlap, apart.both, apart.p_more) == (0.0, 0.0, 0, 1.0)
    # A layer without an MLP, and one where neither chose anything, have no ratio.
    assert np.isnan(layers[1].jaccard)
    assert np.isnan(layers[1].overlap)


def test_p_values_are_uniform_under_the_null() -> None:
    """Must hold 2: Kolmogorov-Smirnov over seeded random masks, large enough to be smooth."""
    generator = np.random.default_rng(11)
    widths, sizes = [2_048] * 8, [1_024] * 8
    first = draw(generator, widths, sizes)
    p = [pair_overlap(first, draw(generator, widths, sizes))[0].p_more for _ in range(400)]
    assert kstest(p, "uniform").pvalue > 0.01
    # Sets that do share neurons give no such thing.
    planted = first.layers()[0][:200].tolist()
    shifted = []
    for _ in range(50):
        other = draw(generator, widths, sizes).layers()
        kept = [i for i in other[0].tolist() if i not in set(planted)][:824]
        mixed = NeuronSet(widths, {**other, 0: planted + kept})
        shifted.append(pair_overlap(first, mixed)[0].p_more)
    assert kstest(shifted, "uniform").pvalue < 1e-6


def test_small_sets_have_exact_p_values() -> None:
    """Where counts are few, p takes few values, and each is as likely as it says."""
    generator = np.random.default_rng(5)
    widths, sizes = [40, 30], [8, 6]
    first = draw(generator, widths, sizes)
    p = np.array(
        [pair_overlap(first, draw(generator, widths, sizes))[0].p_more for _ in range(DRAWS)]
    )
    for level in np.unique(p):
        assert abs(np.mean(p <= level + 1e-12) - level) <= 3 * np.sqrt(level / DRAWS) + 1e-12
    # Spread over the gaps between those values, they are uniform.
    null = total([hypergeometric(n, s, s) for n, s in zip(widths, sizes, strict=True)])
    below = dict(zip(*_ladder(null), strict=True))
    spread = [value - generator.uniform() * (value - below[round(value, 12)]) for value in p]
    assert kstest(spread, "uniform").pvalue > 0.01


def _ladder(null: Null) -> tuple[list[float], list[float]]:
    """Each attainable p-value, and the next smaller one."""
    tails = [null.at_least(int(count)) for count in null.counts]
    return [round(t, 12) for t in tails], [*tails[1:], 0.0]


def test_table_of_all_pairs() -> None:
    generator = np.random.default_rng(1)
    sets = {name: draw(generator, WIDTHS, [10, 0, 10, 10]) for name in "abc"}
    table = overlap_table(sets, by_layer=True)
    assert len(table) == 3 * (1 + len(WIDTHS))
    whole = table[table["layer"].isna()]
    assert list(zip(whole["a"], whole["b"], strict=True)) == list(combinations("abc", 2))
    assert whole["both"].tolist() == [len(sets[a] & sets[b]) for a, b in combinations("abc", 2)]
    rows = overlap_by_layer(sets["a"], sets["b"])
    assert rows["both"].sum() == whole["both"].iloc[0]


@pytest.mark.parametrize(
    ("second", "told"),
    [
        (NeuronSet([120, 60], {0: [1]}), "different shape"),
        (NeuronSet.empty(WIDTHS), "names no neurons"),
    ],
)
def test_what_cannot_be_compared(second: NeuronSet, told: str) -> None:
    first = NeuronSet(WIDTHS, {0: [1]})
    for attempt in (
        lambda: pair_overlap(first, second),
        lambda: kway_table({"a": first, "b": second}),
        lambda: composition({"a": first, "b": second}),
    ):
        with pytest.raises(SafeNeuronError, match=told) as caught:
            attempt()
        assert "\n" not in str(caught.value)


# --- Scores ------------------------------------------------------------------------------


def test_rank_correlation_is_scipys() -> None:
    generator = np.random.default_rng(0)
    first = generator.normal(size=380)
    second = np.round(0.3 * first + generator.normal(size=380), 1)  # ties
    first[5] = np.inf
    whole, layers = rank_correlation(first, second, WIDTHS)
    assert whole.rho == pytest.approx(spearmanr(first, second).statistic)
    cut = slice(120, 180)
    expected = spearmanr(first[cut], second[cut])
    assert layers[2].rho == pytest.approx(expected.statistic)
    assert layers[2].p == pytest.approx(expected.pvalue, abs=0.02)
    assert (layers[2].rho_chance, layers[2].rho_deviation) == pytest.approx((0, 1 / 59**0.5))


def test_rank_correlation_s_chance_is_that_of_permutations_within_layers() -> None:
    generator = np.random.default_rng(0)
    level = np.repeat([0.0, 5.0, 2.0], [120, 60, 200])  # layers that differ under both scores
    first, second = (level + generator.normal(size=380) for _ in range(2))
    whole, _ = rank_correlation(first, second, WIDTHS)
    cuts = [120, 180]
    found = []
    for _ in range(DRAWS):
        dealt = np.concatenate([generator.permutation(part) for part in np.split(second, cuts)])
        found.append(float(spearmanr(first, dealt).statistic))
    assert whole.rho_chance > 0.5
    near(found, whole.rho_chance)
    assert np.std(found) == pytest.approx(whole.rho_deviation, rel=0.06)
    extreme = np.abs(np.array(found) - whole.rho_chance) >= abs(whole.rho - whole.rho_chance)
    assert extreme.mean() == pytest.approx(whole.p, abs=0.04)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.ones(380), "is the same for every neuron"),
        (np.where(np.arange(380) == 200, np.nan, np.arange(380.0)), r"\(NaN\), the first in lay"),
        (np.arange(379.0), "scores 379 neurons, not the 380"),
    ],
)
def test_scores_that_rank_nothing(values: np.ndarray, told: str) -> None:
    with pytest.raises(SafeNeuronError, match=told) as caught:
        rank_correlation(np.arange(380.0), values, WIDTHS)
    assert "\n" not in str(caught.value)


# --- Any K of them -----------------------------------------------------------------------


def test_kway_of_two_is_the_mean_jaccard_and_its_chance() -> None:
    generator = np.random.default_rng(2)
    sets = {name: draw(generator, WIDTHS, [20, 0, 15, 25]) for name in "abcd"}
    row = kway_table(sets).iloc[0]
    pairs = [pair_overlap(sets[a], sets[b])[0] for a, b in combinations("abcd", 2)]
    jaccards = [pair.jaccard for pair in pairs]
    assert (row["k"], row["combinations"], row["drawn"]) == (2, 6, 6)
    assert row["ratio"] == pytest.approx(np.mean(jaccards))
    assert row["variance"] == pytest.approx(np.var(jaccards))
    # Second order against the exact expectation.
    assert row["ratio_chance"] == pytest.approx(pairs[0].jaccard_chance, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1_000))
def test_kway_is_counting(seed: int) -> None:
    generator = np.random.default_rng(seed)
    sets = {str(n): draw(generator, [20, 12], [9, 7]) for n in range(4)}
    table = kway_table(sets).set_index("k")
    for k in (2, 3, 4):
        ratios, shares = [], []
        for chosen in combinations(sets.values(), k):
            members = [set(each) for each in chosen]
            both = len(set.intersection(*members))
            ratios.append(both / len(set.union(*members)))
            shares.append(both / 16)
        assert table.loc[k, "ratio"] == pytest.approx(np.mean(ratios))
        assert table.loc[k, "share"] == pytest.approx(np.mean(shares))
        assert (table.loc[k, "low"], table.loc[k, "high"]) == (min(ratios), max(ratios))


@pytest.mark.parametrize("k", [2, 3, 5])
def test_kway_chance_agrees_with_simulated_masks(k: int) -> None:
    generator = np.random.default_rng(k)
    sizes = [[40 + 4 * i, 0, 30, 90 - 5 * i] for i in range(k)]
    both_chance, ratio_chance = expected_ratio(np.array(WIDTHS, dtype=float), np.array(sizes))
    both, ratio = [], []
    for _ in range(DRAWS):
        masks = [np.concatenate(draw(generator, WIDTHS, size).masks()) for size in sizes]
        count = int(np.logical_and.reduce(masks).sum())
        both.append(float(count))
        ratio.append(count / int(np.logical_or.reduce(masks).sum()))
    near(both, both_chance)
    near(ratio, ratio_chance)


def test_many_combinations_are_drawn_with_a_seed() -> None:
    generator = np.random.default_rng(2)
    sets = {str(n): draw(generator, WIDTHS, [20, 0, 15, 25]) for n in range(9)}
    table = kway_table(sets, limit=30).set_index("k")
    assert table.loc[4, ["combinations", "drawn"]].tolist() == [126, 30]
    assert table.loc[9, ["combinations", "drawn"]].tolist() == [1, 1]
    pd.testing.assert_frame_equal(kway_table(sets, limit=30).set_index("k"), table)
    assert kway_table(sets, limit=30, seed=1)["ratio"].tolist() != table["ratio"].tolist()


# --- Core, shared, specific --------------------------------------------------------------


def test_composition_of_planted_classes() -> None:
    widths = [100, 100]
    topics = [f"topic {n}" for n in range(6)]
    core = [(0, i) for i in range(4)] + [(1, i) for i in range(6)]
    members = {topic: set(core) for topic in topics}
    for i in range(20):  # each in two to five topics
        for step in range(2 + i % 4):
            members[topics[(i + step) % 6]].add((i % 2, 20 + i))
    for i in range(30):
        members[topics[i % 6]].add((i % 2, 50 + i))
    sets = {
        topic: NeuronSet(widths, {n: [i for layer, i in found if layer == n] for n in (0, 1)})
        for topic, found in members.items()
    }
    found = composition(sets)
    assert found.totals()["neurons"].tolist() == [10, 20, 30]
    assert set(found.core) == set(core)
    assert found.layers[list(CLASSES)].to_numpy().tolist() == [[4, 10, 15], [6, 10, 15]]
    assert found.layers.loc[0, "core_share"] == pytest.approx(4 / 29)
    assert found.p_core == P_FLOOR
    assert found.totals()["chance"].iloc[0] < 0.01


def test_composition_s_chance_agrees_with_simulated_masks() -> None:
    generator = np.random.default_rng(9)
    sizes = [[60, 0, 30, 80], [50, 0, 40, 70], [70, 0, 20, 90]]
    found: dict[str, list[float]] = {name: [] for name in CLASSES}
    for _ in range(DRAWS):
        times = np.sum(
            [np.concatenate(draw(generator, WIDTHS, size).masks()) for size in sizes], axis=0
        )
        for name, count in zip(CLASSES, (3, 2, 1), strict=True):
            found[name].append(float((times == count).sum()))
    made = composition({str(n): draw(generator, WIDTHS, size) for n, size in enumerate(sizes)})
    for name, values in found.items():
        near(values, made.layers[f"{name}_chance"].sum())
    observed = int(made.layers["core"].sum())
    p = np.mean(np.array(found["core"]) >= observed)
    assert made.p_core == pytest.approx(p, abs=0.04)


def test_one_topic_has_no_composition() -> None:
    with pytest.raises(SafeNeuronError, match="at least two topics, not 1"):
        composition({"a": NeuronSet([4], {0: [1]})})
    with pytest.raises(SafeNeuronError, match="at least two sets"):
        kway_table({"a": NeuronSet([4], {0: [1]})})


# --- From files --------------------------------------------------------------------------


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    table = pd.DataFrame({"layer": [1, 1, 0, 0, 0], "neuron": [1, 0, 2, 0, 1]})
    path = tmp_path / "scores.parquet"
    table.assign(es=[5.0, 4.0, 3.0, 1.0, 2.0], word="x").to_parquet(path)
    return path


def test_operands_from_files(tmp_path: Path, scores: Path) -> None:
    neurons = NeuronSet([3, 2], {0: [1, 2]})
    path = mask_file(tmp_path / "mask.json", neurons, {"es": NeuronSet([3, 2], {0: [2]})})
    mask, part, score = (read_operand(spec) for spec in (path, f"{path}#es", f"{scores}#es"))
    assert (mask.neurons, len(part.as_set(9))) == (neurons, 1)
    assert score.scores is not None
    assert score.scores.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]
    sets = as_sets([mask, score, mask])
    assert list(sets) == [str(path), f"{scores}#es", f"{path} (2)"]
    assert list(sets[f"{scores}#es"]) == [(1, 0), (1, 1)]
    scores.with_suffix(".csv").write_text(pd.read_parquet(scores).to_csv(index=False), "utf-8")
    assert read_operand(f"{scores.with_suffix('.csv')}#es").widths == (3, 2)


def test_operands_that_are_none(tmp_path: Path, scores: Path) -> None:
    bad = {"gap": [0, 0, 2], "twice": [0, 1, 1]}
    for name, neurons in bad.items():
        frame = pd.DataFrame({"layer": [0, 0, 0], "neuron": neurons, "es": [1.0, 2.0, 3.0]})
        frame.to_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    pd.DataFrame({"x": [1]}).to_csv(tmp_path / "other.csv")
    told = {
        "gap.parquet#es": "layer 0 does not have each of its neurons once",
        "twice.parquet#es": "layer 0 does not have each of its neurons once",
        "broken.parquet#es": "is not a table|damaged",
        "other.csv#x": "needs the columns layer and neuron",
        "missing.parquet#es": "No such file",
        "scores.parquet": "choose a column of the table as scores.parquet#COLUMN, one of es, word",
        "scores.parquet#word": "does not hold numbers",
        "none.json": "cannot read the mask",
    }
    for spec, message in told.items():
        with pytest.raises(SafeNeuronError, match=message) as caught:
            read_operand(str(tmp_path / spec))
        assert "\n" not in str(caught.value), spec
    with pytest.raises(SafeNeuronError, match="NaN"):
        as_sets([Operand("s", (3,), scores=np.array([1.0, np.nan, 2.0]))] * 2)
    assert len(read_scores(scores)) == 5


def test_mask_files_are_json(tmp_path: Path) -> None:
    path = mask_file(tmp_path / "mask.json", NeuronSet([3, 2], {0: [1, 2]}))
    assert json.loads(Path(path).read_text("utf-8"))["count"] == 2
