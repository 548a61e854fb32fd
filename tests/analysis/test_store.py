"""The store: what is saved is found, whole; what is damaged or half written is not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.listing import described, listing, size_in_words
from analysis.manifest import VERSION, safe_name, sealed
from analysis.store import MANIFEST, About, Entry, Store
from toolkit.errors import SafeNeuronError

RECIPE: dict[str, Any] = {"model": "a" * 64, "position": "last", "tau": 2.0}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def save(store: Store, recipe: dict[str, Any] = RECIPE, text: str = "result") -> Entry:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text(text)
        (folder / "b.bin").write_bytes(bytes(range(256)))

    return store.save("identify", recipe, "a title", {"neurons": 3}, write)


def test_saved_is_found(store: Store) -> None:
    saved = save(store)
    found = store.find("identify", RECIPE)
    assert found == saved
    assert found is not None
    assert found.file("a.txt").read_text() == "result"
    assert (found.title, found.summary, found.recipe) == ("a title", {"neurons": 3}, RECIPE)
    assert found.files.keys() == {"a.txt", "b.bin"}
    assert found.size >= 256 + 6
    assert store.get("identify", saved.key) == saved
    assert store.find("attack", RECIPE) is None
    assert store.find("identify", {**RECIPE, "tau": 3.0}) is None


def test_what_killed_writers_left_is_swept_after_a_day(store: Store) -> None:
    first = save(store)
    left = [first.path.parent / name for name in (".partial-old", ".old-old", ".partial-new")]
    for folder in left:
        folder.mkdir()
        (folder / "a.txt").write_text("half")
    for folder in left[:2]:
        os.utime(folder, (time.time() - 90_000,) * 2)
    save(store, {"n": 1})
    assert [folder.exists() for folder in left] == [False, False, True]
    assert store.find("identify", RECIPE) == first


def test_the_key_is_of_the_recipe_s_contents() -> None:
    assert Store.key({"a": 1, "b": [2]}) == Store.key({"b": [2], "a": 1})
    assert Store.key({"a": 1}) != Store.key({"a": "1"})
    assert Store.key({"a": [1, 2]}) != Store.key({"a": [2, 1]})


def test_the_default_folder_follows_the_environment(own_home: Path) -> None:
    assert Store().root == own_home / "store"


def test_entries_newest_first(store: Store) -> None:
    saved = [save(store, {"n": n}) for n in range(3)]
    assert [entry.key for entry in store.entries()] == [entry.key for entry in saved[::-1]]
    assert store.entries("attack") == []
    (saved[1].path / MANIFEST).write_text("{")
    assert len(store.entries("identify")) == 2


def test_saving_again_replaces(store: Store) -> None:
    save(store, text="old")
    new = save(store, text="new")
    assert new.file("a.txt").read_text() == "new"
    assert store.find("identify", RECIPE) == new
    assert [path.name for path in new.path.parent.iterdir() if path.is_dir()] == [new.key]


def damage_file(entry: Entry) -> None:
    entry.file("a.txt").write_text("Result")


def damage_by_deleting(entry: Entry) -> None:
    entry.file("b.bin").unlink()


def damage_manifest(entry: Entry) -> None:
    entry.file(MANIFEST).write_text("not json")


def damage_by_no_manifest(entry: Entry) -> None:
    entry.file(MANIFEST).unlink()


def damage_schema(entry: Entry) -> None:
    data = json.loads(entry.file(MANIFEST).read_text())
    entry.file(MANIFEST).write_text(json.dumps({**data, "schema": "something/1"}))


def damage_paths(entry: Entry) -> None:
    old_manifest(entry, files={**entry.files, "../../secret": "0" * 64})


def damage_by_a_link(entry: Entry) -> None:
    outside = entry.path.parent.parent / "outside.txt"
    outside.write_text("result")
    entry.file("a.txt").unlink()
    entry.file("a.txt").symlink_to(outside)


def damage_recipe(entry: Entry) -> None:
    old_manifest(entry, recipe={**entry.recipe, "tau": 2.5})


def damage_title(entry: Entry) -> None:
    """One letter of the manifest that no file's hash covers."""
    text = entry.file(MANIFEST).read_text()
    entry.file(MANIFEST).write_text(text.replace("a title", "b title"))


