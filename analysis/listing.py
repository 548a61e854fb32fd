"""What is in a store, in words: a line for each entry, a page for one, and why it was made."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from analysis.manifest import UNKNOWN, Entry
from toolkit.files import canonical_json

SHOWN = 4  # differences named before the rest are counted
SHORT = 24  # letters of a value that is shown


def size_in_words(count: int) -> str:
    """Bytes in units of a thousand: ``12 kB``, ``1.4 GB``."""
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 10 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def reason(
    kind: str,
    recipe: Mapping[str, Any],
    folder: Path,
    set_aside: datetime | None,
    earlier: Sequence[Entry],
) -> str:
    """Why a result is being computed although a store is there to save that.

    Args:
        kind: of the result.
        recipe: what it is made from.
        folder: where it will stand.
        set_aside: when a damaged one of the same recipe was put away, if one was.
        earlier: the readable entries of its kind.
    """
    if folder.exists():
        return "made again in place of one of the same recipe"
    if set_aside is not None:
        return f"made again: the one of the same recipe was damaged ({set_aside:%Y-%m-%d %H:%M})"
    if not earlier:
        return f"the first {kind} in this store"
    nearest = min(earlier, key=lambda entry: len(_differences(entry.recipe, recipe)))
    told = _differences(nearest.recipe, recipe)
    named = ", ".join(told[:SHOWN])
    more = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return f"the nearest, {nearest.key[:8]}, has another {named}{more}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Where two recipes differ, in words; sorted by name."""
    told: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            told += _differences(a, b, f"{prefix}{name}.")
        elif canonical_json(a) != canonical_json(b):
            told.append(f"{prefix}{name}{_values(a, b)}")
    return told


def _values(old: Any, new: Any) -> str:
    """Both values where they are short enough to mean something."""
    texts = ["none" if v is None else v if isinstance(v, str) else canonical_json(v)
             for v in (old, new)]  # fmt: skip
    if any(len(text) > SHORT for text in texts):
        return ""
    return f" ({texts[0]}, now {texts[1]})"


def listing(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """A row for each entry: what it is, of which model, from which prompts, by what, why."""
    return [
        {
            "kind": entry.kind,
            "key": entry.key,
            "what": entry.title,
            "model": entry.about.model,
            "prompts": entry.about.prompts,
            "by": entry.about.by,
            "why": entry.why,
            "made": f"{entry.created:%Y-%m-%d %H:%M}",
            "size": size_in_words(entry.size),
        }
        for entry in entries
    ]


def described(entry: Entry) -> list[tuple[str, str]]:
    """Everything there is to say of one entry, a heading and a text each."""
    told = [("what", entry.title), ("model", entry.about.model)]
    told += [("prompts", entry.about.prompts), ("by", entry.about.by)]
    told += [("made", f"{entry.created:%Y-%m-%d %H:%M:%S} UTC"), ("why", entry.why)]
    told += [("with", entry.tool), ("size", size_in_words(entry.size))]
    told = [(name, text) for name, text in told if text != UNKNOWN]
    told.append(("entry", f"{entry.kind} {entry.key}, manifest version {entry.schema}"))
    told.append(("folder", str(entry.path)))
    for name, digest in entry.files.items():
        path = entry.file(name)
        size = size_in_words(path.stat().st_size) if path.is_file() else "missing"
        told.append(("file", f"{name}, {size}, sha256 {digest[:16]}"))
    told += [(f"recipe {name}", _brief(value)) for name, value in entry.recipe.items()]
    return told


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
