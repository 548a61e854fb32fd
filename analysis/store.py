"""Results under content hashes, readable without a model.

An entry is a folder ``store/<kind>/<key>`` whose key is the sha256 of the canonical JSON
of everything the result depends on (its *recipe*). ``manifest.json`` is written last and
holds the recipe, a title in words, a summary and the sha256 of every file, so that a
half-written entry is not one and a damaged one is noticed, set aside and made again.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_file, sha256_text
from toolkit.home import home

MANIFEST = "manifest.json"
SCHEMA = "safeneuron.entry/1"
KINDS = (
    *("identify", "attack", "redteam", "capability", "neuron", "score"),
    *("moments", "activations", "plan"),
)
ABANDONED = 86_400.0  # seconds


@dataclass(frozen=True)
class Entry:
    """One stored result.

    Args:
        kind: one of :data:`KINDS`.
        key: names it among its kind.
        path: its folder.
        created: when, in UTC.
        title: what it is, in words.
        recipe: everything it depends on.
        summary: its figures, for a listing.
        files: file name -> sha256.
    """

    kind: str
    key: str
    path: Path
    created: datetime
    title: str
    recipe: dict[str, Any]
    summary: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name


class Store:
    """The results kept on this machine.

    Args:
        root: the folder; by default ``store`` under ``SAFENEURON_HOME``.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or home() / "store"

    @staticmethod
    def key(recipe: Mapping[str, Any]) -> str:
        """The key of a recipe."""
        return sha256_text(canonical_json(recipe))[:40]

    def find(self, kind: str, recipe: Mapping[str, Any]) -> Entry | None:
        """The entry made by ``recipe``, whole and unchanged, or None.

        A damaged one is moved to ``store/damaged`` and not returned.
        """
        return self.get(kind, self.key(recipe))

    def get(self, kind: str, key: str) -> Entry | None:
        """The entry of that key, checked file by file, or None."""
        folder = self.root / kind / key
        if not folder.is_dir():
            return None
        entry = _checked(folder, kind)
        if entry is not None:
            return entry
        # It may have been replaced while it was read: look again, with the writers held off.
        with FileLock(folder.parent / ".lock"):
            entry = _checked(folder, kind) if folder.is_dir() else None
            if entry is None and folder.is_dir():
                aside = self.root / "damaged" / f"{kind}-{key}-{time.time_ns()}"
                aside.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(aside)
        return entry

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Every readable entry, newest first; files are not checked here."""
        kinds = [kind] if kind else KINDS
        found = []
        for name in kinds:
            for folder in (self.root / name).glob("*"):
                if folder.name.startswith("."):
                    continue
                try:
                    found.append(_read(folder, name))
                except (OSError, SafeNeuronError):
                    continue  # broken: `get` sets it aside when somebody asks for it
        return sorted(found, key=lambda entry: (entry.created, entry.key), reverse=True)

    def save(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        title: str,
        summary: Mapping[str, Any],
        write: Callable[[Path], None],
    ) -> Entry:
        """Make an entry: ``write`` fills a folder, which then appears whole.

        An entry that is there already is replaced.

        Raises:
            SafeNeuronError: the store cannot be written.
        """
        key = self.key(recipe)
        folder = self.root / kind / key
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
        except OSError as error:
            raise SafeNeuronError(
                f"cannot write {folder.parent}: {error.strerror}; set SAFENEURON_HOME"
            ) from error
        try:
            write(scratch)
            manifest = {
                "schema": SCHEMA,
                "created": datetime.now(UTC).isoformat(),
                "title": title,
                "recipe": dict(recipe),
                "summary": dict(summary),
                "files": {path.name: sha256_file(path) for path in sorted(scratch.iterdir())},
            }
            with (scratch / MANIFEST).open("w", encoding="utf-8") as stream:
                json.dump(manifest, stream, indent=1)
                stream.flush()
                os.fsync(stream.fileno())
            scratch.chmod(0o755)
            with FileLock(folder.parent / ".lock"):
                _sweep(folder.parent)
                if folder.exists():
                    old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-"))
                    folder.rename(old / key)
                    scratch.replace(folder)
                    shutil.rmtree(old)
                else:
                    scratch.replace(folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return _read(folder, kind)

    @contextmanager
    def unfinished(self, kind: str, recipe: Mapping[str, Any]) -> Iterator[Path]:
        """A folder for what is done so far of a result, one process at a time.

        It outlives a kill and is deleted when the ``with`` block ends well.
        """
        folder = self.root / "unfinished" / f"{kind}-{self.key(recipe)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SafeNeuronError(
                f"cannot write {folder}: {error.strerror}; set SAFENEURON_HOME"
            ) from error
        with FileLock(folder.with_suffix(".lock")):
            folder.mkdir(exist_ok=True)
            yield folder
            shutil.rmtree(folder)

    def remove(self, kind: str, key: str) -> None:
        """Delete an entry.

        Raises:
            SafeNeuronError: there is none of that key.
        """
        folder = self.root / kind / key
        if folder.resolve().parent != (self.root / kind).resolve() or not folder.is_dir():
            raise SafeNeuronError(f"no {kind} entry {key}; 'safeneuron cache' lists them")
        shutil.rmtree(folder)


def _sweep(kind: Path) -> None:
    """Delete what writers left that were killed a day ago or longer."""
    for left in (*kind.glob(".partial-*"), *kind.glob(".old-*")):
        try:
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left)
        except OSError:
            continue  # another process swept it first


def _checked(folder: Path, kind: str) -> Entry | None:
    """The entry in ``folder`` if it is whole and every file as it was written."""
    try:
        entry = _read(folder, kind)
        whole = all(sha256_file(entry.file(n)) == digest for n, digest in entry.files.items())
    except (OSError, SafeNeuronError):
        return None
    return entry if whole else None


def _read(folder: Path, kind: str) -> Entry:
    try:
        data = json.loads((folder / MANIFEST).read_text("utf-8"))
        if data["schema"] != SCHEMA:
            raise SafeNeuronError(f"{folder} has schema {data['schema']!r}, not {SCHEMA!r}")
        if any(Path(name).name != name for name in data["files"]):
            raise SafeNeuronError(f"{folder}: a file name leads out of the entry")
        return Entry(
            kind=kind,
            key=folder.name,
            path=folder,
            created=datetime.fromisoformat(data["created"]),
            title=data["title"],
            recipe=data["recipe"],
            summary=data["summary"],
            files=data["files"],
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SafeNeuronError(f"{folder} has no readable manifest: {error}") from error
