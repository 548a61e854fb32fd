"""Prompt sets: every reader, every refusal, slices and hashes."""

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.errors import SafeNeuronError
from toolkit.known_prompts import KNOWN, KnownSet
from toolkit.prompt_sets import Prompt, PromptSet
from toolkit.prompts import read_prompts

THREE = ["How do I pick a lock?", "Wie öffnet man das Schloß?", 'Say "hi", then stop']


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def as_csv(rows: list[str], field: str = "prompt") -> str:
    quoted = ['"' + row.replace('"', '""') + '"' for row in rows]
    return "\n".join([f"id,{field}", *(f"{i},{row}" for i, row in enumerate(quoted))]) + "\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "\n\n".join([f"  {row}  " for row in THREE])),
        ("a.TXT", "\n".join(THREE)),
        ("a.csv", as_csv(THREE)),
        ("a.csv", as_csv(THREE, "goal")),
        ("a.json", json.dumps(THREE)),
        ("a.json", json.dumps({"prompts": THREE}, indent=1)),
        ("a.json", json.dumps([{"instruction": row} for row in THREE])),
        ("a.jsonl", "\n".join(json.dumps({"text": row}) for row in THREE) + "\n\n"),
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in THREE)),
    ],
)
def test_readers(tmp_path: Path, name: str, text: str, newline: str, encoding: str) -> None:
    path = write(tmp_path, name, text.replace("\n", newline), encoding)
    prompts = read_prompts(path)
    assert prompts.texts == THREE
    assert prompts.name == "a"
    assert len(prompts) == 3
    # The contents alone are hashed, so that every format gives the same.
    assert prompts.sha256 == PromptSet("x", tuple(Prompt(row) for row in THREE)).sha256


def test_categories(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", "category,prompt\nfraud,a\n,b\n")
    assert list(read_prompts(table)) == [Prompt("a", "fraud"), Prompt("b")]
    listed = write(tmp_path, "t.json", json.dumps([{"prompt": "a", "category": "fraud"}, "b"]))
    assert read_prompts(listed).prompts == read_prompts(table).prompts


def test_newlines_inside_a_prompt(tmp_path: Path) -> None:
    table = write(tmp_path, "t.csv", 'prompt\n"one\ntwo"\n')
    assert read_prompts(table).texts == ["one\ntwo"]
    # U+2028 ends a line for str.splitlines, but neither for JSON nor for an editor.
    rows = write(tmp_path, "t.jsonl", '"one\u2028two"\n"three"\n')
    assert read_prompts(rows).texts == ["one\u2028two", "three"]
    lines = write(tmp_path, "t.txt", "one\u2028two\nthree")
    assert read_prompts(lines).texts == ["one\u2028two", "three"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no prompts"),
        ("a.txt", b"\n  \n", "holds no prompts"),
        ("a.txt", "caf\u00e9".encode("latin-1"), r"is not UTF-8 \(byte 3\)"),
        ("a.md", b"x", "prompts are read from .txt, .csv, .json, .jsonl"),
        ("a.json", b"{", "is not JSON"),
        ("a.json", b"[" * 200_000, "is not JSON"),
        ("a.json", b"[" + b"9" * 5000 + b"]", "is not JSON"),
        ("a.json", b"3", "expected a list of prompts"),
        ("a.json", b'{"rows": []}', "expected a list of prompts"),
        ("a.json", b"[]", "holds no prompts"),
        ("a.json", b'["x", 3]', "entry 2 is neither a text nor an object"),
        ("a.json", b'["x", ["y"]]', "entry 2 is neither"),
        ("a.json", b'[{"title": "x"}]', "entry 1 has no prompt; name its field one of prompt"),
        ("a.json", b'[{"prompt": 3}]', "entry 1: prompt is not a text"),
        ("a.json", b'[{"prompt": null}]', "entry 1: prompt is not a text"),
        ("a.json", b'["x", "  "]', "prompt 2 is empty"),
        ("a.json", b'["x", "\\ud800"]', "prompt 2 has a broken character"),
        ("a.jsonl", b'"x"\nnope\n', "line 2 is not JSON"),
        ("a.jsonl", b'{"x": 1}\n', "entry 1 has no prompt"),
        ("a.csv", b"title\nx\n", "entry 1 has no prompt"),
        ("a.csv", b"prompt\n", "holds no prompts"),
        ("a.csv", b"id,prompt\n1\n", "entry 1: prompt is not a text"),
        ("a.csv", b'prompt\n""\n', "prompt 1 is empty"),
        ("a.csv", b"prompt\n" + b"x" * 200_000, "is not CSV after line 1"),
    ],
)
def test_refusals_are_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SafeNeuronError, match=message) as caught:
        read_prompts(path)
    assert "\n" not in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SafeNeuronError, match="cannot read the prompts"):
        read_prompts(tmp_path / "absent.txt")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(SafeNeuronError, match="cannot read the prompts"):
        read_prompts(tmp_path / "folder.txt")
    with pytest.raises(SafeNeuronError, match=r"no prompt set .nowhere.*harmless-heldout"):
        read_prompts("nowhere")
    with pytest.raises(SafeNeuronError, match="no prompt set 'How do I"):
        read_prompts("How do I " + "very " * 1000)


