"""What this installation is: where it keeps things and how much, its devices, its versions."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from app.jobs.devices import devices, nvidia, who_has
from app.jobs.queue import queue_url
from app.jobs.worker import workers
from app.settings import read_settings
from toolkit.home import home

PACKAGES = (
    *("safeneuron", "torch", "transformers", "trl", "peft", "accelerate", "datasets"),
    *("transformer-lens", "nnsight", "numpy", "pandas", "scipy", "plotly", "streamlit", "huey"),
)
PLACES = {
    "store": "results: studies, attacks, comparisons",
    "runs": "jobs, and the models that alignments made",
    "models": "embedded models, converted",
    "masks": "masks that were kept or brought",
    "wheels": "downloads of pinned packages",
}


@dataclass(frozen=True)
class Place:
    """A folder of the home and what it takes on the disk.

    Args:
        name: its name.
        holds: what is in it, in words.
        size: bytes; a file that is linked is not counted.
        files: how many.
    """

    name: str
    holds: str
    size: int
    files: int


def places() -> list[Place]:
    """The folders under the home; what no name is known for is ``other``."""
    found = {name: [0, 0] for name in (*PLACES, "other")}
    root = home()
    for folder, _, files in os.walk(root):
        parts = Path(folder).relative_to(root).parts
        name = parts[0] if parts and parts[0] in PLACES else "other"
        for file in files:
            try:
                facts = (Path(folder) / file).lstat()
            except OSError:
                continue  # gone meanwhile
            found[name][0] += facts.st_size
            found[name][1] += 1
    holds = {**PLACES, "other": "the queue, settings, locks"}
    return [Place(name, holds[name], size, files) for name, (size, files) in found.items()]


def versions() -> dict[str, str]:
    """What is installed, without loading any of it."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def devices_now() -> list[dict[str, str]]:
    """Each device that jobs run on here, what it is, and whether a job has it."""
    settings = read_settings()
    taken, cards = who_has(settings), nvidia()
    rows = []
    for name in devices(settings):
        number = name.removeprefix("cuda:")
        known = number.isdigit() and int(number) < len(cards)
        what = cards[int(number)] if known else f"{os.cpu_count()} CPU cores"
        rows.append({"device": name, "is": what, "now": "busy" if taken[name] else "free"})
    return rows


def queue_place() -> str:
    """Where jobs wait, without a password."""
    scheme, _, rest = queue_url().partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def workers_now() -> list[dict[str, str]]:
    """The workers that run jobs of this home."""
    return [
        {
            "host": sign.host.partition("/")[0],
            "pid": str(sign.pid),
            "devices": ", ".join(sign.devices),
        }
        for sign in workers()
    ]
