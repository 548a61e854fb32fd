"""A served dashboard over a tiny model's study, and a headless chromium to look at it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserType, Page, sync_playwright

from analysis.store import Entry, Store
from tests.served import served
from tests.tiny import HARMFUL, HARMLESS

# Map points are WebGL: without a graphics card chromium must be told to draw them itself.
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--use-angle=swiftshader"]
FLAGS += ["--enable-unsafe-swiftshader"]


@dataclass(frozen=True)
class Dashboard:
    """Where it is served, and what lies behind it."""

    url: str
    home: Path
    model: str
    prompts: dict[str, str]

    def study(self) -> Entry:
        """The newest study."""
        return next(iter(Store(self.home / "store").entries("identify")))

    def runs(self, verb: str) -> list[Path]:
        """The job folders of a verb, oldest first."""
        # A folder without job.json is still being made.
        return sorted(p.parent for p in (self.home / "runs").glob(f"*-{verb}-*/job.json"))


def save_prompts(folder: Path) -> dict[str, str]:
    """Few prompts of each side as files in a folder."""
    sides = {"harmful": HARMFUL, "harmless": HARMLESS}
    for side, texts in sides.items():
        (folder / f"{side}.json").write_text(json.dumps(texts), "utf-8")
    return {side: str(folder / f"{side}.json") for side in sides}


@pytest.fixture(scope="module")
def dashboard(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    """A dashboard over a home that holds one study of a tiny model."""
    from analysis.requests import IdentifyRequest
    from analysis.study import identify

    folder = tmp_path_factory.mktemp("served")
    home, prompts = folder / "home", save_prompts(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFENEURON_HOME", str(home))
        asked = IdentifyRequest(model=str(tiny_llama), top=0.1, **prompts)
        identify(asked, store=Store(home / "store"))
    with served(folder) as url:
        yield Dashboard(url, home, str(tiny_llama), prompts)


def launch(kind: BrowserType) -> Browser:
    """The system's chromium, headless."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    assert path, "no chromium: apt-get install chromium, or leave these out with -m 'not browser'"
    return kind.launch(executable_path=path, args=FLAGS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser for the tests of a file."""
    with sync_playwright() as playwright:
        browser = launch(playwright.chromium)
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