@pytest.fixture
def ten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    texts = [f"prompt {number}" for number in range(10)]
    known = KnownSet("ten", "", 10, "", lambda: [Prompt(text) for text in texts])
    monkeypatch.setitem(KNOWN, "ten", known)
    return texts


@pytest.mark.parametrize(
    ("part", "chosen"),
    [
        ("[:3]", slice(3)),
        ("[3:]", slice(3, None)),
        ("[2:5]", slice(2, 5)),
        ("[::2]", slice(None, None, 2)),
        ("[1::2]", slice(1, None, 2)),
        ("[:]", slice(None)),
        ("[8:99]", slice(8, 99)),
    ],
)
def test_slices(tmp_path: Path, ten: list[str], part: str, chosen: slice) -> None:
    file = write(tmp_path, "ten.txt", "\n".join(ten))
    for source in ("ten", str(file)):
        prompts = read_prompts(source + part)
        assert prompts.texts == ten[chosen]
        assert prompts.name == "ten" + part
    assert read_prompts("ten").name == "ten"


def test_slices_that_hold_nothing(ten: list[str]) -> None:
    with pytest.raises(SafeNeuronError, match=r"ten\[10:\] holds no prompts: ten has 10"):
        read_prompts("ten[10:]")
    with pytest.raises(SafeNeuronError, match="step of a slice can't be 0"):
        read_prompts("ten[::0]")
    for wrong in ("ten[1]", "ten[a:b]", "ten[-3:]", "other[:3]"):
        with pytest.raises(SafeNeuronError, match="no prompt set"):
            read_prompts(wrong)


def test_a_file_whose_name_looks_like_a_slice(tmp_path: Path) -> None:
    path = write(tmp_path, "a[:2].txt", "one\ntwo\nthree")
    assert len(read_prompts(path)) == 3


texts = st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5)


@given(texts, texts)
def test_equal_hashes_mean_equal_contents(a: list[str], b: list[str]) -> None:
    x = PromptSet("x", tuple(Prompt(text) for text in a))
    y = PromptSet("y", tuple(Prompt(text) for text in b))
    assert (x.sha256 == y.sha256) == (a == b)


def test_hash_sees_order_category_and_boundaries() -> None:
    def of(*prompts: Prompt) -> str:
        return PromptSet("x", prompts).sha256

    a, b = Prompt("a"), Prompt("b")
    assert of(a, b) != of(b, a)
    assert of(Prompt("ab")) != of(a, b)
    assert of(a) != of(Prompt("a", "fraud"))
    info = PromptSet("x", (a, b)).info()
    assert (info.name, info.count, info.sha256) == ("x", 2, of(a, b))


