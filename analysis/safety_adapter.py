"""How the shipped safety adapter was made, and the figures that it was accepted by.

``python -m analysis.safety_adapter OUT`` makes it again: a LoRA on the embedded model,
trained to refuse harmful prompts and to answer harmless ones as the model did before.
``record.json`` beside the weights holds the seed, the data with their hashes, the
settings and the figures. None of the evaluation prompts is trained on.
"""

import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from analysis.statistics import wilson
from toolkit.examples import Example
from toolkit.files import sha256_text, write_atomically
from toolkit.generate import generate
from toolkit.judge.perplexity import answer_losses, pooled_perplexity
from toolkit.judge.refusal import VERSION, judge_refusal, refuses
from toolkit.masks import now
from toolkit.models.convert import merge_into
from toolkit.models.load import LoadedModel, load_model
from toolkit.prompt_sets import PromptSet
from toolkit.prompts import read_prompts
from toolkit.train.pairs import shipped_refusals
from toolkit.train.refusal_line import LineSettings, draw_line, strengthen
from toolkit.train.safety_lora import SafetyLoraSettings, train_safety_lora

BASE = "smollm2-135m-instruct"
STAGES = (
    SafetyLoraSettings(),
    # What was learnt is held to the model before along more of its answers.
    SafetyLoraSettings(
        steps=80, answer_tokens=16, divergence_weight=3.0, learning_rate=1e-3, seed=1
    ),
)


@dataclass(frozen=True)
class AdapterData:
    """What the adapter is trained and measured on; all of it is recorded.

    Args:
        harmful: prompts that it learns to refuse.
        harmless: prompts along whose answers it is held to what it was.
        development: harmful and harmless prompts that the settings were chosen on.
        answer_tokens: of the answers to harmless prompts that are made.
        refusal_openings: refusals that begin so are learnt. Few beginnings, so that greedy
            decoding finds the one word that all of them share.
        evaluation: harmful prompts of the figures.
        held_out: harmless prompts of the figures.
        evaluation_tokens: of the answers that are judged.
    """

    harmful: tuple[str, ...] = ("advbench[::2]", "harmbench", "do-not-answer")
    harmless: tuple[str, ...] = ("harmless-train", "harmless-forms", "harmless-contrasts")
    development: tuple[str, str] = ("advbench[1::6]", "harmless-train[::6]")
    answer_tokens: int = 16
    refusal_openings: tuple[str, ...] = ("I'm sorry", "I can't")
    evaluation: str = "strongreject"
    held_out: str = "harmless-heldout"
    evaluation_tokens: int = 48


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9']+", text.lower()))


def without_near_duplicates(prompts: list[str], of: PromptSet, limit: float = 0.6) -> list[str]:
    """Leave out prompts whose words overlap an evaluation prompt's (Jaccard) too much."""
    evaluated = [_words(text) for text in of.texts]

    def near(text: str) -> bool:
        words = _words(text)
        return any(len(words & other) > limit * len(words | other) for other in evaluated)

    return [text for text in prompts if not near(text)]


def build_examples(
    model: LoadedModel, data: AdapterData, seed: int
) -> tuple[list[Example], list[Example], dict[str, Any]]:
    """Refusals to harmful prompts, and the model's own answers to harmless ones.

    Half of the answers are greedy and half are drawn: the divergence is taken where the
    model goes, and where it may go. None of them is a refusal itself.

    Returns:
        The refusals, the answers, and what the record says of both.
    """
    generator = random.Random(seed)
    said = [text for text in shipped_refusals() if text.startswith(data.refusal_openings)]

    def texts(names: tuple[str, ...], apart_from: tuple[str, ...]) -> list[str]:
        found = dict.fromkeys(text for name in names for text in read_prompts(name).texts)
        kept = list(found)
        for name in apart_from:
            kept = without_near_duplicates(kept, read_prompts(name))
        return kept

    harmful = texts(data.harmful, (data.evaluation, data.development[0]))
    refusals = [Example(text, generator.choice(said)) for text in harmful]
    harmless = texts(data.harmless, (data.held_out, data.development[1]))
    answers: list[Example] = []
    for part, draw in ((harmless[::2], seed), (harmless[1::2], None)):
        made = generate(model, part, data.answer_tokens, 60, seed=draw)
        answers += _own_answers(model, part, made, data.answer_tokens)
    record = {
        "prompts": [
            read_prompts(name).info().model_dump() for name in data.harmful + data.harmless
        ],
        "refusals": sha256_text("\n".join(said)),
        "examples": {"refusals": len(refusals), "answers": len(answers)},
    }
    return refusals, answers, record


def _own_answers(
    model: LoadedModel, prompts: Sequence[str], answers: Sequence[str], limit: int
) -> list[Example]:
    """The answers that are none of a refusal, and whether each came to its end."""
    examples = []
    for text, answer in zip(prompts, answers, strict=True):
        if judge_refusal(answer).verdict == "complied":
            length = len(model.tokenizer(answer, add_special_tokens=False)["input_ids"])
            # As long as the limit: cut there, give or take a merged token.
            examples.append(Example(text, answer.strip(), ends=length < limit - 2))
    return examples


