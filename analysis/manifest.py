"""A stored result's manifest: what it is, in words and in hashes, and how it is read.

``manifest.json`` is written last into an entry's folder. It holds the sha256 of every file
and of itself, so that one changed byte anywhere is noticed. Manifests of older versions of
this file stay readable; one of a newer version is refused, not taken for damage.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from toolkit.errors import SafeNeuronError
from toolkit.files import sha256_file, sha256_text

MANIFEST = "manifest.json"
VERSION = 2
SCHEMA = f"safeneuron.entry/{VERSION}"
_SCHEMA = re.compile(r"safeneuron\.entry/([1-9][0-9]{0,5})")
UNKNOWN = "not recorded"


class NewerVersionError(SafeNeuronError):
    """A stored result that a newer version of this program wrote."""


@dataclass(frozen=True)
class About:
    """An entry in words.

    Args:
        model: of which model.
        prompts: from which prompts.
        by: by what method.
    """

    model: str = UNKNOWN
    prompts: str = UNKNOWN
    by: str = UNKNOWN


@dataclass(frozen=True)
class Entry:
    """One stored result.

    Args:
        kind: what sort of result, the name of its folder in the store.
        key: names it among its kind.
        path: its folder.
        created: when, in UTC.
        title: what it is, in words.
        recipe: everything it depends on.
        summary: its figures, for a listing.
        files: file name -> sha256.
        about: of which model, from which prompts, by what.
        why: why it was computed, when it was.
        tool: what wrote it.
        schema: version of its manifest.
    """

    kind: str
    key: str
    path: Path
    created: datetime
    title: str
    recipe: dict[str, Any]
    summary: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)
    about: About = field(default_factory=About)
    why: str = UNKNOWN
    tool: str = UNKNOWN
    schema: int = VERSION

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.path.iterdir() if path.is_file())

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    def damaged(self) -> str | None:
        """What is wrong with its files, in words; None when each is as it was written."""
        for name, digest in self.files.items():
            path = self.file(name)
            if path.is_symlink() or not path.is_file():
                return f"{name} is missing or a link"
            if sha256_file(path) != digest:
                return f"{name} is not as it was written"
        return None


def manifest_text(entry: Entry) -> str:
    """The one text of an entry's manifest, its own hash in the last line but one."""
    body = {
        "schema": SCHEMA,
        "created": entry.created.isoformat(),
        "title": entry.title,
        "about": asdict(entry.about),
        "why": entry.why,
        "tool": f"safeneuron {version('safeneuron')}",
        "recipe": entry.recipe,
        "summary": entry.summary,
        "files": entry.files,
    }
    return sealed(json.loads(json.dumps(body)))


def sealed(body: Mapping[str, Any]) -> str:
    """A manifest's text with the hash of itself at its end."""
    return json.dumps({**body, "sha256": sha256_text(json.dumps(body, indent=1))}, indent=1)


def read_entry(folder: Path, kind: str) -> Entry:
    """Read an entry's manifest; its files are not looked at.

    Raises:
        NewerVersionError: it was written by a newer version.
        SafeNeuronError: there is none, or it is not as it was written.
    """
    try:
        text = (folder / MANIFEST).read_text("utf-8")
        data = json.loads(text)
        number = _version(folder, data["schema"])
        # Every version after the first is sealed alike, so that damage is told from news.
        if number > 1 and text != sealed({k: v for k, v in data.items() if k != "sha256"}):
            raise SafeNeuronError(f"{folder}: the manifest is not as it was written")
        if number > VERSION:
            raise NewerVersionError(
                f"{folder} was written by a newer version of safeneuron (schema "
                f"{data['schema']}, this one reads up to {SCHEMA}); update safeneuron, or set "
                "SAFENEURON_HOME to another folder"
            )
        for name in data["files"]:
            if not safe_name(name):
                raise SafeNeuronError(f"{folder}: the file name {name[:60]!r} leads out of it")
        summary = data["summary"]
        return Entry(
            kind=kind,
            key=folder.name,
            path=folder,
            created=datetime.fromisoformat(data["created"]),
            title=data["title"],
            recipe=data["recipe"],
            summary=summary,
            files=data["files"],
            about=About(**data["about"]) if number > 1 else _about_of(summary),
            why=data["why"] if number > 1 else UNKNOWN,
            tool=data["tool"] if number > 1 else UNKNOWN,
            schema=number,
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise SafeNeuronError(f"{folder} has no readable manifest: {error}") from error


def _version(folder: Path, schema: object) -> int:
    match = _SCHEMA.fullmatch(schema) if isinstance(schema, str) else None
    if match is None:
        raise SafeNeuronError(f"{folder} has schema {str(schema)[:60]!r}, not {SCHEMA!r}")
    return int(match[1])


def safe_name(name: str) -> bool:
    """Whether a manifest may call a file so: a plain name, of nothing outside the entry."""
    return (
        Path(name).name == name
        and name not in ("", ".", "..", MANIFEST)
        and not set(name) & set("/\\\0")
    )


def _about_of(summary: Mapping[str, Any]) -> About:
    """What an entry of the first version says of itself in its summary."""
    model = summary.get("model", UNKNOWN)
    if isinstance(model, Mapping):
        model = model.get("source", UNKNOWN)
    sides = [str(summary[side]) for side in ("harmful", "harmless") if side in summary]
    by = summary.get("method", summary.get("setting", UNKNOWN))
    return About(str(model), " against ".join(sides) or UNKNOWN, str(by))
