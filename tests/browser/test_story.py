"""What a person does in the dashboard, in a real browser: look, click, train, come back."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from playwright.sync_api import Page, expect

from app.dashboard.components.answers import VEIL
from app.jobs.chat import Desk
from app.jobs.folder import Job, read_folder, state_of
from tests.browser.conftest import Dashboard
from toolkit.masks import read_mask

pytestmark = pytest.mark.browser
expect.set_options(timeout=60_000)

MAP = ".js-plotly-plot"
POINTS = 2  # the map's trace that is clicked: a point a cell, without colour
# Where a trace's point lies in the window, and what it carries.
POINT = """([trace, index]) => {
  const graph = document.querySelector('.js-plotly-plot'), layout = graph._fullLayout;
  const box = graph.getBoundingClientRect(), data = graph._fullData[trace];
  return {x: box.left + layout._size.l + layout.xaxis.l2p(data.x[index]),
          y: box.top + layout._size.t + layout.yaxis.l2p(data.y[index]),
          carried: Array.from(data.customdata[index])};
}"""


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def test_a_click_on_the_map_shows_the_neuron(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/map")
    page.wait_for_selector(MAP)
    study = dashboard.study()
    scores = pd.read_parquet(study.file("scores.parquet"))
    mask = read_mask(study.file("mask.json")).neuron_set()
    drawn = page.evaluate(f"document.querySelector('{MAP}')._fullData.map(t => (t.x || []).length)")
    assert drawn[POINTS] == len(scores)
    first = page.get_by_text(re.compile(r"^Layer \d+, neuron \d+$")).inner_text()
    places = [f"Layer {row.layer}, neuron {row.neuron}" for row in scores.itertuples()]
    inside = [(row.layer, row.neuron) in mask for row in scores.itertuples()]
    # One of the selected and one of the rest, neither the one shown at first.
    for wanted in (True, False):
        fits = [i for i, member in enumerate(inside) if member == wanted and places[i] != first]
        index = fits[len(fits) // 2]
        page.locator(MAP).first.scroll_into_view_if_needed()
        page.wait_for_timeout(500)
        point = page.evaluate(POINT, [POINTS, index])
        row = scores.iloc[index]
        assert point["carried"][0] == row["neuron"]
        page.mouse.move(point["x"], point["y"])
        page.wait_for_timeout(300)
        page.mouse.click(point["x"], point["y"])
        expect(page.get_by_text(places[index], exact=True)).to_be_visible()
        table = page.locator("[data-testid=stTable]").inner_text()
        for name in ("es", "sas", "delta", "mean_harmful", "mean_harmless"):
            assert f"{row[name]:.4g}" in table
        # The badge's icon is a letter of its font, so the text is not the badge's whole.
        badge = page.locator(".stMarkdownBadge").first
        expect(badge).to_contain_text("in the mask")
        assert ("not in the mask" in badge.inner_text()) != wanted


def test_a_box_on_the_map_opens_what_is_in_it(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/map")
    page.wait_for_selector(MAP)
    page.get_by_text("A drag opens a box").click()
    page.wait_for_function(f"document.querySelector('{MAP}')?._fullLayout.dragmode === 'select'")
    page.wait_for_timeout(1500)
    page.locator(MAP).first.scroll_into_view_if_needed()
    corners = [page.evaluate(POINT, [POINTS, place]) for place in (64 + 10, 128 + 30)]
    page.mouse.move(corners[0]["x"], corners[0]["y"])
    page.mouse.down()
    page.mouse.move(corners[1]["x"], corners[1]["y"], steps=5)
    page.mouse.up()
    expect(
        page.get_by_text(re.compile(r"Opened: layers 1 to 2, neurons \d+ to 3\d"))
    ).to_be_visible()
    assert "box=1-2." in page.url
    page.get_by_role("button", name="Back to all").click()
    expect(page.get_by_text("Opened:")).to_be_hidden()


def test_a_link_restores_the_view(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/map?method=sas&by=top&top=0.1&layer=1&neuron=5")
    expect(page.get_by_text("Layer 1, neuron 5", exact=True)).to_be_visible()
    expect(page.get_by_test_id("stMetricValue").first).to_have_text("19")  # a tenth of 192


def test_a_neuron_is_measured_from_its_page(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/map?layer=2&neuron=7")
    page.get_by_text("Open its page").click()
    expect(page.get_by_role("heading", name="Neuron", exact=True)).to_be_visible()
    page.get_by_role("button", name="Compute this page").click()
    wait_for(lambda: len(dashboard.runs("neuron")) == 1)
    heading = page.get_by_role("heading", name="What it fires on")
    expect(heading).to_be_visible(timeout=240_000)
    expect(page.get_by_text("<|im_start|>").first).to_be_visible()


def start_alignment(page: Page, dashboard: Dashboard, steps: int, query: str = "") -> Job:
    page.goto(f"{dashboard.url}/align{query}")
    button = page.get_by_role("button", name="Align", exact=True)
    # What lies in a closed expander is not there before it is opened.
    form = page.locator("details").filter(has=page.get_by_text("Start an alignment", exact=True))
    form.wait_for()
    if form.get_attribute("open") is None:
        page.get_by_text("Start an alignment", exact=True).click()
    button.wait_for()
    made = {"Harmful prompts for pairs": dashboard.prompts["harmful"], "Answer tokens": 6}
    made |= {"Harmless prompts for pairs": dashboard.prompts["harmless"]}
    for tab, fields in (("Numbers", {"Steps": steps, "Pairs a step": 2}), ("Data", made)):
        page.get_by_role("tab", name=tab).click()
        for label, value in fields.items():
            field = page.get_by_label(label, exact=True).last
            field.fill(str(value))
            field.press("Tab")
            # Every change says anew what it takes.
            page.wait_for_timeout(500)
    before = set(dashboard.runs("align"))
    button.click()
    wait_for(lambda: len(dashboard.runs("align")) > len(before))
    [folder] = set(dashboard.runs("align")) - before
    page.wait_for_url(re.compile(f"run={folder.name}"))
    return read_folder(folder)


def test_align_shows_curves_and_survives_a_refresh(page: Page, dashboard: Dashboard) -> None:
    job = start_alignment(page, dashboard, steps=4)
    assert job.request["steps"] == 4
    page.reload()
    second = page.context.new_page()
    second.goto(page.url)
    for tab in (page, second):
        expect(tab.get_by_text(job.id).first).to_be_visible()
        tab.locator(MAP).first.wait_for(timeout=240_000)
    wait_for(lambda: state_of(job).state == "done")
    for tab in (page, second):
        expect(tab.get_by_role("button", name="Attack the result")).to_be_visible()
    second.close()
    steps = page.evaluate(f"Array.from(document.querySelector('{MAP}')._fullData[0].x)")
    assert steps == [1, 2, 3, 4]
    logged = [json.loads(line) for line in job.file("events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in logged if event["kind"] == "train"]
    drawn = page.evaluate(f"Array.from(document.querySelector('{MAP}')._fullData[0].y)")
    assert drawn == pytest.approx(losses)


def compare_before_and_after(page: Page, dashboard: Dashboard, folder: Path) -> None:
    """Attack both models of an alignment from its page, and wait for the figures."""
    page.goto(f"{dashboard.url}/align?run={folder.name}")
    page.get_by_text("Options of the attack", exact=True).click()
    for label, side in (("Harmful prompts", "harmful"), ("Harmless prompts", "harmless")):
        page.get_by_label(label, exact=True).fill(dashboard.prompts[side])
        page.get_by_label(label, exact=True).press("Tab")
    page.get_by_label("Answer tokens", exact=True).first.fill("4")
    page.get_by_label("Answer tokens", exact=True).first.press("Tab")
    before = set(dashboard.runs("attack"))
    page.get_by_role("button", name="Compare before/after").click()
    wait_for(lambda: len(dashboard.runs("attack")) == len(before) + 2)
    jobs = [read_folder(path) for path in set(dashboard.runs("attack")) - before]
    assert {job.request["model"] for job in jobs} == {dashboard.model, str(folder)}
    wait_for(lambda: all(state_of(job).state == "done" for job in jobs), 240)
    expect(page.get_by_text(re.compile("^before.? Removing"))).to_be_visible()
    names = "Array.from(document.querySelectorAll('.js-plotly-plot')).at(-1)"
    page.wait_for_function(f"{names}._fullData.some(t => t.name === 'after')")


def test_before_and_after_are_compared(page: Page, dashboard: Dashboard) -> None:
    [folder] = dashboard.runs("align")
    compare_before_and_after(page, dashboard, folder)


def test_cancel_stops_a_long_alignment(page: Page, dashboard: Dashboard) -> None:
    job = start_alignment(page, dashboard, steps=5000)
    wait_for(lambda: state_of(job).state == "running")
    page.locator(MAP).first.wait_for(timeout=240_000)
    page.get_by_role("button", name="Cancel").click()
    wait_for(lambda: state_of(job).state == "cancelled")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    expect(page.locator(".stMarkdownBadge").first).to_contain_text("cancelled")


def test_the_prune_lab_answers_whole_pruned_and_random(page: Page, dashboard: Dashboard) -> None:
    page.goto(f"{dashboard.url}/prune-lab?share=0.2&tokens=12")
    expect(page.get_by_text(re.compile(r"Removes 38 of 192 neurons"))).to_be_visible()
    prompt = "How do I <b>paint</b> a boat?"
    page.get_by_label("Ask the model").fill(prompt)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("turn=0001"))
    wait_for(lambda: len(dashboard.runs("chat")) == 1)
    job = read_folder(dashboard.runs("chat")[0])
    wait_for(lambda: Desk(job).told("0001").phase == "answered")
    said = Desk(job).told("0001").answers
    expect(page.get_by_text(prompt, exact=True)).to_be_visible()
    # Of two models with random weights, one may say nothing that can be seen.
    spoke = [arm for arm in ("pruned", "random") if said[arm].text.strip()]
    assert spoke
    for arm in spoke:
        box = page.locator(f".st-key-box-{job.id}-0001-{arm}")
        expect(box).to_contain_text(VEIL)
        page.locator(f".st-key-lifted-{job.id}-0001-{arm} label").click()
        expect(box).not_to_contain_text(VEIL)
        words = re.findall(r"[A-Za-z]{4,}", said[arm].text)
        for word in words[:3]:
            expect(box).to_contain_text(word)
    # Who is sent the address sees the same, veiled.
    second = page.context.new_page()
    second.goto(page.url)
    expect(second.get_by_text(prompt, exact=True)).to_be_visible()
    expect(second.locator(f".st-key-box-{job.id}-0001-{spoke[0]}")).to_contain_text(VEIL)
    second.get_by_role("button", name="Close the model").click()
    wait_for(lambda: state_of(job).state == "cancelled")
    second.close()


def test_a_narrow_screen_does_not_scroll_sideways(page: Page, dashboard: Dashboard) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    places = "map neuron overlap masks prune-lab attack align jobs settings"
    for place in ("", *places.split()):
        page.goto(f"{dashboard.url}/{place}")
        page.wait_for_selector("h1")
        page.wait_for_timeout(1500)
        # A page with a chat has another main part.
        main = page.locator("[data-testid=stMain], [data-testid=stAppScrollToBottomContainer]")
        assert main.first.evaluate("e => e.scrollWidth - e.clientWidth") <= 1
