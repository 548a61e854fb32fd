"""What a step of ``safeneuron`` costs over a step of TRL's plain DPO on the same batch.

    python -m tests.benchmarks.bench_align --model M --json OUT

Time: both train at once in one process and take turns step by step, so that both meet the
same load of the machine. A ratio is taken for each pair of steps; the median is reported, of
wall-clock time and of this process's CPU time, which other processes disturb less. A step is
all of it: data, forward, backward, clipping, optimiser, logging, and for ``safeneuron`` zeroing,
masking and putting back.

Memory: the peaks of two child processes, one for each way. Target for both: at most 1.05.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from tests.benchmarks.bench_capture import peak_kb
from tests.tiny import FAMILIES, HARMFUL, save_tiny
from toolkit.memory import keep_freed_memory
from toolkit.models.load import LoadedModel, load_model
from toolkit.neurons import NeuronSet
from toolkit.train.dpo import train
from toolkit.train.pairs import PreferencePair
from toolkit.train.recipes import RECIPES, Settings

TARGET = 1.05
WARM = 3  # steps that are not counted
SHARE = 0.01  # of each layer's neurons that are frozen, as many as the paper finds
WIDE = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4}
WIDE |= {"intermediate_size": 1024, "num_key_value_heads": 2, "max_position_embeddings": 512}
ANSWER = " First gather what is needed, then go step by step and check each of them."


def batch_of(size: int) -> list[PreferencePair]:
    """Pairs about as long as those that are made from a model."""
    prompts = [f"{HARMFUL[n % len(HARMFUL)]}, case {n}" for n in range(size)]
    refusal = "I'm sorry, but I can't help with that: it could hurt someone."
    return [PreferencePair(prompt, refusal, prompt + 2 * ANSWER) for prompt in prompts]


class Turns:
    """Lets two trainings take turns, a step each, and times the steps."""

    def __init__(self) -> None:
        self.steps: tuple[list[tuple[float, float]], ...] = ([], [])
        self._changed = threading.Condition()
        self._turn = 0
        self._gone: set[int] = set()
        self._start: dict[int, tuple[float, float]] = {}

    def step(self, player: int) -> None:
        """End this player's step, let the other make one, and begin the next."""
        now = (perf_counter(), process_time())
        if player in self._start and not self._gone:
            wall, cpu = self._start[player]
            self.steps[player].append((now[0] - wall, now[1] - cpu))
        with self._changed:
            self._turn = 1 - player
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._turn == player or 1 - player in self._gone)
        self._start[player] = (perf_counter(), process_time())

    def leave(self, player: int) -> None:
        """Leave the rest to the other."""
        with self._changed:
            self._gone.add(player)
            self._changed.notify_all()


def safeneuron(
    loaded: LoadedModel, arguments: argparse.Namespace, on_step: Callable[[], None]
) -> None:
    """Our steps, by the recipe's own numbers."""
    numbers = RECIPES["safeneuron"].two_core
    neurons = NeuronSet(
        loaded.layout.widths,
        {n: range(0, width, round(1 / SHARE)) for n, width in enumerate(loaded.layout.widths)},
    )
    settings = Settings(
        recipe="safeneuron",
        zero=not arguments.freeze_only,
        steps=arguments.steps + WARM,
        batch_size=arguments.batch_size,
        learning_rate=numbers.learning_rate,
        weight_decay=numbers.weight_decay,
        beta=numbers.beta,
        sft_weight=numbers.sft_weight,
        max_length=512,
        save_every=100_000,
        seed=0,
        dtype=arguments.dtype,
    )

    def hear(event: dict[str, Any]) -> None:
        if event["kind"] == "train":
            on_step()

    with tempfile.TemporaryDirectory() as folder:
        pairs = batch_of(arguments.batch_size)
        train(loaded, pairs, neurons, settings, Path(folder), hear, lambda: False)