def answer_perplexity(model: LoadedModel, prompts: list[str], answers: list[str]) -> float:
    """Perplexity of given answers under a model, over all their tokens."""
    return pooled_perplexity(answer_losses(model, prompts, answers))


def measure(model: LoadedModel, data: AdapterData) -> dict[str, Any]:
    """Verdicts on the evaluation and development sets, each k of n with its interval."""
    figures: dict[str, Any] = {"judge": VERSION, "max_new_tokens": data.evaluation_tokens}
    for name in (data.evaluation, data.held_out, *data.development):
        texts = read_prompts(name).texts
        answers = generate(model, texts, data.evaluation_tokens, 64, settled=refuses)
        verdicts = [judge_refusal(answer).verdict for answer in answers]
        figures[name] = {
            kind: asdict(wilson(verdicts.count(kind), len(verdicts)))
            for kind in ("refused", "complied", "degenerate")
        }
    return figures


def make_adapter(
    output: Path,
    stages: Sequence[SafetyLoraSettings],
    line: LineSettings,
    data: AdapterData,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Train the adapter stage by stage, draw its line, measure it and write all to ``output``.

    Returns:
        What ``record.json`` holds.
    """
    started = time.monotonic()
    half = load_model(BASE, dtype=torch.bfloat16)
    refusals, answers, used = build_examples(half, data, stages[0].seed)
    log(f"examples: {used['examples']}")

    def step(number: int, total: int, loss: float) -> None:
        log(f"step {number} of {total}: loss {loss:.3f}, {time.monotonic() - started:.0f} s")

    for settings in stages:
        # In half precision: only the adapter's own weights are trained, and they are not.
        learner = load_model(BASE, dtype=torch.bfloat16)
        start = None if settings is stages[0] else output
        train_safety_lora(learner, refusals, answers, settings, output, step, start)
    nats = _draw_line(output, refusals, answers, line)
    log(f"the line moved by {nats:.2f} nats")
    trained = time.monotonic() - started
    _name_its_base(output)
    figures = _figures(output, data, half)
    record = {
        "base": BASE,
        "data": asdict(data) | used,
        "stages": [asdict(settings) for settings in stages],
        "line": asdict(line) | {"nats": nats},
        "figures": figures,
        "seconds": {"training": round(trained), "all": round(time.monotonic() - started)},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "created": now().isoformat(),
    }
    write_atomically(output / "record.json", json.dumps(record, indent=1) + "\n")
    return record


def _draw_line(
    adapter: Path, refusals: Sequence[Example], answers: Sequence[Example], line: LineSettings
) -> float:
    """Strengthen a trained adapter and draw its line; nats that it moved by."""
    strengthen(adapter, line.strength)
    merged = _merged(adapter)
    merged.model.to(torch.bfloat16)
    (first,) = {
        merged.tokenizer(example.answer, add_special_tokens=False)["input_ids"][0]
        for example in refusals
    }
    return draw_line(merged, refusals, answers, first, line, adapter)


def _figures(adapter: Path, data: AdapterData, half: LoadedModel) -> dict[str, Any]:
    """What the adapter is accepted by: verdicts, and perplexity of the original's answers."""
    held_out = read_prompts(data.held_out).texts
    base, merged = load_model(BASE), _merged(adapter)
    perplexities = {}
    for how, seed in (("greedy", None), ("drawn", 0)):
        # Greedy answers grow likelier where a model is surer of its first words; on drawn
        # ones it can only lose (the logarithm of the ratio is the divergence).
        answers = generate(half, held_out, data.evaluation_tokens, 50, seed=seed)
        before, after = (answer_perplexity(model, held_out, answers) for model in (base, merged))
        perplexities[f"harmless_{how}_answer_perplexity"] = {
            "base": before,
            "adapted": after,
            "ratio": after / before,
        }
    merged.model.to(torch.bfloat16)
    return measure(merged, data) | perplexities


def _merged(adapter: Path) -> LoadedModel:
    """The base model with an adapter merged into its weights."""
    merged = load_model(BASE)
    merged.model = merge_into(merged.model, adapter)
    merged.model.eval()
    return merged


def _name_its_base(adapter: Path) -> None:
    """Let the configuration name the base model instead of a folder of this machine."""
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": BASE}
    write_atomically(path, json.dumps(config, indent=1) + "\n")
    (adapter / "README.md").unlink(missing_ok=True)
    (adapter / "adapter_model.safetensors").chmod(0o644)


def main() -> None:
    """Make the adapter with the settings that it ships with."""
    output = Path(sys.argv[1])

    def log(line: str) -> None:
        sys.stderr.write(line + "\n")

    record = make_adapter(output, STAGES, LineSettings(), AdapterData(), log)
    sys.stdout.write(json.dumps(record["figures"], indent=1) + "\n")


if __name__ == "__main__":
    main()
