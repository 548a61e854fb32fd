"""How soon the dashboard answers over a large study, and whether its memory stays flat.

    python -m tests.benchmarks.bench_dashboard --json OUT

A stored study of 80 x 28,672 neurons. Each figure is the server's own time for a page's script,
from the wish to the last element, in a process that has the imports behind it:

- *first draw*: the Safety map with nothing cached; and each other page that shows results.
- *threshold*: a slider moved on the Safety map, by threshold and by share.
- *payload*: what the map sends, whole and one layer opened.
- *sessions*: ten visitors of a served page, each moving a threshold again and again, a few
  seconds apart; the 95th percentile of the time to the last element, with its transfer.
- *memory*: of the process, over 500 interactions after the first 100.

Baselines: a plain copy of the table for each session, as ``st.cache_data`` keeps it; and a map
that sends a point for every neuron.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from streamlit.testing.v1 import AppTest

import app.dashboard
from analysis.figures import safety_map_figure
from analysis.safety_map import Window
from analysis.select import Selection, select_parts
from analysis.store import Entry, Store
from analysis.tables import write_parquet
from tests.benchmarks.visitor import Visitor
from tests.served import served
from toolkit.files import sha256_text
from toolkit.masks import MaskFile, MaskPrompts, MethodInfo, ModelInfo, PromptsInfo

MAIN = str(Path(app.dashboard.__file__).parent / "main.py")
PAGES = ("safety_map", "neuron", "overlap", "masks", "home")
LIMITS = {
    "first_draw_s": 1.5,
    "threshold_s": 0.3,
    "payload_bytes": 1_000_000,
    "sessions_p95_s": 2.0,
    "memory_growth": 0.05,
}
LOOKS = 2.5  # seconds between a visitor's moves, give or take a half of it
SETTLED = 100  # interactions before memory is looked at


def save_study(layers: int, width: int, name: str) -> Entry:
    """A study of random scores, most of it as a model's would be: few neurons stand out."""
    rng = np.random.default_rng(0)
    total = layers * width
    es = 0.6 * rng.normal(size=total) + (rng.random(total) < 0.01) * rng.exponential(2, size=total)
    table = pd.DataFrame(
        {
            "layer": np.repeat(np.arange(layers, dtype=np.int32), width),
            "neuron": np.tile(np.arange(width, dtype=np.int32), layers),
            "mean_harmful": es / 2,
            "mean_harmless": np.zeros(total),
            "pooled_std": np.ones(total),
            "delta": es / 2,
            "es": es,
            "sas": 1.4 * es + 0.3 * rng.normal(size=total),
            "t": 10 * es,
            "t_p": np.full(total, 0.5),
        }
    )
    widths = [width] * layers
    selection = Selection("es+sas", 2.0, 3.0)
    parts = select_parts(table, widths, selection)
    model = ModelInfo(
        source=name,
        fingerprint=sha256_text(name),
        architecture="LlamaForCausalLM",
        layers=layers,
        neurons_per_layer=widths,
    )
    side = PromptsInfo(name="prompts", sha256="b" * 64, count=260)
    parameters = selection.parameters() | {"position": "last"}
    mask = MaskFile.of(
        reduce(or_, parts.values()),
        model,
        MethodInfo(name="es+sas", parameters=parameters),
        MaskPrompts(harmful=side, harmless=side),
        parts,
    )

    def write(folder: Path) -> None:
        write_parquet(table, folder / "scores.parquet")
        mask.write(folder / "mask.json")

    summary = {"model": name, "fingerprint": model.fingerprint, "architecture": "llama"}
    summary |= {"widths": widths, "count": mask.count, "fraction": mask.fraction}
    summary |= {"method": "es+sas", "position": "last", "parameters": parameters}
    summary |= {"harmful": "prompts", "harmless": "prompts"}
    return Store().save("identify", {"of": name}, f"safety neurons of {name}", summary, write)


def opened(page: str) -> AppTest:
    """A session on a page, its first run still to come."""
    test = AppTest.from_file(MAIN, default_timeout=300).run()
    return test if page == "home" else test.switch_page(f"views/{page}.py")


def timed(action: Callable[[], AppTest]) -> float:
    """Seconds that a session takes for one answer; an exception on the page ends it all."""
    started = time.perf_counter()
    test = action()
    seconds = time.perf_counter() - started
    if test.exception:
        sys.exit(f"the page raised: {test.exception[0].value}")
    return seconds


def first_draws() -> dict[str, float]:
    """Seconds of each page's first draw, with nothing of the study cached."""
    import streamlit as st

    import analysis.mask_library as library

    found = {}
    for page in PAGES:
        test = opened(page)  # Home has drawn: the imports are not what is measured
        st.cache_resource.clear()
        st.cache_data.clear()
        library._read.cache_clear()
        found[page] = timed(test.run)
    return found


