"""A study on disk as DataFrames, for notebooks: opened in a moment, without torch."""

import shutil
import tempfile
import zipfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.manifest import Entry, NewerVersionError
from analysis.store import Store
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable, sha256_file
from toolkit.home import home
from toolkit.masks import MaskFile, read_mask

SCORES, MASK, ATTACK = "scores.parquet", "mask.json", "attack.json"


class Study:
    """What a store holds, as tables.

    A file is checked against its hash when it is first read, and read again only when it
    has changed.

    Args:
        store: the results.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._entries = store.entries()
        self._checked: set[tuple[Path, int, int]] = set()

    def __repr__(self) -> str:
        return f"Study({str(self.store.root)!r}: {len(self._entries)} results)"

    @property
    def entries(self) -> pd.DataFrame:
        """One row a result, newest first: kind, key, what it is in words, when, bytes."""
        return pd.DataFrame(
            [
                {
                    "kind": entry.kind,
                    "key": entry.key,
                    "what": entry.title,
                    "model": entry.about.model,
                    "prompts": entry.about.prompts,
                    "by": entry.about.by,
                    "why": entry.why,
                    "created": entry.created,
                    "bytes": entry.size,
                }
                for entry in self._entries
            ]
        )

    def entry(self, key: str | None = None, file: str = SCORES) -> Entry:
        """One result that has a file of that name.

        Args:
            key: its key or how that begins; the newest when left out.
            file: which file is asked of it.

        Raises:
            SafeNeuronError: none or several fit.
        """
        with_file = [entry for entry in self._entries if file in entry.files]
        found = [entry for entry in with_file if key is None or entry.key.startswith(key)]
        if not found or (key is not None and len(found) > 1):
            asked = f" whose key begins with {key!r}" if key else ""
            count = "several results" if found else "no result"
            raise SafeNeuronError(
                f"{self.store.root} has {count} with {file}{asked}; 'entries' lists what there is"
            )
        return found[0]

    def file(self, entry: Entry, name: str) -> Path:
        """A file of a result, whose contents are as they were written.

        Raises:
            SafeNeuronError: they are not.
        """
        path = entry.file(name)
        try:
            facts = path.stat()
            known = (path, facts.st_mtime_ns, facts.st_size)
            if known not in self._checked:
                if path.is_symlink() or sha256_file(path) != entry.files[name]:
                    raise SafeNeuronError(
                        f"{path} is not as it was written; 'safeneuron cache verify' sets it "
                        "aside, and computing it again makes it anew"
                    )
                self._checked.add(known)
        except OSError as error:
            raise SafeNeuronError(f"cannot read {path}: {error.strerror}") from error
        return path

    def scores(
        self, key: str | None = None, layer: int | None = None, columns: list[str] | None = None
    ) -> pd.DataFrame:
        """A score table, one row a neuron.

        Args:
            key: of which result; the newest identification when left out.
            layer: this layer alone, which reads little of a large table.
            columns: these alone; ``layer`` and ``neuron`` are always there.

        Raises:
            SafeNeuronError: no such result, layer or column, or a damaged file.
        """
        path = self.file(self.entry(key), SCORES)
        chosen = None if columns is None else list(dict.fromkeys(["layer", "neuron", *columns]))
        filters = None if layer is None else [("layer", "==", layer)]
        try:
            table = pd.read_parquet(path, columns=chosen, filters=filters)
        except (ValueError, KeyError) as error:  # pyarrow raises kinds of both
            raise SafeNeuronError(
                f"{path} has not all of the columns {', '.join(columns or ['layer'])}"
            ) from error
        if layer is not None and not len(table):
            raise SafeNeuronError(f"{path} has no neurons in layer {layer}")
        return table

    def top(
        self, layer: int, count: int = 100, score: str = "es", key: str | None = None
    ) -> pd.DataFrame:
        """The neurons of a layer that score highest, best first; ties by place."""
        table = self.scores(key, layer)
        if score not in table:
            columns = ", ".join(name for name in table.columns if name not in ("layer", "neuron"))
            raise SafeNeuronError(f"no score {score!r}; choose one of {columns}")
        order = np.argsort(-table[score].to_numpy(dtype=np.float64), kind="stable")
        return table.iloc[order[:count]].reset_index(drop=True)

    def mask(self, key: str | None = None) -> MaskFile:
        """The mask of a result; the newest when no key is given."""
        return read_mask(self.file(self.entry(key, MASK), MASK))

    def attacks(self) -> pd.DataFrame:
        """Every setting of every stored attack, as :func:`analysis.robustness.headline` has it.

        Columns ``key``, ``model`` and ``created`` come first.
        """
        from analysis.robustness import headline, read_attack

        frames = []
        for entry in self._entries:
            if ATTACK in entry.files:
                result = read_attack(self.file(entry, ATTACK))
                table = headline(result)
                table.insert(0, "key", entry.key)
                table.insert(1, "model", result.model.source)
                table.insert(2, "created", _naive(entry.created))
                frames.append(table)
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _naive(when: datetime) -> datetime:
    return when.replace(tzinfo=None)


def open_study(path: str | Path | None = None) -> Study:
    """Open the results under a folder.

    Args:
        path: a store, or the folder that holds one; by default ``SAFENEURON_HOME``.

    Raises:
        SafeNeuronError: there is no such folder, or nothing in it that can be read.
    """
    folder = Path(path).expanduser() if path is not None else home()
    root = folder / "store" if (folder / "store").is_dir() else folder
    if not root.is_dir():
        raise SafeNeuronError(f"no results at {folder}: the folder does not exist")
    store = Store(root)
    study = Study(store)
    if not len(study._entries):
        newer = store.newer()
        if newer:
            raise NewerVersionError(newer[0])
        raise SafeNeuronError(
            f"{folder} holds no results; give a folder that SAFENEURON_HOME named, or run "
            "'safeneuron demo'"
        )
    return study


def export_entry(store: Store, entry: Entry, target: Path) -> None:
    """Copy a checked entry with its manifest to a folder, or into a .zip file.

    Raises:
        SafeNeuronError: it is damaged, or the target is there already or not writable.
    """
    if target.exists():
        raise SafeNeuronError(f"{target} is there already; choose another -o")
    require_writable(target)
    whole = store.get(entry.kind, entry.key)
    if whole is None:
        raise SafeNeuronError(
            f"{entry.kind} {entry.key} was damaged and is set aside; compute it again"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    names = ["manifest.json", *whole.files]
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as scratch:
        made = Path(scratch) / "entry"
        if target.suffix.lower() == ".zip":
            with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
                for name in names:
                    archive.write(whole.file(name), name)
        else:
            made.mkdir()
            for name in names:
                shutil.copyfile(whole.file(name), made / name)
        made.rename(target)
