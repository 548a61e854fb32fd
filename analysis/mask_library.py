"""The masks at hand: those of studies, those that were kept, and the one being worked on.

A kept mask is a file ``masks/<hash>.json`` under the store's home, named by what it holds.
Each model has at most one working mask, to which neurons are added one by one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, reduce
from operator import and_, or_, sub
from pathlib import Path
from typing import Final, Literal

from filelock import FileLock

from analysis.store import Entry, Store
from toolkit.errors import SafeNeuronError
from toolkit.home import home
from toolkit.masks import MaskFile, MethodInfo, parse_mask, read_mask
from toolkit.neurons import NeuronSet

Origin = Literal["study", "kept", "working"]
Operation = Literal["union", "intersection", "difference"]
OPERATIONS: Final = {"union": or_, "intersection": and_, "difference": sub}
WORKING = "working-"
Place = tuple[int, int]


@dataclass(frozen=True)
class Card:
    """A mask in a line.

    Args:
        path: its file.
        origin: a study's, kept by somebody, or a model's working mask.
        study: the key of the study it came with.
        source, fingerprint, widths: its model.
        method: how it was made.
        count, fraction: how many neurons, and which share of the model's.
        parts: the scores that it tells apart.
        sha256: names its neurons.
        created: when, in UTC.
    """

    path: Path
    origin: Origin
    study: str | None
    source: str
    fingerprint: str
    widths: tuple[int, ...]
    method: str
    count: int
    fraction: float
    parts: tuple[str, ...]
    sha256: str
    created: datetime


def folder() -> Path:
    """Where kept masks are."""
    return home() / "masks"


def cards(store: Store | None = None) -> list[Card]:
    """Every mask that can be read: the working ones, the kept ones, the studies', newest first."""
    found = []
    for path in sorted(folder().glob("*.json")) if folder().is_dir() else ():
        origin: Origin = "working" if path.name.startswith(WORKING) else "kept"
        found.append(_card(path, origin, None))
    for entry in (store or Store()).entries("identify"):
        found.append(_card(entry.file("mask.json"), "study", entry))
    order = {"working": 0, "kept": 1, "study": 2}
    read = [card for card in found if card is not None]
    return sorted(read, key=lambda card: (order[card.origin], -card.created.timestamp()))


def _card(path: Path, origin: Origin, entry: Entry | None) -> Card | None:
    try:
        facts = path.stat()
        return _read(path, facts.st_mtime_ns, facts.st_size, origin, entry and entry.key)
    except (OSError, SafeNeuronError):
        return None  # damaged, or gone meanwhile


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int, origin: Origin, study: str | None) -> Card:
    mask = read_mask(path)
    return Card(
        path=path,
        origin=origin,
        study=study,
        source=mask.model.source,
        fingerprint=mask.model.fingerprint,
        widths=tuple(mask.model.neurons_per_layer),
        method=mask.method.name,
        count=mask.count,
        fraction=mask.fraction,
        parts=tuple(mask.parts),
        sha256=mask.sha256,
        created=mask.created,
    )


def keep(mask: MaskFile) -> Path:
    """Write a mask into the library.

    Raises:
        SafeNeuronError: it has no neurons, or the folder cannot be written.
    """
    if not mask.count:
        raise SafeNeuronError("the mask has no neurons, so there is nothing to keep")
    path = folder() / f"{mask.sha256[:16]}.json"
    mask.write(path)
    return path


def keep_text(text: str, name: str) -> Path:
    """Put a mask that somebody brings into the library.

    Args:
        text: the file's.
        name: how errors call it.

    Raises:
        SafeNeuronError: it is no valid mask, or has no neurons.
    """
    return keep(parse_mask(text, name))


def discard(card: Card) -> None:
    """Take a mask out of the library.

    Raises:
        SafeNeuronError: it came with a study, or cannot be deleted.
    """
    if card.origin == "study":
        raise SafeNeuronError(
            "this mask came with a study; 'safeneuron cache rm identify KEY' removes both"
        )
    try:
        card.path.unlink(missing_ok=True)
    except OSError as error:
        raise SafeNeuronError(f"cannot delete {card.path}: {error.strerror}") from error


def combine(masks: Sequence[MaskFile], operation: Operation) -> MaskFile:
    """The union, the intersection, or the first mask without the others.

    The result is of the first mask's model; its method names the masks it is made of.

    Raises:
        SafeNeuronError: fewer than two masks, or of models of different shape.
    """
    if len(masks) < 2:
        raise SafeNeuronError(f"a {operation} needs at least two masks; choose one more")
    first = masks[0]
    neurons: NeuronSet = reduce(OPERATIONS[operation], (mask.neuron_set() for mask in masks))
    names = [f"{mask.method.name} {mask.sha256[:8]}" for mask in masks]
    method = MethodInfo(
        name=f"{operation} of {', '.join(names)}"[:200],
        parameters={"operation": operation, "of": [mask.sha256 for mask in masks]},
    )
    return MaskFile.of(neurons, first.model, method, first.prompts)


def edit(mask: MaskFile, add: Iterable[Place] = (), take: Iterable[Place] = ()) -> MaskFile:
    """A mask with some neurons more and some less.

    Raises:
        SafeNeuronError: a neuron is out of range.
    """
    widths = mask.model.neurons_per_layer
    neurons = (mask.neuron_set() | _of(widths, add)) - _of(widths, take)
    method = MethodInfo(name="by hand", parameters={"from": mask.sha256})
    return MaskFile.of(neurons, mask.model, method, mask.prompts)


def _of(widths: Sequence[int], places: Iterable[Place]) -> NeuronSet:
    layers: dict[int, set[int]] = {}
    for layer, neuron in places:
        layers.setdefault(layer, set()).add(neuron)
    return NeuronSet(widths, layers)


def working_path(fingerprint: str) -> Path:
    """The file of a model's working mask, whether or not there is one."""
    return folder() / f"{WORKING}{fingerprint[:16]}.json"


def read_working(mask: MaskFile) -> MaskFile:
    """The working mask of a mask's model; one without neurons where there is none yet.

    Raises:
        SafeNeuronError: its file is damaged.
    """
    path = working_path(mask.model.fingerprint)
    if path.is_file():
        return read_mask(path)
    method = MethodInfo(name="by hand", parameters={})
    nothing = NeuronSet.empty(mask.model.neurons_per_layer)
    return MaskFile.of(nothing, mask.model, method, mask.prompts)


def change_working(
    mask: MaskFile, add: Iterable[Place] = (), take: Iterable[Place] = ()
) -> MaskFile:
    """Add neurons to the working mask of a mask's model, or take some from it.

    Raises:
        SafeNeuronError: a neuron is out of range, or the file cannot be read or written.
    """
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / ".working.lock"):
        changed = edit(read_working(mask), add, take)
        changed.write(working_path(mask.model.fingerprint))
    return changed
