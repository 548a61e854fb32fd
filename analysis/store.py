"""Results under content hashes, readable without a model.

An entry is a folder ``store/<kind>/<key>`` whose key is the sha256 of the canonical JSON
of everything the result depends on (its *recipe*). It is filled under another name, written
through to the disk and then renamed, its manifest last; so a half-written entry is not one,
and a damaged one is noticed, set aside and made again.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from analysis.listing import reason
from analysis.manifest import (
    MANIFEST,
    About,
    Entry,
    NewerVersionError,
    manifest_text,
    read_entry,
    safe_name,
)
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_file, sha256_text
from toolkit.home import home

__all__ = ["MANIFEST", "About", "Entry", "Store"]

ABANDONED = 86_400.0  # seconds
KIND = re.compile(r"[a-z][a-z-]{0,30}")
NOT_KINDS = ("damaged", "unfinished", "locks")
DAMAGED = re.compile(r"(?P<kind>[a-z-]+)-(?P<key>[0-9a-f]+)-(?P<when>[0-9]+)")


class Store:
    """The results kept on this machine.

    Any number of processes may read and write one store at a time.

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

        Raises:
            SafeNeuronError: a newer version of this program wrote it.
        """
        return self.get(kind, self.key(recipe))

    def get(self, kind: str, key: str) -> Entry | None:
        """The entry of that key, checked file by file, or None.

        Raises:
            SafeNeuronError: a newer version of this program wrote it.
        """
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

    def kinds(self) -> list[str]:
        """Kinds of results there are."""
        if not self.root.is_dir():
            return []
        names = sorted(path.name for path in self.root.iterdir() if path.is_dir())
        return [name for name in names if KIND.fullmatch(name) and name not in NOT_KINDS]

    def places(self) -> list[tuple[str, str]]:
        """Kind and key of everything that stands where an entry would, readable or not."""
        return [
            (kind, folder.name)
            for kind in self.kinds()
            for folder in sorted((self.root / kind).iterdir())
            if not folder.name.startswith(".") and folder.is_dir()
        ]

    def entries(self, kind: str | None = None) -> list[Entry]:
        """Every readable entry, newest first; files are not checked here."""
        found = []
        for name, key in self.places():
            if kind in (None, name):
                try:
                    found.append(read_entry(self.root / name / key, name))
                except (OSError, SafeNeuronError):
                    continue  # broken: `get` sets it aside when somebody asks for it
        return sorted(found, key=lambda entry: (entry.created, entry.key), reverse=True)

    def newer(self) -> list[str]:
        """What a newer version of this program wrote, and this one cannot read: a line each."""
        told = []
        for kind, key in self.places():
            try:
                read_entry(self.root / kind / key, kind)
            except NewerVersionError as error:
                told.append(str(error))
            except (OSError, SafeNeuronError):
                continue
        return told

    def one(self, kind: str, key: str) -> Entry:
        """The entry whose key begins so, for a person who types it; files are not checked.

        Raises:
            SafeNeuronError: none or several do, or it cannot be read.
        """
        names = [name for its_kind, name in self.places() if its_kind == kind]
        found = [name for name in names if key and name.startswith(key)]
        if len(found) != 1:
            told = "several keys begin so" if found else f"no {kind} entry {key}"
            raise SafeNeuronError(f"{told}; 'safeneuron cache' lists them")
        try:
            return read_entry(self.root / kind / found[0], kind)
        except OSError as error:
            raise SafeNeuronError(
                f"{kind} {found[0]} has no manifest; 'safeneuron cache verify' sets it aside"
            ) from error

    def save(
        self,
        kind: str,
        recipe: Mapping[str, Any],
        title: str,
        summary: Mapping[str, Any],
        write: Callable[[Path], None],
        about: About | None = None,
    ) -> Entry:
        """Make an entry: ``write`` fills a folder, which then appears whole.

        An entry that is there already is replaced.

        Args:
            kind: what sort of result, in lower case.
            recipe: everything it depends on, as JSON.
            title: what it is, in words.
            summary: its figures, for a listing.
            write: writes its files, without folders.
            about: of which model, from which prompts, by what.

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
            files = sorted(scratch.iterdir())
            wrong = [path.name for path in files if not (safe_name(path.name) and path.is_file())]
            if wrong:
                raise ValueError(f"an entry holds plain files, not {wrong[0]!r}")
            entry = Entry(
                kind=kind,
                key=key,
                path=scratch,
                created=datetime.now(UTC),
                title=title,
                recipe=dict(recipe),
                summary=dict(summary),
                files={path.name: sha256_file(path) for path in files},
                about=about or About(),
                why=reason(kind, recipe, folder, self._set_aside(kind, key), self.entries(kind)),
            )
            (scratch / MANIFEST).write_text(manifest_text(entry), "utf-8")
            for path in (*files, scratch / MANIFEST, scratch):
                _to_disk(path)
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
                _to_disk(folder.parent)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        return read_entry(folder, kind)

    def _set_aside(self, kind: str, key: str) -> datetime | None:
        """When a damaged entry of that key was last set aside."""
        times = [
            int(match["when"])
            for path in (self.root / "damaged").glob(f"{kind}-{key}-*")
            if (match := DAMAGED.fullmatch(path.name))
        ]
        return datetime.fromtimestamp(max(times) / 1e9, UTC) if times else None

    @contextmanager
    def computing(self, kind: str, recipe: Mapping[str, Any]) -> Iterator[Entry | None]:
        """Hold the right to compute a result, which one process has at a time.

        Gives the entry where it is there, or another process made it while this one waited
        for that right; None where the block has to compute and save it.
        """
        if entry := self.find(kind, recipe):
            yield entry
            return
        lock = self.root / "locks" / f"{kind}-{self.key(recipe)}.lock"
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SafeNeuronError(
                f"cannot write {lock.parent}: {error.strerror}; set SAFENEURON_HOME"
            ) from error
        with FileLock(lock):
            yield self.find(kind, recipe)

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
        with FileLock(folder.parent / ".lock"):
            # Out of the way first: an entry that is half deleted must not look damaged.
            old = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".old-"))
            folder.rename(old / key)
        shutil.rmtree(old)


def _to_disk(path: Path) -> None:
    """Have the system write a file or a folder's names out before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
        entry = read_entry(folder, kind)
        if folder.is_symlink() or Store.key(entry.recipe) != entry.key:
            return None
        return None if entry.damaged() else entry
    except NewerVersionError:
        raise
    except (OSError, SafeNeuronError, ValueError):
        return None
