"""One heavy job a device: who has it is a lock that the job's own process holds.

The lock is taken on an open file that the process inherits. It lasts as long as the process
or a launcher above it lives, whoever started it and whatever becomes of that one.
"""

import fcntl
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.jobs.verbs import TRAINING, Verb
from app.settings import Settings
from toolkit.errors import SafeNeuronError
from toolkit.home import home

CUDA = re.compile(r"cuda:([0-9]+)")


@dataclass(frozen=True)
class Slot:
    """The devices that a job may use, locked.

    Args:
        devices: their names.
        files: the descriptors that hold the locks, for the job's process to inherit.
    """

    devices: tuple[str, ...]
    files: tuple[int, ...]

    def release(self) -> None:
        """Let go in this process; a job's process that inherited them still has them."""
        for file in self.files:
            os.close(file)


@lru_cache(maxsize=1)
def found_devices() -> tuple[str, ...]:
    """This machine's devices: its CUDA devices that may be seen, else the CPU."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        count = len([part for part in visible.split(",") if part.strip() not in {"", "-1"}])
    else:
        count = len(nvidia())
    return tuple(f"cuda:{index}" for index in range(count)) or ("cpu",)


@lru_cache(maxsize=1)
def nvidia() -> tuple[str, ...]:
    """The names of the machine's NVIDIA devices with their memory, without loading torch."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    asked = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in told.stdout.splitlines() if line.strip())


def devices(settings: Settings) -> tuple[str, ...]:
    """The devices that jobs run on here."""
    return settings.devices or found_devices()


def is_launched(settings: Settings, verb: Verb) -> bool:
    """Whether such a job goes through the launcher."""
    return bool(settings.launcher) and (settings.launches == "everything" or verb in TRAINING)


def jobs_at_once(settings: Settings) -> int:
    """How many jobs one worker runs at the same time."""
    elsewhere = settings.launched_elsewhere if settings.launcher else 0
    return len(devices(settings)) + elsewhere


def take(settings: Settings, verb: Verb) -> Slot | None:
    """Lock what a job of this verb needs; None while others have it.

    A launched job takes every device, since it is the launcher that shares them out, or
    where it runs elsewhere one of the places that the settings give to such jobs.

    Raises:
        SafeNeuronError: the locks' folder cannot be written.
    """
    here = devices(settings)
    if not is_launched(settings, verb):
        return next(filter(None, (_lock([name]) for name in here)), None)
    if not settings.launched_elsewhere:
        return _lock(sorted(here))
    places = (f"launched-{place}" for place in range(settings.launched_elsewhere))
    return next(filter(None, (_lock([name]) for name in places)), None)


def _lock(names: Sequence[str]) -> Slot | None:
    files: list[int] = []
    for name in names:
        path = home() / "devices" / f"{socket.gethostname()}-{name.replace(':', '')}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            Slot((), tuple(files)).release()
            raise SafeNeuronError(
                f"cannot write {path}: {error.strerror}; set SAFENEURON_HOME"
            ) from error
        files.append(file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Slot((), tuple(files)).release()
            return None
    return Slot(tuple(names), tuple(files))


def environment(slot: Slot, launched: bool) -> dict[str, str]:
    """The variables that keep a job to its devices; a launcher shares them out itself."""
    told = {"SAFENEURON_DEVICE": ",".join(slot.devices)}
    if launched or len(slot.devices) != 1:
        return told
    [name] = slot.devices
    if name == "cpu":
        return told | {"CUDA_VISIBLE_DEVICES": ""}
    if found := CUDA.fullmatch(name):
        index = int(found[1])
        visible = [v for v in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if v.strip()]
        shown = visible[index].strip() if index < len(visible) else str(index)
        return told | {"CUDA_VISIBLE_DEVICES": shown}
    return told


def who_has(settings: Settings) -> dict[str, bool]:
    """Each device of this machine, and whether a job has it now."""
    taken = {}
    for name in devices(settings):
        slot = _lock([name])
        taken[name] = slot is None
        if slot is not None:
            slot.release()
    return taken