def thresholds(key: str, repeats: int) -> dict[str, float]:
    """Median seconds from a slider's move to the new map."""
    test = opened("safety_map").run()
    rng = np.random.default_rng(1)
    by_threshold = [
        timed(lambda v=v: test.slider(key=f"tau_sas-{key}").set_value(v).run())
        for v in rng.choice(np.arange(2.5, 4.5, 0.05), repeats).round(2).tolist()
    ]
    test.radio(key=f"by-{key}").set_value("top").run()
    by_share = [
        timed(lambda v=v: test.slider(key=f"top-{key}").set_value(v).run())
        for v in rng.choice(np.arange(0.5, 3.0, 0.05), repeats).round(2).tolist()
    ]
    return {"threshold": statistics.median(by_threshold), "share": statistics.median(by_share)}


def payloads(entry: Entry) -> dict[str, int]:
    """Bytes that the map sends, and that a point for every neuron would."""
    table = pd.read_parquet(entry.file("scores.parquet"), columns=["sas", "es", "delta"])
    widths = entry.summary["widths"]
    neurons = reduce(or_, select_parts(table, widths, Selection("es+sas", 2.0, 3.0)).values())
    sizes = {
        name: len(safety_map_figure(table, neurons, window=window).to_json())
        for name, window in (("all", None), ("layer", Window.of_layer(widths, len(widths) // 2)))
    }
    # x, y and colour in four bytes each, in base64.
    return sizes | {"baseline": len(table) * 3 * 4 * 4 // 3}


def sessions(url: str, key: str, count: int, moves: int) -> list[float]:
    """Seconds of every answer while ``count`` visitors of one server move a threshold at once."""

    def use(visitor: Visitor, seed: int) -> list[float]:
        rng = np.random.default_rng(seed)
        seconds = []
        for value in rng.choice(np.arange(2.5, 4.5, 0.05), moves).round(2).tolist():
            time.sleep(LOOKS * (0.5 + rng.random()))  # a person looks before moving on
            seconds.append(visitor.move(f"tau_sas-{key}", value))
        return seconds

    with ExitStack() as stack:
        visitors = [stack.enter_context(Visitor(url, "map")) for _ in range(count)]
        for visitor in visitors:
            visitor.draw()
        pool = stack.enter_context(ThreadPoolExecutor(count))
        return [one for found in pool.map(use, visitors, range(count)) for one in found]


def memory(key: str, interactions: int) -> dict[str, float]:
    """MB of the process after the first interactions and at the end, and a copy's cost."""
    test = opened("safety_map").run()
    me = psutil.Process()
    rng = np.random.default_rng(3)
    settled = 0.0
    for number in range(SETTLED + interactions):
        value = float(rng.choice(np.arange(2.5, 4.5, 0.05)).round(2))
        timed(lambda v=value: test.slider(key=f"tau_sas-{key}").set_value(v).run())
        if number == SETTLED - 1:
            gc.collect()
            settled = me.memory_info().rss / 1e6
    gc.collect()
    end = me.memory_info().rss / 1e6
    return {"settled_mb": settled, "end_mb": end, "growth": end / settled - 1}


def main() -> None:
    """Make the study, measure, and write what was found beside its limits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=80)
    parser.add_argument("--width", type=int, default=28_672)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--sessions", type=int, default=10)
    parser.add_argument("--moves", type=int, default=5, help="of each session")
    parser.add_argument("--interactions", type=int, default=500)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SAFENEURON_HOME"] = str(Path(folder) / "home")
        entry = save_study(arguments.layers, arguments.width, "large")
        opened("home")
        table = pd.read_parquet(entry.file("scores.parquet"))
        started = time.perf_counter()
        table.copy()
        copied = time.perf_counter() - started
        del table
        first = first_draws()
        moved = thresholds(entry.key, arguments.repeats)
        sizes = payloads(entry)
        with served(Path(folder)) as url:
            answers = sessions(url, entry.key, arguments.sessions, arguments.moves)
        held = memory(entry.key, arguments.interactions)
    p95 = float(np.quantile(answers, 0.95))
    reached = {
        "first_draw": max(first.values()) < LIMITS["first_draw_s"],
        "threshold": max(moved.values()) < LIMITS["threshold_s"],
        "payload": max(sizes["all"], sizes["layer"]) < LIMITS["payload_bytes"],
        "sessions": p95 < LIMITS["sessions_p95_s"],
        "memory": held["growth"] < LIMITS["memory_growth"],
    }
    result: dict[str, Any] = {
        "study": f"{arguments.layers} x {arguments.width}",
        "first_draw_s": first,
        "threshold_s": moved,
        "payload_bytes": sizes,
        "payload_ratio": sizes["all"] / sizes["baseline"],
        "copy_of_the_table_s": copied,
        "copy_to_threshold_ratio": copied / moved["threshold"],
        "sessions": {
            "at_once": arguments.sessions,
            "answers": len(answers),
            "looks_s": LOOKS,
            "median_s": statistics.median(answers),
            "p95_s": p95,
        },
        "memory": held | {"interactions": arguments.interactions},
        "limits": LIMITS,
        "reached": reached,
        "machine": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
    }
    text = json.dumps(result, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n", "utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
