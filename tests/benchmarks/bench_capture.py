"""What capturing costs over the bare forward pass, and that memory stays flat.

    python -m tests.benchmarks.bench_capture --model M --json OUT

Time: for each backend and token position, the capture pass (forward, pooling, moments)
and the bare forward of the model's body run over the very same batches, batch by batch in
turn, so that both meet the same load of the machine. A ratio is taken for each repeat; its
median is reported, of wall-clock time and of this process's CPU time, which other
processes disturb less. Target for plain hooks: at most 1.10.

Memory: the peak of a child process that captures many prompts, over that of one with a
tenth of them. Target: within 5 %.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from tests.tiny import FAMILIES, HARMFUL, HARMLESS, save_tiny
from toolkit.capture.backends import BACKENDS, make_backend
from toolkit.capture.base import (
    Batch,
    CaptureBackend,
    Position,
    batches,
    capture_moments,
    pooled_activations,
    render,
)
from toolkit.capture.moments import Moments
from toolkit.models.load import LoadedModel, load_model

Seconds = npt.NDArray[np.float64]
TARGET_TIME = 1.10
TARGET_MEMORY = 1.05
# Kept pooled vectors of 4,000 prompts would be 260 MB in float32 on this one.
WIDE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
WIDE |= {"intermediate_size": 4096, "num_key_value_heads": 2, "max_position_embeddings": 256}


def prompts(count: int) -> list[str]:
    """Distinct prompts of about ten words."""
    known = [*HARMFUL, *HARMLESS]
    return [f"{known[n % len(known)]}, case {n // len(known)}" for n in range(count)]


def clock(device: torch.device, work: Callable[[], object]) -> Seconds:
    """What ``work`` takes, the device's queue included: wall-clock and CPU seconds."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return np.array([time.perf_counter() - start, time.process_time() - cpu])


def bare(loaded: LoadedModel, batch: Batch) -> None:
    """The forward pass alone, as every backend has to run it."""
    with torch.inference_mode():
        loaded.body(input_ids=batch.ids, attention_mask=batch.attention, use_cache=False)


def time_ratio(
    loaded: LoadedModel,
    backend: CaptureBackend,
    position: Position,
    found: list[Batch],
    repeats: int,
) -> dict[str, Any]:
    """Capture against bare forward: the median of one ratio a repeat."""
    widths = loaded.layout.widths
    device = loaded.device
    bare(loaded, found[-1])
    pooled_activations(backend, found[-1], position, widths)
    ratios, forwards, captures = [], [], []
    for repeat in range(repeats):
        plain, capture = np.zeros(2), np.zeros(2)
        moments = Moments.zero(sum(widths))
        for place, batch in enumerate(found):

            def fold(batch: Batch = batch) -> None:
                nonlocal moments
                values = pooled_activations(backend, batch, position, widths)
                moments = moments.merge(Moments.of(values))

            # Whoever is second finds warm caches, so they take turns.
            if (place + repeat) % 2:
                capture += clock(device, fold)
                plain += clock(device, lambda batch=batch: bare(loaded, batch))
            else:
                plain += clock(device, lambda batch=batch: bare(loaded, batch))
                capture += clock(device, fold)
        ratios.append((capture / plain).tolist())
        forwards.append(plain.tolist())
        captures.append(capture.tolist())
    return {
        "ratio": statistics.median(wall for wall, _ in ratios),
        "cpu_ratio": statistics.median(cpu for _, cpu in ratios),
        "ratios": [wall for wall, _ in ratios],
        "cpu_ratios": [cpu for _, cpu in ratios],
        "forward_seconds": statistics.median(wall for wall, _ in forwards),
        "capture_seconds": statistics.median(wall for wall, _ in captures),
    }


def peak_of_child(model: str, count: int, backend: str, batch_size: int) -> int:
    """Peak resident kilobytes of a process that captures ``count`` prompts."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_capture", "--model", model]
    command += ["--child", str(count), "--backends", backend, "--batch-size", str(batch_size)]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return int(json.loads(output.splitlines()[-1])["peak_kb"])


def child(model: str, count: int, backend: str, batch_size: int) -> None:
    """Capture ``count`` prompts and print this process's peak."""
    loaded = load_model(model, device="cpu")
    capture_moments(loaded, make_backend(backend, loaded), prompts(count), "mean", batch_size)
    sys.stdout.write(json.dumps({"peak_kb": peak_kb()}) + "\n")


def peak_kb() -> int:
    """Peak resident kilobytes of this process alone."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: Linux lets a child start from its parent's peak.
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Everything asked for, as it goes into the JSON file."""
    loaded = load_model(model, device=arguments.device)
    rendered = [render(loaded.tokenizer, text) for text in prompts(arguments.prompts)]
    found = [
        batch.to(loaded.device)
        for batch in batches(rendered, arguments.batch_size, loaded.tokenizer.pad_token_id)
    ]
    result: dict[str, Any] = {
        "model": arguments.model or "wide tiny llama",
        "neurons": sum(loaded.layout.widths),
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "prompts": arguments.prompts,
        "batch_size": arguments.batch_size,
        "tokens": int(sum(int(batch.attention.sum()) for batch in found)),
        "repeats": arguments.repeats,
        "target": {"time": TARGET_TIME, "memory": TARGET_MEMORY},
        "time": {},
        "memory": {},
    }
    for name in arguments.backends:
        backend = make_backend(name, loaded)
        for position in () if arguments.no_time else get_args(Position):
            row = time_ratio(loaded, backend, position, found, arguments.repeats)
            result["time"].setdefault(name, {})[position] = row
            say(
                f"{name:16} {position:5} capture / bare forward = {row['ratio']:.3f}, "
                f"CPU {row['cpu_ratio']:.3f}"
            )
    if arguments.memory:
        few, many = arguments.memory
        for name in arguments.backends:
            peaks = [peak_of_child(model, n, name, arguments.batch_size) for n in (few, many)]
            ratio = peaks[1] / peaks[0]
            result["memory"][name] = {"prompts": [few, many], "peak_kb": peaks, "ratio": ratio}
            say(f"{name:16} peak memory, {many} / {few} prompts = {ratio:.3f}")
    return result


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model source; default: a wide tiny random Llama")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default=None)
    parser.add_argument("--memory", type=int, nargs="*", default=[400, 4000], metavar="N")
    parser.add_argument("--no-time", action="store_true", help="measure memory alone")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    if arguments.child:
        child(arguments.model, arguments.child, arguments.backends[0], arguments.batch_size)
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model
        if model is None:
            FAMILIES["llama"] = WIDE
            model = str(save_tiny(Path(scratch) / "wide"))
        result = measure(arguments, model)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
