"""How long a large store takes to open, list and answer "top 100 of layer 40".

    python -m tests.benchmarks.bench_store --json OUT

200 entries, one of them with a table of 80 x 28,672 neurons. Each repeat is a process of its
own, so that nothing is left over from the one before; its imports are timed apart. Target:
less than a second for the three together.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from analysis.store import Store
from tests.analysis.test_opening import fill, save_scores, score_frame

TARGET = 1.0
ASK = """
import sys, time
started = time.perf_counter()
import analysis.opening
imported = time.perf_counter()
study = analysis.open_study(sys.argv[1])
opened = time.perf_counter()
listed = study.entries
named = time.perf_counter()
top = study.top(40, 100)
done = time.perf_counter()
assert len(listed) == 200 and len(top) == 100 and "torch" not in sys.modules
print(imported - started, opened - imported, named - opened, done - named)
"""
STEPS = ("import", "open", "list", "top")


def main() -> None:
    """Fill a store, ask it in fresh processes, and write the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        fill(store, 199)
        save_scores(store, score_frame(80, 28_672), {"n": "large"})
        rows = []
        for _ in range(arguments.repeats):
            command = [sys.executable, "-c", ASK, folder]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.append([float(word) for word in told.split()])
    seconds = dict(zip(STEPS, map(statistics.median, zip(*rows, strict=True)), strict=True))
    asked = statistics.median(sum(row[1:]) for row in rows)
    result = {
        "seconds": seconds,
        "open_list_top": asked,
        "target": TARGET,
        "reached": asked < TARGET,
        "repeats": arguments.repeats,
        "machine": platform.platform(),
    }
    text = json.dumps(result, indent=1)
    if arguments.json:
        arguments.json.write_text(text + "\n", "utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