def newer_manifest(entry: Entry) -> None:
    """Rewrite the manifest as a next version would, with more than this one knows."""
    body = json.loads(entry.file(MANIFEST).read_text())
    body |= {"schema": f"safeneuron.entry/{VERSION + 1}", "more": 1}
    del body["sha256"]
    entry.file(MANIFEST).write_text(sealed(body))


def old_manifest(entry: Entry, **changed: Any) -> None:
    """Write the manifest as the first version did, without a hash of its own."""
    body = {
        "schema": "safeneuron.entry/1",
        "created": entry.created.isoformat(),
        "title": entry.title,
        "recipe": entry.recipe,
        "summary": entry.summary,
        "files": entry.files,
    }
    entry.file(MANIFEST).write_text(json.dumps(body | changed, indent=1))


@pytest.mark.parametrize(
    "damage",
    [
        damage_file,
        damage_by_deleting,
        damage_manifest,
        damage_by_no_manifest,
        damage_schema,
        damage_paths,
        damage_by_a_link,
        damage_recipe,
        damage_title,
    ],
)
def test_a_damaged_entry_is_set_aside_and_can_be_made_again(store: Store, damage: Any) -> None:
    damage(save(store))
    assert store.find("identify", RECIPE) is None
    aside = list((store.root / "damaged").iterdir())
    assert len(aside) == 1
    assert aside[0].name.startswith(f"identify-{Store.key(RECIPE)}-")
    assert (aside[0] / "a.txt").exists()
    again = save(store)
    assert store.find("identify", RECIPE) == again
    assert again.why.startswith("made again: the one of the same recipe was damaged (20")


def test_any_flipped_byte_is_noticed(store: Store) -> None:
    """Every byte of the manifest, and every byte of the files, one at a time."""
    generator = np.random.default_rng(0)
    size = save(store).file(MANIFEST).stat().st_size
    for name, places in ((MANIFEST, size), ("a.txt", 6), ("b.bin", 256)):
        chosen = range(places) if places < 40 else generator.choice(places, 40, replace=False)
        for place in chosen:
            path = save(store).file(name)
            data = bytearray(path.read_bytes())
            data[int(place)] ^= 1 << int(generator.integers(8))
            path.write_bytes(data)
            assert store.find("identify", RECIPE) is None, (name, place)


def test_a_manifest_of_the_first_version_stays_readable(store: Store) -> None:
    entry = save(store)
    old_manifest(entry, summary={"model": "m", "harmful": "a", "harmless": "b", "method": "es"})
    found = store.find("identify", RECIPE)
    assert found is not None
    assert (found.schema, found.title, found.files) == (1, "a title", entry.files)
    assert found.about == About("m", "a against b", "es")
    assert store.entries() == [found]
    damage_file(found)
    assert store.find("identify", RECIPE) is None


def test_a_newer_manifest_is_refused_and_left_alone(store: Store) -> None:
    entry = save(store)
    newer_manifest(entry)
    with pytest.raises(SafeNeuronError, match=r"newer version .*entry/3.*; update safeneuron"):
        store.find("identify", RECIPE)
    assert store.entries() == []
    assert len(store.newer()) == 1
    assert entry.path.is_dir()


def test_an_entry_says_why_it_was_made(store: Store) -> None:
    first = save(store)
    assert first.why == "the first identify in this store"
    other = save(store, {**RECIPE, "position": "mean", "model": "b" * 64})
    near = save(store, {**RECIPE, "tau": 3.0})
    assert (
        other.why == f"the nearest, {first.key[:8]}, has another model, position (last, now mean)"
    )
    assert near.why == f"the nearest, {first.key[:8]}, has another tau (2.0, now 3.0)"
    assert save(store).why == "made again in place of one of the same recipe"
    assert store.find("identify", {**RECIPE, "tau": 3.0}) == near


