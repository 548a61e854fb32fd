"""The command line on tiny models, and every bad input in one line with exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from tests.app.conftest import Run
from tests.tiny import HARMFUL, HARMLESS, save_tiny


@pytest.fixture
def prompt_files(tmp_path: Path) -> dict[str, Path]:
    files = {"harmful": tmp_path / "harmful.txt", "harmless": tmp_path / "harmless.txt"}
    files["harmful"].write_text("\n".join(HARMFUL), "utf-8")
    files["harmless"].write_text("\n".join(HARMLESS), "utf-8")
    return files


@pytest.fixture
def sides(prompt_files: dict[str, Path]) -> list[object]:
    return ["--harmful", prompt_files["harmful"], "--harmless", prompt_files["harmless"]]


@pytest.fixture
def mask(run: Run, tiny_llama: Path, sides: list[object], tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    code, _, _ = run("identify", tiny_llama, "-o", path, *sides, "--top", "0.1")
    assert code == 0
    return path


def one_line(result: tuple[int, str, str]) -> str:
    code, out, err = result
    lines = err.strip().splitlines()
    assert code == 2
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("safeneuron: ")
    return lines[0]


def test_identify_attack_compare(
    run: Run, tiny_llama: Path, mask: Path, sides: list[object], tmp_path: Path
) -> None:
    schema = json.loads(run("schema")[1])
    written = json.loads(mask.read_text("utf-8"))
    jsonschema.validate(written, schema)
    # 10 % of 192 neurons, in two lists as long as keep their union within it.
    assert 10 <= written["count"] <= 19

    code, out, _ = run("identify", tiny_llama, *sides, "--top", "0.1", "--json")
    assert code == 0
    assert json.loads(out)["reused"] is True

    attack = tmp_path / "attack.json"
    arguments = ["--mask", mask, *sides, "--max-new-tokens", 4, "--seeds", 2, "-o", attack]
    code, out, _ = run("attack", tiny_llama, *arguments, "--json")
    assert code == 0
    table = json.loads(out)["table"]
    harmful = {r["setting"]: r for r in table if r["side"] == "harmful" and r["seed"] is None}
    assert set(harmful) == {"ORI", "ES", "SAS", "FULL", "RANDOM"}
    assert harmful["ORI"]["neurons"] == 0
    assert harmful["FULL"]["neurons"] == harmful["RANDOM"]["neurons"] == written["count"]
    assert all(r["n"] == len(HARMFUL) for r in harmful.values())

    stored = json.loads(attack.read_text("utf-8"))
    assert all(answer["response"] is None for answer in stored["answers"])
    code, out, _ = run("compare", attack, attack)
    assert code == 0
    assert out.count("FULL") >= 4


def test_scores_selections_and_a_neuron_s_page(
    run: Run, tiny_llama: Path, sides: list[object], tmp_path: Path
) -> None:
    code, out, _ = run("scores", "--json")
    assert code == 0
    listed = {row["name"]: row for row in json.loads(out)}
    assert {"es", "sas", "t", "auc", "snip", "change"} <= set(listed)
    assert listed["t"]["p-value"]
    assert "snip" in run("scores")[1]

    path = tmp_path / "mask.json"
    asked = [tiny_llama, *sides, "-o", path, "--method", "t-wanda", "--answer-tokens", 3]
    asked += ["--top", 0.2, "--share", "wanda=0.1", "--per-layer", "--also", "auc"]
    code, out, err = run("identify", *asked, "--json")
    assert code == 0, err
    shown = json.loads(out)
    assert shown["parameters"]["top_wanda"] == 0.1
    assert shown["parameters"]["per_layer"] is True
    assert shown["scores"] == ["t", "wanda", "auc"]
    counts = [len(ids) for ids in json.loads(path.read_text("utf-8"))["neurons"].values()]
    assert max(counts) <= 12  # a fifth of 64

    place = [tiny_llama, 1, 7, *sides]
    code, out, err = run("neuron", *place, "--json")
    assert code == 0, err
    page = json.loads(out)
    assert {one["score"] for one in page["scores"]} == {"es", "sas", "t", "wanda", "auc"}
    assert len(page["masks"]) == 1
    code, out, err = run("neuron", *place)
    assert code == 0
    assert "promotes: " in out
    assert "no model was run" in err


def test_a_mask_is_patched_into_the_base(
    run: Run, tiny_llama: Path, mask: Path, tmp_path: Path, sides: list[object]
) -> None:
    base = save_tiny(tmp_path / "base", seed=1)
    asked = [tiny_llama, "--base", base, "--mask", mask, *sides[:2], "--max-new-tokens", 2]
    # Random models refuse nothing, so there is nothing that a mask could carry.
    assert "refuse equally often" in one_line(run("patch", *asked))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--method", "es*t"], "can't be read from '*t' on"),
        (["--method", "magic"], "no method 'magic'; choose one of es, sas"),
        (["--method", "snip"], "snip has no threshold of its own"),
        (["--tau", "t"], "--tau t: write NAME=NUMBER"),
        (["--method", "t", "--tau", "t=high"], "tau.t 'high'"),
        (["--method", "sas", "--fdr", "0.1"], "sas has no p-value"),
        (["--per-layer"], "give --per-layer with --top"),
        (["--method", "change", "--top", "0.1"], "--base"),
    ],
)
def test_selections_that_can_t_be_made(
    run: Run, tiny_llama: Path, sides: list[object], arguments: list[str], why: str
) -> None:
    assert why in one_line(run("identify", tiny_llama, *sides, *arguments))


def test_every_setting_and_the_red_team(
    run: Run, tiny_llama: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A random model's refusal direction is no direction of its own.
    monkeypatch.setattr("analysis.attacks.refusal_direction.KL_LIMIT", float("inf"))
    parts = {"h": HARMFUL[:14], "s": HARMLESS[:14], "a": HARMFUL[14:], "b": HARMLESS[14:]}
    for name, texts in parts.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts), "utf-8")
    find = ["--find-harmful", tmp_path / "h.txt", "--find-harmless", tmp_path / "s.txt"]
    asked = ["--harmful", tmp_path / "a.txt", "--harmless", tmp_path / "b.txt", *find]
    more = ["--settings", "all", "--seeds", 2, "--rounds", 2, "--max-new-tokens", 4]
    more += ["--sweep-shares", "0.02,0.1", "--hold-at", "-4", "--table", tmp_path / "t.md"]
    path = tmp_path / "all.json"
    code, out, err = run("attack", tiny_llama, "--mask", mask, *asked, *more, "-o", path)
    assert code == 0, err
    stored = json.loads(path.read_text("utf-8"))
    names = [setting["name"] for setting in stored["settings"]]
    expected = ["ORI", "ES", "SAS", "FULL", "RANDOM", "RANDOM", "RANDOM-ACTIVATION"]
    expected += ["RANDOM-ACTIVATION", "AGAIN", "SWEEP 2%", "SWEEP-RANDOM 2%", "SWEEP 10%"]
    expected += ["SWEEP-RANDOM 10%", "HOLD x1", "HOLD x2", "HOLD at -4", "SINGLE", "NEUROSTRIKE"]
    expected += ["TWINBREAK", "DIRECTION", "ADAPTIVE 1", "ADAPTIVE 2", "ADAPTIVE-RANDOM"]
    assert names == expected
    assert len(stored["answers"]) == len(names) * 12
    assert stored["command"][:2] == ["safeneuron", "attack"]
    shown = (tmp_path / "t.md").read_text("utf-8")
    assert all(name in shown and name in out for name in set(names))
    assert "p against random" in shown
    assert run("compare", path, path, "--table", tmp_path / "t.csv")[0] == 0
    assert (tmp_path / "t.csv").read_text("utf-8").startswith("result,")
    assert "name it .md or .csv" in one_line(run("compare", path, "--table", tmp_path / "t.pdf"))

    rows = [{"prompt": t, "category": c} for c, k in (("x", "h"), ("y", "s")) for t in parts[k]]
    (tmp_path / "topics.json").write_text(json.dumps(rows), "utf-8")
    arguments = ["--mask", mask, "--topics", tmp_path / "topics.json", "--draws", 2]
    code, out, err = run("redteam", tiny_llama, *arguments, "--json")
    assert code == 0, err
    table = json.loads(out)["table"]
    assert [(row["setting"], row["n"]) for row in table] == [("ORI", 4), ("FULL", 4), ("RANDOM", 4)]
    assert "of 12 asked for" in run("redteam", tiny_llama, *arguments)[1]


def test_a_second_identify_loads_no_model(
    run: Run, tiny_llama: Path, mask: Path, sides: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("toolkit.models.load.load_weights", refuse)
    code, out, _ = run("identify", tiny_llama, *sides, "--method", "sas", "--top", "0.1", "--json")
    assert code == 0
    assert json.loads(out)["reused"] is True


def test_empty_store_and_listings(run: Run) -> None:
    code, out, _ = run("cache")
    assert code == 0
    assert "safeneuron demo" in out
    names = {row["name"] for row in json.loads(run("prompts", "--json")[1])}
    assert {"harmless", "strongreject", "advbench"} <= names
    embedded = json.loads(run("models", "--json")[1])
    assert [row["name"] for row in embedded] == ["smollm2-135m-instruct", "smollm2-135m-aligned"]


@pytest.mark.parametrize("model", ["nosuch", "./nosuch", "../a/b/c", "nosuch.gguf"])
def test_no_such_model(run: Run, sides: list[object], model: str) -> None:
    assert "no model" in one_line(run("identify", model, *sides))


def test_no_network_for_a_hub_name(run: Run, sides: list[object]) -> None:
    line = one_line(run("identify", "nobody/no-such-model", *sides))
    assert "nobody/no-such-model" in line


def test_unsupported_architecture(run: Run, sides: list[object], tmp_path: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    from tests.tiny import tiny_tokenizer

    folder = tmp_path / "mamba"
    config = MambaConfig(vocab_size=600, hidden_size=16, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    assert "not supported" in one_line(run("identify", folder, *sides))


def test_a_folder_without_a_model(run: Run, sides: list[object], tmp_path: Path) -> None:
    assert "config.json" in one_line(run("identify", tmp_path, *sides))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "no prompts"),
        (b"\n\n", "no prompts"),
        (b"only one\n", "at least two"),
        (b"caf\xe9 one\ncaf\xe9 two\n", "UTF-8"),
    ],
)
def test_bad_prompt_files(
    run: Run, tiny_llama: Path, tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    assert expected in one_line(run("identify", tiny_llama, "--harmful", path))


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "1", "nan"])
def test_bad_shares(run: Run, tiny_llama: Path, sides: list[object], share: str) -> None:
    told = one_line(run("identify", tiny_llama, *sides, "--top", share))
    assert "top 'nan'" in told if share == "nan" else "--top" in told


def test_bad_masks(
    run: Run, tiny_llama: Path, mask: Path, sides: list[object], tmp_path: Path
) -> None:
    good = json.loads(mask.read_text("utf-8"))
    other = save_tiny(tmp_path / "other", seed=1)
    bad = tmp_path / "bad.json"

    def attack(text: str, model: Path = tiny_llama) -> str:
        bad.write_text(text, "utf-8")
        return one_line(run("attack", model, "--mask", bad, *sides))

    assert "not JSON" in attack("{")
    assert "schema" in attack(json.dumps(good | {"schema": "someone.else/7"}))
    far = good | {"neurons": {"0": [64]}, "parts": {}, "count": 1, "fraction": 1 / 192}
    assert "out of range" in attack(json.dumps(far))
    said = attack(json.dumps(good), other)
    assert "another model" in said
    assert f"not {other} (" in said
    bad.unlink()
    assert "cannot read the mask" in one_line(run("attack", tiny_llama, "--mask", bad, *sides))


def test_unknown_words(run: Run, tiny_llama: Path) -> None:
    assert "frobnicate" in one_line(run("frobnicate"))
    assert "middle" in one_line(run("identify", tiny_llama, "--position", "middle"))
    assert "LOUD" in one_line(run("attack", tiny_llama, "--mask", "m", "--settings", "ori,loud"))


def test_unwritable_output_before_any_work(
    run: Run, tiny_llama: Path, sides: list[object], tmp_path: Path, own_home: Path
) -> None:
    blocked = tmp_path / "a-file"
    blocked.write_text("in the way", "utf-8")
    target = blocked / "mask.json"
    assert "cannot write" in one_line(run("identify", tiny_llama, *sides, "-o", target))
    assert not (own_home / "store").exists()
    if os.geteuid() != 0:  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
        assert "cannot write" in one_line(run("identify", tiny_llama, *sides, "-o", closed / "m"))


def test_nothing_is_half_written(run: Run, tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "mask.json"
    one_line(run("identify", tiny_llama, "--harmful", tmp_path / "gone.txt", "-o", output))
    assert not output.exists()
    assert not list(tmp_path.glob(".mask*"))


@pytest.mark.slow
def test_rounds_in_one_command_line(
    run: Run, tiny_llama: Path, prompt_files: dict[str, Path], tmp_path: Path
) -> None:
    """Identify, align and attack, three times; then nothing is left to do."""
    rows = [{"prompt": p, "chosen": "I can't help", "rejected": f"Sure: {p}"} for p in HARMFUL]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    (tmp_path / "attacked.txt").write_text("Rob a shop\nPick a lock", "utf-8")
    command = ["rounds", tiny_llama, "--rounds", 3, "-o", tmp_path / "out"]
    command += ["--find-harmful", prompt_files["harmful"]]
    command += ["--find-harmless", prompt_files["harmless"]]
    command += ["--pairs", tmp_path / "pairs.jsonl", "--steps", 1, "--batch-size", 4]
    command += ["--top", 0.05, "--dtype", "float32", "--attack", "--attack-tokens", 4]
    command += ["--attacked", tmp_path / "attacked.txt"]
    command += ["--attacked-harmless", prompt_files["harmless"], "--json"]
    code, out, err = run(*command)
    assert code == 0, err
    assert "round 3: " in err
    table = json.loads(out)["table"]
    assert [row["model"] for row in table] == ["T0", "T1", "T2", "T3"]
    assert [row["AGAIN_n"] for row in table] == [None, 2, 2, 2]
    frozen = [row["frozen"] for row in table[1:]]
    assert frozen == sorted(frozen)
    again = run(*command)
    assert (again[0], json.loads(again[1])) == (0, json.loads(out))

    # Fewer rounds are there already, and forget none; other ones are not to be mixed with them.
    fewer = run(*command[:3], 2, *command[4:])
    assert (fewer[0], json.loads(fewer[1])) == (0, json.loads(out))
    assert "holds other rounds" in one_line(run(*command, "--seed", 5))


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["align", "-o", "out", "--learning-rate", "inf"], "learning-rate 'inf'"),
        (["align", "-o", "out", "--patience", "2"], "safeneuron: patience needs evaluate-every"),
        (["align", "-o", "a.txt"], "a.txt: it is a file; name a folder"),
        (["rounds", "-o", "out", "--steps", "2", "--epochs", "1"], "give --steps or --epochs"),
        (["rounds", "-o", "out", "--top", "0.1", "--top-es", "0.1"], "give --top, or --top-es"),
        (["attack", "--settings", "sweep", "--sweep-shares", ""], "sweep-shares"),
        (["attack", "--settings", "hold", "--hold-factors", ""], "hold has no constant"),
        (["attack", "--hold-at", "nan"], "finite number"),
        (["attack", "-o", "."], "it is a folder; name a file in it"),
        (["attack", "--mask", "a.txt", "-o", "a.txt"], "a.txt is read by this command"),
    ],
)
def test_what_can_t_be_done_is_told_before_any_work(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    why: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("kept", "utf-8")
    verb, *rest = arguments
    assert why in one_line(run(verb, "no-model", *rest))
    assert (tmp_path / "a.txt").read_text("utf-8") == "kept"
    assert not (tmp_path / "out").exists()


def test_no_other_file_is_written_over_by_a_mask(run: Run, mask: Path, tmp_path: Path) -> None:
    other = tmp_path / "prompts.txt"
    other.write_text("kept", "utf-8")
    told = one_line(run("masks", "combine", "union", mask, mask, "-o", other))
    assert "is there already and no mask" in told
    assert other.read_text("utf-8") == "kept"
    assert run("masks", "combine", "union", mask, mask, "-o", mask)[0] == 0


def test_a_home_that_is_a_file_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    monkeypatch.setenv("SAFENEURON_HOME", str(tmp_path / "file"))
    assert "SAFENEURON_HOME is the file" in one_line(run("jobs"))


# Ctrl-C while the commands are imported: before any of them could catch it.
INTERRUPTED = """
import sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == "app.commands.chat":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupts())
from app.__main__ import main
main()
"""


def test_ctrl_c_before_the_commands_are_there_is_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "safeneuron: stopped\n"


def test_the_package_runs_as_the_command_does() -> None:
    run = [sys.executable, "-m", "app", "models", "--json"]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert "smollm2-135m-aligned" in done.stdout
