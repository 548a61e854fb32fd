"""Preference pairs: what is made, what is read, what is left out."""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from toolkit.errors import SafeNeuronError
from toolkit.judge.refusal import judge_refusal
from toolkit.train.pairs import (
    PairReport,
    PreferencePair,
    clean,
    make_pairs,
    read_pairs,
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
    pairs = make_pairs(harmful, ["good"], answer, without, ["I won't."], 0, report)
    assert set(pairs) == {
        PreferencePair("bad one", "I won't.", "Sure."),
        PreferencePair("bad two", "I won't.", "Of course. Do it."),
        PreferencePair("good", "Boil it.", "I won't."),
    }
    assert report.no_contrast == 1
    again = make_pairs(harmful, ["good"], answer, without, ["I won't."], 0, PairReport())
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


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet"])
def test_read_every_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"pairs.{kind}"
    rows = [{"prompt": GOOD.prompt, "chosen": GOOD.chosen, "rejected": GOOD.rejected, "more": 1}]
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), "utf-8")
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    assert read_pairs(path) == [GOOD]


def test_chats_are_read_by_their_last_message(tmp_path: Path) -> None:
    path = tmp_path / "pairs.json"
    chat = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "So."}]
    path.write_text(json.dumps([{"prompt": "How?", "chosen": chat, "rejected": "No."}]), "utf-8")
    assert read_pairs(path) == [PreferencePair("How?", "So.", "No.")]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("p.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n{oops\n', "line 2"),
        ("p.jsonl", b'{"prompt": "a", "chosen": "b"}\n', "rejected"),
        ("p.jsonl", b'{"prompt": 3, "chosen": "b", "rejected": "c"}\n', "neither"),
        ("p.jsonl", b"", "no preference pairs"),
        ("p.json", b"{}", "list of pairs"),
        ("p.csv", b"prompt,chosen\na,b\n", "rejected"),
        ("p.txt", b"a", "are read from"),
        ("p.jsonl", b"\xff", "UTF-8"),
        ("p.parquet", b"not parquet", "cannot read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, error: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SafeNeuronError, match=error):
        read_pairs(path)
