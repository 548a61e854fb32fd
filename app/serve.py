"""The dashboard and its worker as two child processes of one command."""

import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from app.dashboard.theme import THEME
from app.sign_in import guard
from toolkit.errors import SafeNeuronError
from toolkit.masks import LARGEST_MASK

MAIN = Path(__file__).parent / "dashboard" / "main.py"
GRACE = 110.0  # seconds; the worker's job saves meanwhile
WORKER = "from app.jobs.worker import work; work()"
# Has Linux send SIGTERM (15) when the one that serves is killed; 1 is PR_SET_PDEATHSIG.
DIE_WITH_PARENT = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
)
READY = 60.0  # seconds that the page server has to become healthy

FLAGS = {
    "server.headless": "true",
    "browser.gatherUsageStats": "false",
    "server.fileWatcherType": "none",
    "client.toolbarMode": "viewer",
    # Tracebacks go to the terminal; a page shows one line.
    "client.showErrorDetails": "none",
    "server.maxUploadSize": str(LARGEST_MASK >> 20),
    "server.enableXsrfProtection": "true",
}


def serve(
    port: int, address: str = "127.0.0.1", with_worker: bool = True, open_to_all: bool = False
) -> int:
    """Serve the dashboard until SIGINT or SIGTERM, or until a child dies.

    Args:
        port: of the dashboard.
        address: to listen at; the default is reachable from this machine alone.
        with_worker: run queued jobs here too.
        open_to_all: listen to other machines although sign-in is off.

    Returns:
        0 when it was asked to stop, else the code of the child that died.

    Raises:
        SafeNeuronError: the port is taken; others could reach it and sign-in is off or
            misconfigured.
    """
    sign_in = guard(address, open_to_all)
    _require_free(port, address)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    flags = FLAGS | THEME | sign_in | {"server.port": str(port), "server.address": address}
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN)]
    command += [f"--{name}={value}" for name, value in flags.items()]
    children = [_start(command)]
    try:
        if with_worker:
            children.append(_start([sys.executable, "-c", WORKER]))
        threading.Thread(target=_announce, args=(port, address, stop), daemon=True).start()
        while not stop.wait(0.3):
            for child in children:
                if child.poll() is not None:
                    return child.returncode or 1
        return 0
    finally:
        _stop(children)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    if sys.platform == "linux":
        command = [sys.executable, "-c", DIE_WITH_PARENT, *command]
    # In a session of its own: Ctrl-C reaches us alone, and we stop both in good order.
    return subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)


def _stop(children: list["subprocess.Popen[bytes]"]) -> None:
    for child in children:
        if child.poll() is None:
            child.terminate()
    end = time.monotonic() + GRACE
    for child in children:
        try:
            child.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _require_free(port: int, address: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SafeNeuronError(
                f"cannot listen at {address}:{port}: {reason}; choose another --port"
            ) from error


def _announce(port: int, address: str, stop: threading.Event) -> None:
    host = "127.0.0.1" if address == "0.0.0.0" else address
    end = time.monotonic() + READY
    while not stop.wait(0.3) and time.monotonic() < end:
        try:
            urllib.request.urlopen(f"http://{host}:{port}/_stcore/health", timeout=2).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            continue
        sys.stderr.write(f"dashboard: http://{host}:{port}\n")
        sys.stderr.flush()
        return