def test_a_listing_in_words(store: Store) -> None:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_bytes(bytes(12_340))

    about = About("llama", "260 of advbench against 260 of harmless", "es (top 0.01)")
    entry = store.save("identify", RECIPE, "safety neurons", {}, write, about)
    (row,) = listing(store.entries())
    assert row["what"] == "safety neurons"
    assert (row["model"], row["prompts"], row["by"]) == (about.model, about.prompts, about.by)
    assert row["size"] == "13 kB"
    told = dict(described(entry))
    assert told["entry"] == f"identify {entry.key}, manifest version 2"
    assert told["recipe position"] == "last"
    assert told["file"].startswith("a.txt, 12 kB, sha256 ")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.2 kB"), (54_321, "54 kB"), (999_700, "1.0 MB"),
     (2_500_000_000, "2.5 GB")],
)  # fmt: skip
def test_sizes_in_words(count: int, text: str) -> None:
    assert size_in_words(count) == text


@pytest.mark.parametrize("name", ["..", ".", "", "/a", "a/b", "../a", "a\\b", "a\0", MANIFEST])
def test_names_that_lead_out_of_an_entry(name: str) -> None:
    assert not safe_name(name)
    assert safe_name("scores.parquet")


def test_a_write_that_fails_leaves_nothing(store: Store) -> None:
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.save("identify", RECIPE, "t", {}, write)
    assert list((store.root / "identify").iterdir()) == []


def test_a_failed_rewrite_keeps_the_old(store: Store) -> None:
    old = save(store)

    def write(folder: Path) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save("identify", RECIPE, "t", {}, write)
    assert store.find("identify", RECIPE) == old