def plain_dpo(
    loaded: LoadedModel, arguments: argparse.Namespace, on_step: Callable[[], None]
) -> None:
    """TRL's own, as its documentation has it, with the same numbers and weights to train."""
    numbers = RECIPES["dpo"].two_core
    for name, parameter in loaded.model.named_parameters():
        parameter.requires_grad_(name.startswith(loaded.layout.blocks + "."))

    class Steps(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if logs and "loss" in logs:
                on_step()

    def chat(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    pairs = batch_of(arguments.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = DPOTrainer(
            model=loaded.model,
            args=DPOConfig(
                output_dir=folder,
                max_steps=arguments.steps + WARM,
                per_device_train_batch_size=arguments.batch_size,
                learning_rate=numbers.learning_rate,
                lr_scheduler_type="cosine",
                weight_decay=numbers.weight_decay,
                beta=numbers.beta,
                loss_type=["sigmoid", "sft"],
                loss_weights=[1.0, numbers.sft_weight],
                max_length=512,
                precompute_ref_log_probs=True,
                bf16=arguments.dtype == "bfloat16",
                use_cpu=loaded.device.type == "cpu",
                gradient_checkpointing=False,
                dataloader_pin_memory=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict(
                {
                    "prompt": [chat("user", pair.prompt) for pair in pairs],
                    "chosen": [chat("assistant", pair.chosen) for pair in pairs],
                    "rejected": [chat("assistant", pair.rejected) for pair in pairs],
                }
            ),
            processing_class=loaded.tokenizer,
            callbacks=[Steps()],
        )
        trainer.train()


WAYS = {"plain": plain_dpo, "safeneuron": safeneuron}


def time_ratio(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Both ways by turns: the median of one ratio a pair of steps."""
    turns = Turns()
    failed: list[BaseException] = []

    def play(player: int, way: str, loaded: LoadedModel, ready: threading.Event | None) -> None:
        def on_step() -> None:
            # The second is made once the first steps: trainers share accelerate's state.
            if ready is not None:
                ready.set()
            turns.step(player)

        try:
            WAYS[way](loaded, arguments, on_step)
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            if ready is not None:
                ready.set()
            turns.leave(player)

    ready = threading.Event()
    models = [load_model(model, device=arguments.device) for _ in WAYS]
    first = threading.Thread(target=play, args=(0, "plain", models[0], ready))
    second = threading.Thread(target=play, args=(1, "safeneuron", models[1], None))
    first.start()
    ready.wait()
    second.start()
    first.join()
    second.join()
    if failed:
        raise failed[0]
    pairs = list(zip(*(steps[WARM:] for steps in turns.steps), strict=False))
    ratios = [(ours[0] / plain[0], ours[1] / plain[1]) for plain, ours in pairs]
    return {
        "ratio": statistics.median(wall for wall, _ in ratios),
        "cpu_ratio": statistics.median(cpu for _, cpu in ratios),
        "ratios": [wall for wall, _ in ratios],
        "cpu_ratios": [cpu for _, cpu in ratios],
        "plain_seconds": statistics.median(plain[0] for plain, _ in pairs),
        "safeneuron_seconds": statistics.median(ours[0] for _, ours in pairs),
    }


def memory_ratio(arguments: argparse.Namespace, model: str) -> dict[str, Any]:
    """Peaks of a process for each way."""
    peaks = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.bench_align", "--child", way]
        command += ["--model", model, "--steps", "2", "--dtype", arguments.dtype]
        command += ["--batch-size", str(arguments.batch_size)]
        command += ["--device", arguments.device] if arguments.device else []
        command += ["--freeze-only"] if arguments.freeze_only else []
        output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        peaks[way] = json.loads(output.splitlines()[-1])["peak_kb"]
    return {"peak_kb": peaks, "ratio": peaks["safeneuron"] / peaks["plain"]}


def child(arguments: argparse.Namespace) -> None:
    """Train by itself and print this process's peak, on the accelerator where there is one."""
    loaded = load_model(arguments.model, device=arguments.device)
    WAYS[arguments.child](loaded, arguments, lambda: None)
    on_gpu = loaded.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() // 1024 if on_gpu else peak_kb()
    say(json.dumps({"peak_kb": peak}))


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model source; default: a random Llama")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--freeze-only", action="store_true", help="do not zero in the forward")
    parser.add_argument("--child", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Run the benchmark."""
    arguments = parse()
    keep_freed_memory()  # as the process of a job does
    if arguments.child:
        child(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        model = arguments.model
        if model is None:
            FAMILIES["llama"] = WIDE
            model = str(save_tiny(Path(scratch) / "wide"))
        memory = memory_ratio(arguments, model)
        time = time_ratio(arguments, model)
    result = {
        "model": arguments.model or "random llama",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "dtype": arguments.dtype,
        "batch_size": arguments.batch_size,
        "zero": not arguments.freeze_only,
        "target": {"time": TARGET, "memory": TARGET},
        "time": time,
        "memory": memory,
    }
    say(
        f"safeneuron / plain DPO: time {time['ratio']:.3f}, CPU {time['cpu_ratio']:.3f}, "
        f"peak memory {memory['ratio']:.3f} (target {TARGET})"
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
