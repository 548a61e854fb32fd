"""What sharing, sorting and stopping save an attack, against a plain loop over its settings.

    python -m tests.benchmarks.bench_attack --model smollm2-135m-aligned --json OUT

The plain loop takes one setting after the other, prompts in the order of their file, fixed
batches, and lets transformers generate every token. The suite answers the same prompts under
the same settings: every row of a batch has its own, rows are sorted by length, and a row
leaves once the refusal judge, which alone is used here, has decided. Both judge alike, and
their verdicts are compared one by one. Target: at least 3 times as fast, the same verdicts.
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from analysis.attacks.context import AttackContext, Planned
from analysis.attacks.judging import Panel
from analysis.attacks.run import answer_all
from analysis.attacks.suite import plan_settings
from analysis.requests import ANSWERED, OWN_ES, OWN_SAS, AttackRequest, IdentifyRequest
from analysis.robustness import Side
from analysis.store import Store
from analysis.study import identify
from toolkit.capture.base import render_text
from toolkit.judge.refusal import judge_refusal
from toolkit.models.load import load_model
from toolkit.progress import silent
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts

Verdicts = dict[tuple[str, int | None, str, int], str]
TARGET = 3.0


def plain_loop(
    context: AttackContext,
    planned: list[Planned],
    prompts: dict[Side, PromptSet],
    batch_size: int,
) -> Verdicts:
    """One setting after the other, as a script would."""
    verdicts: Verdicts = {}
    for chosen in planned:
        with context.under(chosen.plan):
            for side, asked in prompts.items():
                answers = transformers_generate(context, asked.texts, batch_size)
                for index, answer in enumerate(answers):
                    key = (chosen.setting.name, chosen.setting.seed, side, index)
                    verdicts[key] = judge_refusal(answer).verdict
    return verdicts


def transformers_generate(context: AttackContext, texts: list[str], batch_size: int) -> list[str]:
    """Greedy answers of fixed batches in the order given."""
    answers: list[str] = []
    loaded = context.loaded
    templated = bool(loaded.tokenizer.chat_template)
    for start in range(0, len(texts), batch_size):
        rendered = [
            render_text(loaded.tokenizer, text) for text in texts[start : start + batch_size]
        ]
        inputs = loaded.tokenizer(
            rendered,
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=not templated,
        ).to(loaded.device)
        with torch.inference_mode():
            tokens = loaded.model.generate(
                **inputs,
                do_sample=False,
                max_new_tokens=context.request.max_new_tokens,
                pad_token_id=loaded.tokenizer.pad_token_id,
            )
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += loaded.tokenizer.batch_decode(new, skip_special_tokens=True)
    return answers


def suite(
    context: AttackContext, planned: list[Planned], prompts: dict[Side, PromptSet]
) -> Verdicts:
    """The same through the engine."""
    judge = Panel(context.loaded)
    with tempfile.TemporaryDirectory() as scratch:
        answers = answer_all(context, planned, prompts, Path(scratch), judge, judge.settled)
    return {(a.setting, a.seed, a.side, a.index): a.verdict for a in answers}


def timed(work: Callable[[], Verdicts]) -> tuple[float, Verdicts]:
    """Seconds and what came of it."""
    start = time.perf_counter()
    verdicts = work()
    return time.perf_counter() - start, verdicts


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both ways over the same prompts, in one process."""
    mask = identify(IdentifyRequest(model=arguments.model, top_sas=OWN_SAS, top_es=OWN_ES)).mask
    prompts: dict[Side, PromptSet] = {
        "harmful": read_prompts(arguments.harmful),
        "harmless": read_prompts(arguments.harmless),
    }
    request = AttackRequest(
        model=arguments.model,
        settings=("ORI", "ES", "SAS", "FULL", "RANDOM"),
        seeds=1,
        dtype=arguments.dtype,
        max_new_tokens=arguments.tokens,
        batch_size=arguments.batch_size,
    )
    loaded = load_model(arguments.model, dtype=getattr(torch, arguments.dtype))
    context = AttackContext(loaded, mask, request, {}, silent)
    planned = plan_settings(context, request.settings or (), Store())
    few: dict[Side, PromptSet] = {"harmful": prompts["harmful"][:4]}
    suite(context, planned[:1], few)  # warm
    fast, ours = timed(lambda: suite(context, planned, prompts))
    slow, plain = timed(lambda: plain_loop(context, planned, prompts, arguments.loop_batch))
    different = [list(key) for key in plain if plain[key] != ours[key]]
    verdicts = list(plain.values())
    return {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "device": str(loaded.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "settings": [p.setting.name for p in planned],
        "prompts": {side: len(found) for side, found in prompts.items()},
        "max_new_tokens": arguments.tokens,
        "batch_size": {"suite": request.batch_size, "plain": arguments.loop_batch},
        "refused": verdicts.count("refused"),
        "answers": len(verdicts),
        "plain_seconds": slow,
        "suite_seconds": fast,
        "ratio": slow / fast,
        "target": TARGET,
        "different_verdicts": different,
    }


def main() -> None:
    """Measure, print the ratio and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-aligned")
    # About in the proportion of "safeneuron attack --full", 313 to 60: refusals are what stops.
    parser.add_argument("--harmful", default="strongreject[::6]")
    parser.add_argument("--harmless", default="harmless-heldout[:60:6]")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=ANSWERED, help="of the suite")
    parser.add_argument("--loop-batch", type=int, default=64, help="of the plain loop")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    result = measure(arguments)
    sys.stdout.write(
        f"plain loop {result['plain_seconds']:.0f} s / suite {result['suite_seconds']:.0f} s = "
        f"{result['ratio']:.2f} (target {TARGET}); {len(result['different_verdicts'])} of "
        f"{result['answers']} verdicts differ, {result['refused']} refused\n"
    )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