def run(script: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


KILLED = """
import os, signal, sys
from pathlib import Path
from analysis.store import Store

def write(folder):
    (folder / "a.txt").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

Store(Path(sys.argv[1])).save("identify", {"n": 1}, "t", {}, write)
"""


def test_a_killed_writer_leaves_no_half_entry(store: Store) -> None:
    process = run(KILLED, str(store.root))
    assert process.wait() == -signal.SIGKILL
    assert list((store.root / "identify").glob("*/a.txt"))  # it did get that far
    assert store.find("identify", {"n": 1}) is None
    assert store.entries() == []
    assert save(store, {"n": 1}) == store.find("identify", {"n": 1})


WRITER = """
import sys
from pathlib import Path
from analysis.store import Store

store = Store(Path(sys.argv[1]))
for turn in range(25):
    def write(folder):
        for name in "abc":
            (folder / name).write_text(f"{sys.argv[2]} {turn}" * 1000)
    store.save("identify", {"n": 1}, "t", {}, write)
"""


def test_many_writers_and_a_reader_of_one_entry(store: Store) -> None:
    writers = [run(WRITER, str(store.root), name) for name in ("one", "two")]
    found = 0
    deadline = time.monotonic() + 120
    while any(writer.poll() is None for writer in writers):
        assert time.monotonic() < deadline
        found += store.find("identify", {"n": 1}) is not None
    assert [writer.wait() for writer in writers] == [0, 0]
    last = store.find("identify", {"n": 1})
    assert last is not None
    texts = {last.file(name).read_text() for name in "abc"}
    assert len(texts) == 1  # of one writer and one turn
    assert found > 0
    # Being replaced under a reader's eyes is not damage.
    assert not (store.root / "damaged").exists()
    assert [path.name for path in last.path.parent.iterdir() if path.is_dir()] == [last.key]


BUSY = """
import sys
from pathlib import Path
from analysis.store import Store

store = Store(Path(sys.argv[1]))
print("ready", flush=True)
turn = 0
while True:
    turn += 1
    for n in range(3):
        def write(folder):
            for name in "abc":
                (folder / name).write_text(f"{n} {turn} " * 5000)
        store.save("identify", {"n": n}, "t", {"turn": turn}, write)
"""


def test_fifty_kills_leave_nothing_that_reads_wrongly(store: Store) -> None:
    """Must hold 5: SIGKILL at 50 random moments of writing."""
    generator = np.random.default_rng(0)
    whole = 0
    for _ in range(50):
        process = run(BUSY, str(store.root))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(float(generator.uniform(0, 0.04)))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        for n in range(3):
            entry = store.find("identify", {"n": n})
            if entry is not None:
                whole += 1
                texts = {entry.file(name).read_text() for name in "abc"}
                assert texts == {f"{n} {entry.summary['turn']} " * 5000}
    assert whole > 20
    # None of it is damage: what was killed never was an entry.
    assert not (store.root / "damaged").exists()
    assert save(store, {"n": 0}) == store.find("identify", {"n": 0})


ASKING = """
import os, sys, time
from pathlib import Path
from analysis.store import Store

root, log = Path(sys.argv[1]), Path(sys.argv[2])
store = Store(root)
with store.computing("identify", {"n": 1}) as entry:
    if entry is None:
        with log.open("a") as stream:
            stream.write(f"{os.getpid()}\\n")
        time.sleep(0.5)
        entry = store.save("identify", {"n": 1}, "t", {}, lambda f: (f / "a").touch())
print(entry.key)
"""


def test_several_processes_compute_a_missing_result_once(store: Store, tmp_path: Path) -> None:
    """Must hold 5: who comes second waits, and reads what the first one made."""
    log = tmp_path / "log"
    asking = [run(ASKING, str(store.root), str(log)) for _ in range(4)]
    told = [process.communicate(timeout=60)[0] for process in asking]
    assert told == [f"{Store.key({'n': 1})}\n"] * 4
    assert len(log.read_text().splitlines()) == 1


def test_a_killed_computation_does_not_block_the_next(store: Store, tmp_path: Path) -> None:
    first = run(ASKING.replace("sleep(0.5)", "sleep(600)"), str(store.root), str(tmp_path / "log"))
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.kill()
    first.communicate()
    assert run(ASKING, str(store.root), str(tmp_path / "log")).communicate(timeout=60)[0]
    assert len((tmp_path / "log").read_text().splitlines()) == 2


def test_one_by_the_beginning_of_its_key(store: Store) -> None:
    saved = [save(store, {"n": n}) for n in range(30)]
    assert store.one("identify", saved[3].key[:20]) == saved[3]
    for key in ("", "nosuch", ".."):
        with pytest.raises(SafeNeuronError, match=r"no identify entry .*cache"):
            store.one("identify", key)
    shared = next(a.key[0] for a in saved for b in saved if a != b and a.key[0] == b.key[0])
    with pytest.raises(SafeNeuronError, match="several keys begin so"):
        store.one("identify", shared)


def test_a_manifest_that_climbs_out_is_one_line(store: Store) -> None:
    entry = save(store)
    damage_paths(entry)
    with pytest.raises(SafeNeuronError, match=r"the file name '../../secret' leads out of") as told:
        store.one("identify", entry.key)
    assert "\n" not in str(told.value)


def test_an_entry_holds_plain_files(store: Store) -> None:
    with pytest.raises(ValueError, match="holds plain files"):
        store.save("identify", RECIPE, "t", {}, lambda folder: (folder / "sub").mkdir())
    assert store.find("identify", RECIPE) is None


def test_remove(store: Store) -> None:
    entry = save(store)
    store.remove("identify", entry.key)
    assert store.find("identify", RECIPE) is None
    for key in (entry.key, "..", "", "../identify", "/"):
        with pytest.raises(SafeNeuronError, match=r"no identify entry .*cache"):
            store.remove("identify", key)


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SafeNeuronError, match=r"cannot write .*; set SAFENEURON_HOME"):
        save(Store(tmp_path / "file"))
