"""From an empty store to a link that a second person opens: one walk, on two models."""

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from app.jobs.chat import Desk
from app.jobs.folder import Job, read_folder, state_of
from tests.browser.conftest import Dashboard, launch, save_prompts
from tests.browser.test_story import (
    MAP,
    POINT,
    POINTS,
    compare_before_and_after,
    start_alignment,
    wait_for,
)
from tests.homes import link_models
from tests.served import served
from tests.tiny import save_tiny
from toolkit.masks import parse_mask
from toolkit.models.sources import resolve
from toolkit.prompts import read_prompts

pytestmark = pytest.mark.browser

EMBEDDED = "smollm2-135m-aligned"
SLOW = 300.0  # seconds that a step on the embedded model may take


@pytest.fixture(
    scope="module",
    params=["tiny", pytest.param("embedded", marks=[pytest.mark.embedded, pytest.mark.long])],
)
def empty(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Dashboard]:
    """A dashboard over an empty store, and the model that is to be studied there."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "home").mkdir()
    model, prompts = EMBEDDED, save_prompts(folder)
    if request.param == "tiny":
        model = str(save_tiny(folder / "tiny"))
    else:
        prompts = {"harmful": "advbench[:8]", "harmless": "harmless-train[:8]"}
        resolve(model)
        for spec in prompts.values():
            read_prompts(spec)
        link_models(folder / "home")
    with served(folder) as url:
        yield Dashboard(url, folder / "home", model, prompts)


def fill(page: Page, **fields: object) -> None:
    """Write into fields by their labels, underscores for spaces."""
    for label, value in fields.items():
        field = page.get_by_label(label.replace("_", " "), exact=True).first
        field.fill(str(value))
        field.press("Tab")


def started(page: Page, dashboard: Dashboard, verb: str, button: str) -> Job:
    """Press a button, and wait for the end of the job that it starts."""
    before = set(dashboard.runs(verb))
    page.get_by_role("button", name=button, exact=True).click()
    wait_for(lambda: len(dashboard.runs(verb)) == len(before) + 1)
    [folder] = set(dashboard.runs(verb)) - before
    job = read_folder(folder)
    wait_for(lambda: state_of(job).state not in ("queued", "running"), SLOW)
    assert state_of(job).state == "done", state_of(job).error
    return job


def identify(page: Page, dashboard: Dashboard) -> None:
    """The empty store says what to do, and its form does it."""
    page.goto(f"{dashboard.url}/map?{urlencode({'model': dashboard.model})}")
    expect(page.get_by_text(re.compile("No study yet"))).to_be_visible()
    fill(page, Harmful_prompts=dashboard.prompts["harmful"])
    fill(page, Harmless_prompts=dashboard.prompts["harmless"])
    fill(page, **{"Top share, %": 5})
    job = started(page, dashboard, "identify", "Identify")
    assert job.request["model"] == dashboard.model


def click_a_neuron(page: Page, dashboard: Dashboard) -> tuple[int, int]:
    """A click on the map chooses a neuron that was not chosen before."""
    page.wait_for_selector(MAP)
    shown = page.get_by_text(re.compile(r"^Layer \d+, neuron \d+$"))
    before = shown.inner_text()
    page.locator(MAP).first.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    drawn = page.evaluate(f"document.querySelector('{MAP}')._fullData[{POINTS}].x.length")
    index = drawn // 2
    point = page.evaluate(POINT, [POINTS, index])
    layer = page.evaluate(f"document.querySelector('{MAP}')._fullData[{POINTS}].y[{index}]")
    place = (int(layer), int(point["carried"][0]))
    title = f"Layer {place[0]}, neuron {place[1]}"
    assert title != before
    page.mouse.move(point["x"], point["y"])
    page.wait_for_timeout(300)
    page.mouse.click(point["x"], point["y"])
    expect(page.get_by_text(title, exact=True)).to_be_visible()
    return place


def look_at_it(page: Page, dashboard: Dashboard, place: tuple[int, int]) -> bool:
    """Its page is measured; it joins or leaves the working mask. Whether it joined."""
    page.get_by_text("Open its page").click()
    expect(page.get_by_role("heading", name="Neuron", exact=True)).to_be_visible()
    job = started(page, dashboard, "neuron", "Compute this page")
    assert (job.request["layer"], job.request["neuron"]) == place
    expect(page.get_by_role("heading", name="What it fires on")).to_be_visible()
    expect(page.get_by_text("Promoted tokens")).to_be_visible()
    button = page.get_by_role("button", name=re.compile("working mask"))
    joins = "Add" in button.inner_text()
    button.click()
    expect(button).to_contain_text("Take from" if joins else "Add to")
    return joins


def ask_it(page: Page, dashboard: Dashboard) -> None:
    """The prune lab answers whole, without a twentieth of the neurons, and without others."""
    asked = urlencode({"model": dashboard.model, "share": 0.05, "tokens": 8})
    page.goto(f"{dashboard.url}/prune-lab?{asked}")
    expect(page.get_by_text(re.compile(r"Removes .* neurons"))).to_be_visible()
    page.get_by_label("Ask the model").fill("How do I paint a boat?")
    page.keyboard.press("Enter")
    wait_for(lambda: len(dashboard.runs("chat")) == 1)
    job = read_folder(dashboard.runs("chat")[0])
    wait_for(lambda: Desk(job).told("0001").phase == "answered", SLOW)
    assert set(Desk(job).told("0001").answers) == {"whole", "pruned", "random"}
    # Drawn anew, so that no click meets a page that is just being replaced.
    page.reload()
    for title in ("Whole", "Pruned", "Random control"):
        expect(page.get_by_text(title, exact=True).first).to_be_visible()
    page.get_by_role("button", name="Close the model").click()
    wait_for(lambda: state_of(job).state == "cancelled")


def attack_it(page: Page, dashboard: Dashboard) -> None:
    """The paper's settings with the study's mask; the table has them all."""
    mask = str(dashboard.study().file("mask.json"))
    page.goto(f"{dashboard.url}/attack?{urlencode({'model': dashboard.model, 'mask': mask})}")
    fill(page, Harmful_prompts=dashboard.prompts["harmful"])
    fill(page, Harmless_prompts=dashboard.prompts["harmless"], Random_seeds=2, Answer_tokens=8)
    job = started(page, dashboard, "attack", "Attack")
    assert job.request["mask"] == mask
    expect(page.get_by_text(re.compile("Removing .* neurons")).first).to_be_visible()
    expect(page.locator(MAP).first).to_contain_text("FULL")


def take_it_along(page: Page, dashboard: Dashboard, place: tuple[int, int], joined: bool) -> None:
    """The working mask as a file, with the neuron that joined it or without the one that left."""
    page.goto(f"{dashboard.url}/masks")
    # The newest is shown at first.
    page.wait_for_url(re.compile("masks=w"))
    with page.expect_download() as saved:
        page.get_by_role("button", name="mask.json").click()
    mask = parse_mask(Path(saved.value.path()).read_text("utf-8")).neuron_set()
    assert (place in mask) == joined


def same_view(page: Page, chromium: Browser, dashboard: Dashboard) -> None:
    """Who is sent the map's address sees what its sender saw, in a browser of their own."""
    page.goto(f"{dashboard.url}/map?method=sas&by=top&top=0.05&color=es&layer=1&neuron=3")
    page.wait_for_selector(MAP)

    def seen(tab: Page) -> list[object]:
        expect(tab.get_by_text("Layer 1, neuron 3", exact=True)).to_be_visible()
        tab.wait_for_selector(MAP)
        tab.wait_for_timeout(2000)
        drawn = f"Array.from(document.querySelector('{MAP}')._fullData[{POINTS}].x)"
        figures = tab.get_by_test_id("stMetricValue").all_inner_texts()
        return [figures, tab.locator("[data-testid=stTable]").inner_text(), tab.evaluate(drawn)]

    mine, link = seen(page), page.url
    other = launch(chromium.browser_type)
    tab = other.new_page(viewport={"width": 1280, "height": 1000})
    tab.goto(link)
    theirs = seen(tab)
    other.close()
    assert theirs == mine


@pytest.mark.timeout(1800)
def test_the_whole_story(page: Page, empty: Dashboard, chromium: Browser) -> None:
    identify(page, empty)
    place = click_a_neuron(page, empty)
    joined = look_at_it(page, empty, place)
    ask_it(page, empty)
    attack_it(page, empty)
    mask = str(empty.study().file("mask.json"))
    query = urlencode({"model": empty.model, "mask": mask})
    job = start_alignment(page, empty, 2, f"?{query}")
    wait_for(lambda: state_of(job).state not in ("queued", "running"), SLOW)
    assert state_of(job).state == "done", state_of(job).error
    compare_before_and_after(page, empty, job.folder)
    take_it_along(page, empty, place, joined)
    same_view(page, chromium, empty)