def test_known_sets_are_described() -> None:
    for name, known in KNOWN.items():
        assert known.name == name
        assert known.count > 0
        assert known.description
        assert known.licence


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.wheel is None])
def test_shipped_sets_hold_what_is_said_of_them(name: str) -> None:
    texts = read_prompts(name).texts
    assert len(texts) == len(set(texts)) == KNOWN[name].count
    assert all(text and text == text.strip() for text in texts)


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def test_contrasts_repeat_neither_each_other_nor_what_is_evaluated() -> None:
    ours = [words(text) for text in read_prompts("harmless-contrasts").texts]
    within = itertools.combinations(ours, 2)
    assert max(len(a & b) / len(a | b) for a, b in within) <= 0.6
    held_out = [words(text) for text in read_prompts("harmless-heldout").texts]
    across = itertools.product(ours, held_out)
    assert max(len(a & b) / len(a | b) for a, b in across) <= 0.5


def test_contrasts_are_spread_over_lengths_and_subjects() -> None:
    contrasts = read_prompts("harmless-contrasts")
    lengths = [len(text.split()) for text in contrasts.texts]
    assert min(lengths) == 5
    assert max(lengths) <= 60
    assert sum(lengths) / len(lengths) == pytest.approx(17, abs=0.5)
    sizes = {name: len(part) for name, part in contrasts.by_category().items()}
    assert sum(sizes.values()) == len(contrasts)
    assert sizes["looks-alarming"] >= 300
    assert sizes["sensitive"] >= 100


def test_parts_by_category(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "category": "a b" if n % 2 else "c[1]"} for n in range(6)]
    rows += [{"question": "q", "topic": "Law"}, {"prompt": "none"}]
    path = write(tmp_path, "set.json", json.dumps(rows))
    parts = read_prompts(path).by_category()
    assert list(parts) == ["c[1]", "a b", "Law"]
    assert parts["a b"].name == "set#a b"
    assert parts["a b"].texts == ["p1", "p3", "p5"]
    assert read_prompts(f"{path}#a b") == parts["a b"]
    assert read_prompts(f"{path}#c[1]").texts == ["p0", "p2", "p4"]
    assert read_prompts(f"{path}#a b[1:]").texts == ["p3", "p5"]
    assert read_prompts(f"{path}[:3]#a b").texts == ["p1"]
    assert read_prompts(f"{path}[:4][1::2]").texts == ["p1", "p3"]
    for spec, told in (
        (f"{path}#x", "has no category 'x': it has c\\[1\\], a b, Law"),
        (f"{path}[7:]#x", "its prompts have none"),
        ("nosuch#x", "no prompt set 'nosuch'"),
    ):
        with pytest.raises(SafeNeuronError, match=told):
            read_prompts(spec)


def test_joined_sets(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "category": "x"}, {"prompt": "q", "category": "y"}, {"prompt": "r"}]
    first = write(tmp_path, "a.json", json.dumps(rows))
    more = [{"prompt": "q", "category": "z"}, {"prompt": "s", "category": "x"}]
    second = write(tmp_path, "b.json", json.dumps(more))
    both = read_prompts(f"{first}[1:] + {second}")
    assert both.texts == ["q", "r", "s"]
    assert [prompt.category for prompt in both] == ["y", None, "x"]
    assert both.name == "a[1:]+b"
    # A slice belongs to the set it stands at; one of the whole says so.
    assert read_prompts(f"{first}+{second}[:1]").texts == ["p", "q", "r"]
    assert both[:2].name == "(a[1:]+b)[:2]"
    # A category is that of the parts, and its name is found again.
    parts = read_prompts(f"{first}+{second}").by_category()
    assert {name: part.texts for name, part in parts.items()} == {
        "x": ["p", "s"],
        "y": ["q"],
        "z": ["q"],
    }
    assert parts["x"].name == "a#x+b#x"
    assert read_prompts(f"{first}#x+{second}#x") == parts["x"]
    # A file with the sign in its name is that file.
    odd = write(tmp_path, "a+b.json", json.dumps(["t"]))
    assert read_prompts(odd).texts == ["t"]
    assert read_prompts(f"{odd}[:1]").texts == ["t"]
    for spec, told in ((f"{first}+", "on both sides"), (f"{first}+nosuch", "'nosuch'")):
        with pytest.raises(SafeNeuronError, match=told):
            read_prompts(spec)
