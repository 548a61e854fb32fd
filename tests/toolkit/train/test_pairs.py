"""Preference pairs: what is made, what is read, what is left out."""

from collections.abc import Sequence

import pytest

from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal
from toolkit.train.pairs import (
    PairReport,
    PreferencePair,
    clean,
    make_pairs,
    own_compliance,
    shipped_refusals,
    whole_sentences,
)

GOOD = PreferencePair("How?", "I can't help with that.", "Sure, like this.")


def words(pair: PreferencePair) -> int:
    return max(len(f"{pair.prompt} {side}".split()) for side in (pair.chosen, pair.rejected))


def test_every_shipped_refusal_is_judged_one() -> None:
    refusals = shipped_refusals()
    assert len(set(refusals)) == len(refusals) >= 50
    assert [r for r in refusals if judge_refusal(r).verdict != "refused"] == []


def test_made_pairs() -> None:
    def answer(texts: Sequence[str]) -> list[str]:
        told = {"bad one": "Sure. Take a", "bad two": "I can't do that.", "good": "Boil it. Then"}
        return [told.get(text, "I'm sorry, but no.") for text in texts]

    def without(texts: Sequence[str]) -> list[str]:
        assert list(texts) == ["bad two", "bad three"]
        return ["Of course. Do it.", "I cannot help with it."]

    report = PairReport()
    harmful = ["bad one", "bad two", "bad three"]
    comply = own_compliance(answer, without)
    pairs = make_pairs(harmful, ["good"], answer, comply, ["I won't."], 0, report)
    assert set(pairs) == {
        PreferencePair("bad one", "I won't.", "Sure."),
        PreferencePair("bad two", "I won't.", "Of course. Do it."),
        PreferencePair("good", "Boil it.", "I won't."),
    }
    assert report.no_contrast == 1
    again = make_pairs(harmful, ["good"], answer, comply, ["I won't."], 0, PairReport())
    assert again == pairs


def test_whole_sentences() -> None:
    assert whole_sentences("One. Two is cut in the") == "One."
    assert whole_sentences("no end at all") == "no end at all"
    assert whole_sentences("It costs 3.5 euros and") == "It costs 3.5 euros and"


def test_clean_counts_by_reason() -> None:
    offered = [
        GOOD,
        GOOD,
        PreferencePair("How?", " ", "yes"),
        PreferencePair("How?", "same", "same "),
        PreferencePair("How?", "word " * 50, "no"),
    ]
    report = PairReport()
    assert clean(offered, words, 20, report) == [GOOD]
    assert report == PairReport(offered=5, kept=1, empty=1, equal=1, duplicate=1, too_long=1)
    with pytest.raises(SafeNeuronError, match="no usable preference pair"):
        clean(offered[2:], words, 20, PairReport())
