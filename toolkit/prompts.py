"""From what a user writes to prompts: known sets or files, whole, a slice or a category."""

import re
from collections.abc import Callable
from pathlib import Path

from toolkit.errors import SafeNeuronError
from toolkit.known_prompts import KNOWN
from toolkit.prompt_sets import PARSERS, PromptSet, joined, read_file

_SLICE = re.compile(
    r"^(?P<name>.+?)\[(?P<start>\d{0,9}):(?P<stop>\d{0,9})(?::(?P<step>\d{0,9}))?\]$"
)


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except (OSError, ValueError):  # too long for a file name, as a prompt in place of one; a NUL
        return False


def read_prompts(spec: str | Path) -> PromptSet:
    """Read a prompt set by a known name or from a file, whole or a part of it.

    Args:
        spec: a name of :data:`toolkit.known_prompts.KNOWN`, or a path; either may go on with
            ``#`` and a category, with a Python slice, or both: ``advbench[1::2]``,
            ``strongreject#Violence``, ``strongreject#Violence[:20]``. Several with ``+``
            between them are one set, ``advbench[::2]+harmbench``: one after another, a
            message that came before left out.

    Raises:
        SafeNeuronError: no such set, file or category, a malformed file, nothing in the
            slice, or nothing beside a ``+``.
    """
    parts = parts_of(str(spec))
    if len(parts) > 1 and not all(parts):
        raise SafeNeuronError(f"{spec}: name a prompt set on both sides of each +")
    return joined([_read_one(part) for part in parts])


def parts_of(spec: str) -> list[str]:
    """The specs that ``+`` joins in one; a path may have a ``+`` in its name."""
    whole = "+" not in spec or _is_file_with_plus(spec)
    return [spec] if whole else [part.strip() for part in spec.split("+")]


def _is_file_with_plus(spec: str) -> bool:
    """Whether the sign is in a path's name, which slices and a category may follow."""
    name, part = spec, None
    while not _exists(name):
        head, part = slice_of(name)
        if part is None:
            head, _, category = name.rpartition("#")
            if "+" in category or "+" not in head:
                return False
        name = head
    return "+" in name


def _read_one(text: str) -> PromptSet:
    """One of the sets that ``+`` joins."""
    return sliced(text, lambda name: _read_part(name) if name == text else _read_one(name))


def _read_part(name: str) -> PromptSet:
    """What is left of a spec without slices at its end: a whole set, or one category of it."""
    if "#" not in name or _exists(name):
        return _read_whole(name)
    whole, _, category = name.rpartition("#")
    found = _read_one(whole).by_category()
    if category not in found:
        known = f"it has {', '.join(found)}" if found else "its prompts have none"
        raise SafeNeuronError(f"{whole} has no category {category[:60]!r}: {known}")
    return found[category]


def sliced(spec: str, read: Callable[[str], PromptSet]) -> PromptSet:
    """The slice that a spec may end in, of what ``read`` gives for the rest of it.

    Raises:
        SafeNeuronError: nothing is in the slice, or what ``read`` raises.
    """
    name, part = slice_of(spec)
    whole = read(name)
    if part is None:
        return whole
    if part.step == 0:
        raise SafeNeuronError(f"{spec}: the step of a slice can't be 0")
    chosen = whole[part]
    if not len(chosen):
        raise SafeNeuronError(f"{spec} holds no prompts: {name} has {len(whole)}")
    return chosen


def slice_of(spec: str) -> tuple[str, slice | None]:
    """The name or path in a spec, and the slice that it ends in, if any."""
    match = None if _exists(spec) else _SLICE.match(spec)
    if match is None:
        return spec, None
    parts = [int(match[key]) if match[key] else None for key in ("start", "stop", "step")]
    return match["name"], slice(*parts)


def _read_whole(name: str) -> PromptSet:
    if name in KNOWN:
        return PromptSet(name, tuple(KNOWN[name].load()))
    if Path(name).suffix.lower() in PARSERS or _exists(name):
        return read_file(Path(name))
    raise SafeNeuronError(
        f"no prompt set {name[:60]!r}: give a .txt, .csv, .json or .jsonl file, or one of "
        f"{', '.join(KNOWN)}"
    )
