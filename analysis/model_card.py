"""The result of an alignment: a plain ``transformers`` folder and what it says of itself.

``safeneuron.json`` holds the request, the settings, the hashes of the data, the versions and
the figures; ``README.md`` says it in words, and shows the attack before and after if there
was one. ``config.json`` is written last, so that a folder without it is no model yet.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.align_requests import AlignRequest
from analysis.comparison import compare_attacks, markdown
from analysis.robustness import AttackResult
from toolkit.files import canonical_json, sha256_text, write_atomically
from toolkit.masks import MaskFile, now
from toolkit.models.sources import CARD
from toolkit.train.recipes import RECIPES

if TYPE_CHECKING:
    from toolkit.models.load import LoadedModel
    from toolkit.train.dpo import TrainOutcome
    from toolkit.train.pairs import PairReport, PreferencePair
    from toolkit.train.recipes import Settings

MASK, README = "mask.json", "README.md"
VERSIONS = ("safeneuron", "torch", "transformers", "trl", "peft", "accelerate")


def make_card(
    request: AlignRequest,
    loaded: "LoadedModel",
    mask: MaskFile | None,
    pairs: "Sequence[PreferencePair]",
    report: "PairReport",
    settings: "Settings",
    outcome: "TrainOutcome",
) -> dict[str, Any]:
    """What ``safeneuron.json`` says.

    Args:
        request: what was asked for.
        loaded: the model, for what it was made from.
        mask: the neurons held, if any.
        pairs: trained on, in order.
        report: what became of those offered.
        settings: the recipe with its numbers.
        outcome: how training ended.
    """
    parent = loaded.folder
    return {
        "schema": "safeneuron.model/1",
        "request": request.model_dump(mode="json"),
        "parent": loaded.info.model_dump(),
        "ancestors": [parent.fingerprint, *parent.ancestors],
        "settings": asdict(settings),
        "mask": mask.sha256 if mask else None,
        "pairs": {
            "sha256": sha256_text(canonical_json([asdict(pair) for pair in pairs])),
            "trained": len(pairs),
            **report.as_dict(),
        },
        "figures": {
            "steps": outcome.steps,
            "first": outcome.first,
            "last": outcome.last,
            "frozen_numbers": outcome.frozen,
            "trained_numbers": outcome.trainable,
            "seconds": outcome.seconds,
            "micro_batch": outcome.micro_batch,
            "pairs": str(report),
        },
        "versions": {name: version(name) for name in VERSIONS},
        "created": now().isoformat(),
    }


def save_result(
    loaded: "LoadedModel", mask: MaskFile | None, card: dict[str, Any], folder: Path
) -> None:
    """Put the model into the folder; ``config.json`` comes last and makes it one."""
    scratch = folder / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    loaded.model.save_pretrained(scratch)
    loaded.tokenizer.save_pretrained(scratch)
    if mask is not None:
        mask.write(folder / MASK)
    write_atomically(folder / CARD, json.dumps(card, indent=1) + "\n")
    write_atomically(folder / README, model_card(card))
    files = sorted(scratch.iterdir(), key=lambda path: path.name == "config.json")
    for path in files:
        path.replace(folder / path.name)
    scratch.rmdir()


def model_card(
    card: dict[str, Any], before: AttackResult | None = None, after: AttackResult | None = None
) -> str:
    """``README.md`` of a result.

    Args:
        card: as :func:`make_card` makes it.
        before: the attack on the parent.
        after: the attack on the result, with the same mask.
    """
    settings, figures, parent = card["settings"], card["figures"], card["parent"]
    held, trained = (f"{figures[f'{name}_numbers']:,}" for name in ("frozen", "trained"))
    what = {
        "freeze": f"{held} numbers of the mask's neurons held bit-identical, {trained} trained",
        "train": f"{trained} numbers of the mask's neurons trained, the other {held} of the same "
        "weights held bit-identical",
        "unused": f"{trained} numbers trained",
    }[RECIPES[settings["recipe"]].mask]
    parts = [
        f"---\nlibrary_name: transformers\ntags: [safeneuron, {settings['recipe']}]\n---\n",
        f"# {parent['source']}, aligned\n",
        f"Trained by SafeNeuron {card['versions']['safeneuron']} with the recipe "
        f"`{settings['recipe']}` ({figures['steps']} steps of {settings['batch_size']} pairs, "
        f"seed {settings['seed']}); {what}. The model before has the fingerprint "
        f"`{parent['fingerprint'][:12]}`.\n",
    ]
    if before is not None and after is not None:
        table = compare_attacks({"before": before, "after": after})
        sides = list(dict.fromkeys(table["side"]))
        parts += ["## The attack, before and after\n", markdown(table, sides)]
    shown = [
        f"| {name} | {figures['first'][name]:.4g} | {figures['last'][name]:.4g} |"
        for name in ("loss", "margin", "accuracy")
        if name in figures["first"] and name in figures["last"]
    ]
    parts += ["## Training\n", "| | first step | last step |\n|---|---|---|", *shown, ""]
    numbers = ("learning_rate", "weight_decay", "beta", "sft_weight", "optimiser", "lora_rank")
    told = ", ".join(f"{name.replace('_', ' ')} {settings[name]}" for name in numbers)
    pairs = card["pairs"]
    sources = "".join(
        f"\n  - {source['role']}: {source['name']}, {source['pairs']}, `{source['sha256'][:12]}`"
        for source in pairs["sources"]
    )
    mask = f"`{card['mask'][:12]}`, in `mask.json`" if card["mask"] else "none"
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    parts += [
        f"- Numbers: {told}; frozen neurons zeroed while training: {settings['zero']}.",
        f"- Mask: {mask}.",
        f"- Preference data (`{pairs['sha256'][:12]}`): {figures['pairs']}.{sources}",
        f"- Versions: {versions}; {card['created'][:10]}.\n",
        "Everything else is in `safeneuron.json`. It loads like any model of `transformers`; "
        "attack it with `safeneuron attack`.\n",
    ]
    return "\n".join(parts)
