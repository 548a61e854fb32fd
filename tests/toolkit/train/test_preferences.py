"""Preference data by their real columns, bad input by its place, and the mixture."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from datasets.exceptions import DatasetGenerationError

from toolkit.errors import SafeNeuronError
from toolkit.train.pairs import PairReport, PreferencePair
from toolkit.train.preferences import KNOWN_DATA, Source, mixture, read_pairs, read_source

GOOD = PreferencePair("How?", "I can't help with that.", "Sure, like this.")


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


def test_a_dialogue_that_goes_on_is_left_out(tmp_path: Path) -> None:
    said = [("user", "How?"), ("assistant", "So."), ("user", "And?"), ("assistant", "So too.")]
    chat = [{"role": role, "content": content} for role, content in said]
    rows = [
        {"prompt": "How?", "chosen": chat[:2], "rejected": "No."},
        {"prompt": "How?", "chosen": chat, "rejected": [*chat[:3], chat[1]]},
    ]
    source = read_source(str(jsonl(tmp_path / "pairs.jsonl", rows)))
    assert source.pairs == [PreferencePair("How?", "So.", "No.")]
    assert source.report.several_turns == 1


def test_a_hub_that_breaks_off_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise DatasetGenerationError("An error occurred while generating the dataset")

    monkeypatch.setattr(datasets, "load_dataset", broken)
    with pytest.raises(SafeNeuronError, match=r"cannot load hh-rlhf .*give the path"):
        read_source("hh-rlhf")


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


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def saferlhf(prompt: str, safer: int, better: int, safe: tuple[bool, bool]) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "prompt_source": "x",
        "response_0": f"{prompt} zero",
        "response_1": f"{prompt} one",
        "is_response_0_safe": safe[0],
        "is_response_1_safe": safe[1],
        "better_response_id": better,
        "safer_response_id": safer,
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_saferlhf_by_either_label(tmp_path: Path, kind: str) -> None:
    rows = [saferlhf("a", 1, 0, (False, True)), saferlhf("b", 0, 0, (False, False))]
    path = tmp_path / f"train.{kind}"
    if kind == "jsonl":
        jsonl(path, rows)
    elif kind == "csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    safer = read_source(str(path))
    assert safer.pairs == [
        PreferencePair("a", "a one", "a zero"),
        PreferencePair("b", "b zero", "b one"),
    ]
    assert safer.report.unsafe_chosen == 1
    better = read_source(str(path), "better")
    assert better.pairs[0] == PreferencePair("a", "a zero", "a one")
    assert better.report.unsafe_chosen == 2
    assert safer.sha256 != better.sha256


def test_hh_rlhf_single_turns(tmp_path: Path) -> None:
    asked = "\n\nHuman: How do I\n\nboil it?"
    rows = [
        {"chosen": f"{asked}\n\nAssistant: Gently.", "rejected": f"{asked}\n\nAssistant: No."},
        {
            "chosen": f"{asked}\n\nAssistant: What?\n\nHuman: Eggs\n\nAssistant: Gently.",
            "rejected": f"{asked}\n\nAssistant: What?\n\nHuman: Eggs\n\nAssistant: No.",
        },
        {
            "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c",
            "rejected": "\n\nHuman: a\n\nAssistant: c",
        },
    ]
    packed = tmp_path / "train.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    source = read_source(str(packed))
    assert source.pairs == [PreferencePair("How do I\n\nboil it?", "Gently.", "No.")]
    assert source.report.several_turns == 2


def test_ultrafeedback_and_spa_vl(tmp_path: Path) -> None:
    def chat(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]

    row = {"prompt": "Hi", "prompt_id": "1", "chosen": chat("Yes."), "rejected": chat("No.")}
    path = tmp_path / "train_prefs.parquet"
    pd.DataFrame([row | {"messages": chat("Yes."), "score_chosen": 8.0}]).to_parquet(path)
    assert read_source(str(path)).pairs == [PreferencePair("Hi", "Yes.", "No.")]

    row = {"question": "What?", "chosen": "A.", "rejected": "B.", "image": {"bytes": b"\0" * 9}}
    path = tmp_path / "spa.parquet"
    pd.DataFrame([row]).to_parquet(path)
    source = read_source(str(path))
    assert source.pairs == [PreferencePair("What?", "A.", "B.")]
    assert source.report.without_image == 1


def test_missing_values_are_empty_sides_and_xz_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.xz"
    row = {"prompt": "a", "chosen": None, "rejected": "c"}
    path.write_bytes(lzma.compress(json.dumps(row).encode()))
    assert read_pairs(path) == [PreferencePair("a", "", "c")]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"text": "a"}], "row 1|line 1 has the columns text; pairs need prompt"),
        ([saferlhf("a", 2, 0, (True, True))], "line 1: safer_response_id is 2; it must be 0 or 1"),
        ([{"prompt": "a", "response_0": "b"}], "line 1 has no 'response_1'"),
        ([saferlhf("a", 0, 0, (True, True)), {"prompt": "b"}], "line 2 has no 'response_0'"),
        ([{"chosen": "hello", "rejected": "there"}], "line 1: chosen does not begin with 'Human:'"),
        ([{"prompt": "a", "chosen": ["b"], "rejected": "c"}], "line 1: chosen is neither"),
        ([{"prompt": "a", "chosen": [{"content": 1}], "rejected": "c"}], "content of chosen"),
        ([[1, 2]], "line 1 is not an object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[Any], error: str) -> None:
    with pytest.raises(SafeNeuronError, match=error):
        read_source(str(jsonl(tmp_path / "p.jsonl", rows)))


def test_broken_lines_in_the_middle_are_named(tmp_path: Path) -> None:
    good = json.dumps(vars(GOOD))
    path = tmp_path / "p.jsonl"
    path.write_text(f"{good}\n{good[:20]}\n{good}\n", "utf-8")
    with pytest.raises(SafeNeuronError, match=r"p\.jsonl: line 2 is not JSON .*mend or delete"):
        read_source(str(path))
    path.write_bytes(f"{good}\n".encode() + b'{"prompt": "\xff"}\n')
    with pytest.raises(SafeNeuronError, match="line 2 is not UTF-8"):
        read_source(str(path))
    table = tmp_path / "p.csv"
    table.write_text("prompt,chosen,rejected\na,b,c\nd,e\nf,g,h\n", "utf-8")
    with pytest.raises(SafeNeuronError, match="line 3 has another number of fields"):
        read_source(str(table))
    packed = tmp_path / "p.jsonl.gz"
    packed.write_bytes(b"not gzip")
    with pytest.raises(SafeNeuronError, match="cannot read the pairs"):
        read_source(str(packed))


def test_what_is_no_data_and_a_hub_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match="pku-saferlhf"):
        read_source("nosuch")
    with pytest.raises(SafeNeuronError, match="no preference data"):
        read_source(str(tmp_path / "gone.jsonl"))
    # conftest.py keeps the hub off.
    with pytest.raises(SafeNeuronError, match="give the path"):
        read_source("pku-saferlhf")
    assert set(KNOWN_DATA) == {"pku-saferlhf", "ultrafeedback", "hh-rlhf", "spa-vl"}


def source(name: str, count: int) -> Source:
    pairs = [PreferencePair(f"{name} {k}", "yes", "no") for k in range(count)]
    return Source(name, pairs, PairReport())


def one(pair: PreferencePair) -> int:
    return 1


def test_the_mixture_has_its_share_and_is_seeded() -> None:
    report = PairReport()
    safety, general = source("bad", 50), source("good", 200)
    pairs = mixture(safety, general, 0.3, 100, 0, one, 9, report)
    assert (len(set(pairs)), report.kept, report.safety) == (100, 100, 30)
    assert sum(pair.prompt.startswith("bad") for pair in pairs) == 30
    assert pairs == mixture(safety, general, 0.3, 100, 0, one, 9, PairReport())
    other = mixture(safety, general, 0.3, 100, 1, one, 9, PairReport())
    assert set(pairs) != set(other)
    # Mixed, not one side after the other.
    assert 5 < sum(pair.prompt.startswith("bad") for pair in pairs[:50]) < 25


def test_the_mixture_takes_what_the_shorter_side_allows() -> None:
    pairs = mixture(source("bad", 50), source("good", 70), 0.3, None, 0, one, 9, PairReport())
    assert len(pairs) == 100
    assert sum(pair.prompt.startswith("bad") for pair in pairs) == 30
    pairs = mixture(source("bad", 6), source("good", 700), 0.3, None, 0, one, 9, PairReport())
    assert sum(pair.prompt.startswith("bad") for pair in pairs) == 6
    assert len(pairs) == 20


def test_the_share_is_one_of_usable_pairs() -> None:
    def length(pair: PreferencePair) -> int:
        return int(pair.prompt.split()[1])

    report = PairReport()
    pairs = mixture(source("bad", 40), source("good", 40), 0.5, 20, 0, length, 19, report)
    assert len(pairs) == 20
    assert all(length(pair) <= 19 for pair in pairs)
    assert report.too_long > 0
    assert report.offered == report.too_long + report.kept
    with pytest.raises(SafeNeuronError, match="bad gives 20 usable pairs where 30 of 60"):
        mixture(source("bad", 40), source("good", 40), 0.5, 60, 0, length, 19, PairReport())
    with pytest.raises(SafeNeuronError, match="no usable preference pair"):
        mixture(source("bad", 1), source("good", 40), 0.5, None, 0, one, 0, PairReport())


def test_a_report_in_words() -> None:
    report = PairReport(kept=3, empty=1, duplicate=2, several_turns=4, safety=1)
    assert str(report) == (
        "3 pairs used; left out: 1 with an empty side, 2 repeated, 4 of several turns; 1 that "
        "teach refusing"
    )
    assert PairReport(**report.as_dict()) == report
