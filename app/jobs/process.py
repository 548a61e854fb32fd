"""The processes of a job on this machine: which one it is, and what is left of it.

A pid is used again, and the clock may be set back: a process is known by its start in
ticks since boot, and every process of a job, however far down, carries the job's folder in
its environment.
"""

import os
import signal
import socket
import sys
import time
from functools import lru_cache
from pathlib import Path

import psutil

MARK = "SAFENEURON_JOB"
_STAT_START = 19  # of the fields after the command's closing bracket; proc(5) field 22


@lru_cache(maxsize=1)
def here() -> str:
    """Names the place whose pids can be asked for: this host, this boot, this container."""
    parts = [socket.gethostname()]
    if sys.platform == "linux":
        parts.append(_read("/proc/sys/kernel/random/boot_id")[:8])
        try:
            parts.append(str(Path("/proc/self/ns/pid").readlink()).strip("pid:[]"))
        except OSError:
            parts.append("")
    return "/".join(parts)


def _read(path: str) -> str:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return ""


def started(pid: int) -> str | None:
    """What tells a living process from a later one of the same pid; None when it is gone.

    A zombie has ended: nobody has asked how, that is all.
    """
    if sys.platform == "linux":
        fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        return None if not fields or fields[0] in "ZX" else fields[_STAT_START]
    try:
        process = psutil.Process(pid)
        gone = process.status() == psutil.STATUS_ZOMBIE
        return None if gone else f"{process.create_time():.2f}"
    except (psutil.Error, ValueError):
        return None


def marked(folder: Path) -> list[psutil.Process]:
    """Every living process of the job in ``folder`` but this one, launchers included."""
    found = []
    wanted = str(folder.resolve())
    for process in psutil.process_iter():
        try:
            ours = process.pid != os.getpid() and process.environ().get(MARK) == wanted
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or it ended meanwhile
    return found


def end_marked(folder: Path, number: signal.Signals = signal.SIGKILL) -> int:
    """Signal every process of a job; how many there were."""
    processes = marked(folder)
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.Error:
            continue  # it ended meanwhile
    return len(processes)


def wait_gone(folder: Path, seconds: float) -> bool:
    """Wait until no process of a job is left; whether that came about."""
    end = time.monotonic() + seconds
    while marked(folder):
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
