"""A served dashboard over a tiny model's study, and a headless chromium to look at it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.tiny import HARMFUL, HARMLESS

# Map points are WebGL: without a graphics card chromium must be told to draw them itself.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader"]
FLAGS += ["--enable-unsafe-swiftshader"]
SERVE = "import sys; from app.cli import main; sys.argv[0] = 'safeneuron'; main()"
STARTS, STOPS = 120.0, 60.0  # seconds


@dataclass(frozen=True)
class Dashboard:
    """Where it is served, and what lies behind it."""

    url: str
    home: Path
    model: Path
    prompts: dict[str, Path]
    scores: Path

    def runs(self, verb: str) -> list[Path]:
        """The job folders of a verb, oldest first."""
        # A folder without job.json is still being made.
        return sorted(p.parent for p in (self.home / "runs").glob(f"*-{verb}-*/job.json"))


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


@pytest.fixture(scope="module")
def dashboard(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """`safeneuron serve` with its worker, over a home that holds one study."""
    folder = tmp_path_factory.mktemp("served")
    home = folder / "home"
    prompts = {side: folder / f"{side}.json" for side in ("harmful", "harmless")}
    prompts["harmful"].write_text(json.dumps(HARMFUL), "utf-8")
    prompts["harmless"].write_text(json.dumps(HARMLESS), "utf-8")

    from analysis.requests import IdentifyRequest
    from analysis.store import Store
    from analysis.study import identify

    names = {side: str(path) for side, path in prompts.items()}
    request = IdentifyRequest(model=str(tiny_llama), top=0.1, **names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFENEURON_HOME", str(home))
        found = identify(request, store=Store(home / "store"))

    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environment = os.environ | {"SAFENEURON_HOME": str(home), "OMP_NUM_THREADS": "1"}
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
        yield Dashboard(url, home, tiny_llama, prompts, found.entry.file("scores.parquet"))
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


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """The system's chromium, headless."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    assert path, "no chromium: apt-get install chromium, or leave these out with -m 'not browser'"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab; an error on the page fails the test that saw it."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1000})
    tab = context.new_page()
    tab.set_default_timeout(60_000)
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    yield tab
    shown = tab.locator("[data-testid=stException]").all_inner_texts()
    context.close()
    assert not shown, shown
    assert not errors, errors
