"""Writing that is never half done, and the hashes that name contents."""

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from toolkit.errors import SafeNeuronError
from toolkit.home import home

CHUNK = 1 << 20


def canonical_json(value: Any) -> str:
    """Return the one JSON text of ``value``: sorted keys, no spaces, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def sha256_text(text: str) -> str:
    """Return the hex sha256 of ``text`` in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Return the hex sha256 of a file; ``on_bytes`` hears of each chunk read."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one.

    Raises:
        SafeNeuronError: the folder cannot be written, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _unwritable(path, error) from error
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; results follow the user's umask like any other file.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unwritable(path: Path, error: OSError) -> SafeNeuronError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "choose a folder you can write to"
    if path.absolute().is_relative_to(home().absolute()):
        remedy = "set SAFENEURON_HOME to a folder you can write to"
    if full:
        remedy = "free some space"
    return SafeNeuronError(f"cannot write {path}: {error.strerror}; {remedy}")


def require_writable(
    path: Path, kind: Literal["file", "folder"] | None = None, inputs: Iterable[object] = ()
) -> None:
    """Fail early, before any work, when ``path`` could not be written at the end.

    Args:
        path: a file or folder that a command is about to make.
        kind: which of the two.
        inputs: what the command reads, some of it by path; none may be written over.

    Raises:
        SafeNeuronError: its nearest existing parent is no folder or not writable, it is the
            other kind, or an input.
    """
    if kind == "file" and path.is_dir():
        raise SafeNeuronError(f"cannot write {path}: it is a folder; name a file in it")
    if kind == "folder" and path.is_file():
        raise SafeNeuronError(f"cannot write {path}: it is a file; name a folder")
    for given in inputs:
        if isinstance(given, str | Path) and path.exists() and _is_file_at(Path(given), path):
            raise SafeNeuronError(f"{path} is read by this command; write to another file")
    if path.is_dir():
        parent = path
    else:
        parent = path.absolute().parent
        while not parent.exists():
            parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise SafeNeuronError(
            f"cannot write {path}: {parent} is not a folder you may write to; choose another"
        )
    if path.is_file() and not os.access(path, os.W_OK):
        raise SafeNeuronError(f"cannot overwrite {path}: it is read-only; choose another")


def _is_file_at(given: Path, path: Path) -> bool:
    try:
        return given.is_file() and given.samefile(path)
    except (OSError, ValueError):  # a name that is no path, such as a set's
        return False


def read_text(path: Path, most: int) -> str:
    """Read a text file that somebody else may have made.

    Args:
        path: the file.
        most: bytes; a larger file is not read, nor is what is no file at all, such as a
            device that never ends.

    Raises:
        SafeNeuronError: it is larger, or no regular file.
        OSError: it is missing or cannot be read.
        UnicodeDecodeError: it is not UTF-8.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise SafeNeuronError(f"{path} is not a file")
    if size > most:
        raise SafeNeuronError(
            f"{path} has {size / 1e6:,.0f} MB, and at most {most / 1e6:,.0f} MB are read here"
        )
    return path.read_text(encoding="utf-8")
