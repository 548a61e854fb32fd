"""``safeneuron cache``: the store in words, checked, copied and cleared."""

import json
from pathlib import Path

import pytest

from analysis.store import About, Entry, Store
from tests.analysis.test_store import newer_manifest
from tests.app.conftest import Run


@pytest.fixture
def entry() -> Entry:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("result")

    about = About("llama", "9 of a against 9 of b", "es (top 0.01)")
    return Store().save("identify", {"top": 0.01}, "safety neurons of llama", {}, write, about)


def test_listing(run: Run, entry: Entry) -> None:
    for arguments in (["cache"], ["cache", "ls"], ["cache", "ls", "--kind", "identify"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "safety neurons of llama" in out
        assert "9 of a against 9 of b" in out
    (row,) = json.loads(run("cache", "--json")[1])
    assert row == {
        "kind": "identify",
        "key": entry.key,
        "what": "safety neurons of llama",
        "model": "llama",
        "prompts": "9 of a against 9 of b",
        "by": "es (top 0.01)",
        "why": "the first identify in this store",
        "made": f"{entry.created:%Y-%m-%d %H:%M}",
        "size": row["size"],
    }
    assert json.loads(run("cache", "ls", "--kind", "attack", "--json")[1]) == []


def test_show(run: Run, entry: Entry) -> None:
    code, out, _ = run("cache", "show", "identify", entry.key[:8])
    assert code == 0
    assert "recipe top" in out
    assert "a.txt, 6 B, sha256" in out
    code, _, err = run("cache", "show", "identify", "nosuch")
    assert code == 2
    assert err.strip() == "safeneuron: no identify entry nosuch; 'safeneuron cache' lists them"


def test_verify_sets_damage_aside(run: Run, entry: Entry) -> None:
    assert json.loads(run("cache", "verify", "--json")[1])[0]["whole"] is True
    entry.file("manifest.json").unlink()  # so broken that the listing does not know it
    assert json.loads(run("cache", "verify", "--json")[1])[0]["state"] == "damaged: set aside"
    assert json.loads(run("cache", "verify", "--json")[1]) == []
    assert len(list((Store().root / "damaged").iterdir())) == 1


def test_what_a_newer_version_wrote_is_named_and_kept(run: Run, entry: Entry) -> None:
    newer_manifest(entry)
    code, _, err = run("cache")
    assert code == 0
    assert "safeneuron.entry/3" in err
    told = json.loads(run("cache", "verify", "--json")[1])[0]
    assert told["state"] == "of a newer version: not checked"
    assert entry.path.is_dir()


def test_export_and_remove(run: Run, entry: Entry, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    assert run("cache", "export", "identify", entry.key[:6], "-o", target)[0] == 0
    assert (target / "a.txt").read_text() == "result"
    assert run("cache", "export", "identify", entry.key, "-o", target)[0] == 2
    assert run("cache", "rm", "identify", entry.key[:6])[0] == 0
    assert Store().entries() == []
    assert run("cache", "rm", "identify", entry.key)[0] == 2
