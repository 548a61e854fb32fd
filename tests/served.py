"""`safeneuron serve` as a process of its own, for the tests and benchmarks that look at it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVE = "import sys; from app.cli import main; sys.argv[0] = 'safeneuron'; main()"
STARTS, STOPS = 120.0, 60.0  # seconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_stcore/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """`safeneuron serve` with its worker over ``folder``/home; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"SAFENEURON_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    # The prompts lie beside the store, where pages may not read unless they are told.
    environment["SAFENEURON_FOLDERS"] = str(folder)
    command = [sys.executable, "-c", SERVE, "serve", "--port", str(port)]
    log = (folder / "serve.log").open("w")
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + STARTS
        while not healthy(url):
            assert process.poll() is None, (folder / "serve.log").read_text("utf-8")
            assert time.monotonic() < end, "the dashboard did not become healthy"
            time.sleep(0.3)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOPS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        finally:
            log.close()
    assert not healthy(url), "serve left its page server behind"
