"""Set expressions: what they read, what they refuse, and the set algebra they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.expressions import combine, is_union, leaves, parse, taken
from toolkit.errors import SafeNeuronError

NAMES = ("es", "sas", "t", "auc")


def names(text: str) -> list[str]:
    return [leaf.name for leaf in leaves(parse(text))]


def of(text: str, **sets: set[int]) -> set[int]:
    masks = {name: np.isin(np.arange(8), list(chosen)) for name, chosen in sets.items()}
    return set(np.flatnonzero(combine(parse(text), masks)).tolist())


def test_operators_read_from_left_to_right() -> None:
    sets = {"es": {0, 1, 2}, "t": {1, 2, 3}, "sas": {2, 4}}
    assert of("es+t", **sets) == {0, 1, 2, 3}
    assert of("es&t", **sets) == {1, 2}
    assert of("es-t", **sets) == {0}
    assert of("es-t+sas", **sets) == {0, 2, 4}
    assert of("es-(t+sas)", **sets) == {0}
    assert of("es + t & sas", **sets) == {2}


def test_utility_repeats_what_stands_to_its_left() -> None:
    assert names("snip-utility") == ["snip", "snip@utility"]
    assert names("(es+sas)-utility") == ["es", "sas", "es@utility", "sas@utility"]
    assert names("es@contrast&t@utility") == ["es@contrast", "t@utility"]
    assert [leaf.name for leaf in taken(parse("snip-utility"))] == ["snip"]
    assert [leaf.name for leaf in taken(parse("es-(t-auc)+sas"))] == ["es", "sas"]
    assert is_union(parse("es+(t+sas)"))
    assert not is_union(parse("es+t&sas"))


@given(
    st.recursive(
        st.sampled_from(NAMES),
        lambda inner: st.builds("({}{}{})".format, inner, st.sampled_from("+&-"), inner),
        max_leaves=8,
    ),
    st.integers(0, 10_000),
)
def test_expressions_are_python_s_set_algebra(text: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    sets = {name: set(np.flatnonzero(generator.random(8) < 0.5).tolist()) for name in NAMES}
    # The same text with Python's own operators over Python's own sets.
    expected = eval(text.replace("+", "|"), {}, sets)  # noqa: S307
    assert of(text, **sets) == expected
    chosen = set().union(*(sets[leaf.name] for leaf in taken(parse(text))))
    assert expected <= chosen


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "ends where a score should stand"),
        ("es+", "ends where a score should stand"),
        ("+es", r"has '\+' where a score should stand"),
        ("es sas", "wants \\+, & or - before 'sas'"),
        ("(es", r"has a '\(' without its '\)'"),
        ("es)", r"has a '\)' without its '\('"),
        ("es*sas", r"can't be read from '\*sas' on"),
        ("ES", "can't be read from 'ES' on"),
        ("utility", "'utility' is no score"),
        ("es@sideways", "'es@sideways' is no score"),
        ("es@utility-utility", "twice"),
        ("(" * 30 + "es" + ")" * 30, "too many parentheses"),
    ],
)
def test_what_is_no_expression(text: str, why: str) -> None:
    with pytest.raises(SafeNeuronError, match=why):
        parse(text)
