"""One cell of the comparison: an arm trained with a seed, and attacked.

What cells share (the set found before training, the pairs of a seed, what the reference says
of them, the base's answers) is made once, in the folder they all work in.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analysis.align_requests import AlignRequest, RoundsRequest
from analysis.arms import ARMS, Arm, Protocol
from analysis.before_after import StopAskedError
from analysis.cells import Cell, count
from analysis.requests import AttackRequest, IdentifyRequest, parse_request
from toolkit.files import canonical_json, sha256_text, write_atomically
from toolkit.masks import read_mask
from toolkit.models.sources import CARD, resolve
from toolkit.prompts import read_prompts
from toolkit.train.recipes import RECIPES, Mixture

Say = Callable[[str], None]


def _in_rounds(arm: Arm) -> bool:
    """Whether an arm is one or more rounds of a run of rounds."""
    return arm.rounds > 1 or (arm.recipe == "safeneuron" and bool(arm.zero))


class CellMaker:
    """Makes the cells of one protocol.

    Args:
        protocol: what all cells share.
        work: folder of models and other things that can be made again.
        say: hears a line of what is done.
    """

    def __init__(self, protocol: Protocol, work: Path, say: Say) -> None:
        self.protocol, self.work, self.say = protocol, work, say
        self._stage = ""

    def key(self, arm: Arm, seed: int) -> str:
        """Names what a cell depends on, wherever it is made."""
        asked = None
        if arm.recipe is not None:
            left = {"model", "mask", "pairs", "mixture"}
            asked = self._request(arm, seed, Path("m"), Path("p")).model_dump(
                mode="json", exclude=left
            )
            if RECIPES[arm.recipe].draws:
                asked["mixture"] = asdict(Mixture())
        return sha256_text(canonical_json([self.protocol.as_dict(), arm.name, seed, asked]))

    def _request(self, arm: Arm, seed: int, mask: Path, pairs: Path) -> RoundsRequest:
        """What an arm asks for; arms of one round are the first of its kind."""
        own = self.protocol
        values: dict[str, Any] = {
            "model": own.model,
            "mask": mask,
            "pairs": pairs,
            "recipe": arm.recipe,
            "zero": arm.zero,
            "preset": own.preset,
            "steps": own.steps,
            "batch_size": own.batch_size,
            "max_length": own.max_length,
            "harmful": own.pair_prompts[0],
            "harmless": own.pair_prompts[1],
            "leave_out": own.attacked[0],
            "find_harmful": own.find_prompts[0],
            "find_harmless": own.find_prompts[1],
            "top_sas": own.top_sas,
            "top_es": own.top_es,
            "position": own.position,
            "dtype": own.dtype,
            "seed": seed,
            "rounds": arm.rounds,
        }
        given = {name: value for name, value in values.items() if value is not None}
        return parse_request(RoundsRequest, given)

    def cell(self, arm: Arm, seed: int, mask_path: Path, pairs: Path | None) -> Cell:
        """Train and attack one arm with one seed; what is done of it is not done again."""
        own = self.protocol
        mask = read_mask(mask_path)
        cards: list[dict[str, Any]] = []
        model = own.model
        if pairs is not None:
            trained = self._train(arm, seed, mask_path, pairs)
            model = str(trained[-1])
            cards = [json.loads((path / CARD).read_text("utf-8")) for path in trained]
        card = cards[-1] if cards else None

        from analysis.study import attack

        done = attack(
            AttackRequest(
                model=model,
                mask=mask_path,
                settings=own.settings,
                harmful=own.attacked[0],
                harmless=own.attacked[1],
                find_harmful=own.find_prompts[0],
                find_harmless=own.find_prompts[1],
                seeds=own.random_sets,
                rounds=own.rounds,
                max_new_tokens=own.max_new_tokens,
                costs=True,
                cost_tokens=own.cost_tokens,
                dtype=own.dtype,
            ),
            self._progress,
        ).result
        base, ours = self._perplexities(model)
        return Cell(
            arm=arm.name,
            seed=seed,
            key=self.key(arm, seed),
            protocol=own.as_dict(),
            base=resolve(own.model).fingerprint,
            fingerprint=done.model.fingerprint,
            mask=mask.sha256,
            mask_count=mask.count,
            mask_fraction=mask.fraction,
            training=card and {"settings": card["settings"], "figures": card["figures"]},
            pairs=card and card["pairs"] | self._told_of(pairs),
            prompts=done.prompts,
            counted=count(done),
            costs=done.costs,
            perplexity_base=base,
            perplexity=ours,
            judge=done.judge,
            training_seconds=round(sum(made["figures"]["seconds"] for made in cards), 1),
            attack_seconds=done.seconds,
            device=done.device,
            versions=done.versions | {"trl": version("trl")},
        )

    def mask(self) -> Path:
        """The set found on the base, before any training."""
        path = self.work / "mask.json"
        if not path.is_file():
            from analysis.study import identify

            own = self.protocol
            asked = IdentifyRequest(
                model=own.model,
                harmful=own.find_prompts[0],
                harmless=own.find_prompts[1],
                leave_out=own.attacked[0],
                position=own.position,
                top_sas=own.top_sas,
                top_es=own.top_es,
            )
            identify(asked, self._progress).mask.write(path)
        return path

    def pairs(self, seed: int, mask_path: Path) -> Path:
        """The pairs that all arms of a seed train on, made or drawn once."""
        from analysis.run_pairs import PAIRS, run_pairs
        from toolkit.models.load import load_model

        own, folder = self.protocol, self.work / f"pairs-seed{seed}"
        if not (folder / PAIRS).is_file():
            usual = self._request(ARMS["freeze-and-zero"], seed, mask_path, mask_path)
            named = ("safety", "general", "rejected_from", "total")
            asked = parse_request(
                AlignRequest,
                {name: getattr(usual, name) for name in AlignRequest.model_fields}
                | {"pairs": None}
                | {name: getattr(own, name) for name in named},
            )
            folder.mkdir(parents=True, exist_ok=True)
            neurons = read_mask(mask_path).neuron_set()
            run_pairs(asked, folder, load_model(own.model), neurons, self._heard)
        return folder / PAIRS

    @staticmethod
    def _told_of(pairs: Path | None) -> dict[str, Any]:
        """What the pairs were made or drawn from; the arm itself was only given their file."""
        from analysis.run_pairs import REPORT

        told: dict[str, Any] = {}
        if pairs is not None:
            told = json.loads((pairs.parent / REPORT).read_text("utf-8"))
        return told

    def folder(self, arm: Arm, seed: int) -> Path:
        """Where an arm trains; T1, T2 and T3 of a seed are one run, in one folder."""
        name = arm.name
        if _in_rounds(arm):
            name = "rounds" if arm.recipe == "safeneuron" else f"rounds-{arm.recipe}"
        return self.work / f"{name}-seed{seed}"

    def _train(self, arm: Arm, seed: int, mask_path: Path, pairs: Path) -> list[Path]:
        """The folders of the models trained, the last that of the arm.

        T1, T2 and T3 are one run of rounds.
        """
        request, folder = self._request(arm, seed, mask_path, pairs), self.folder(arm, seed)
        reference = self.work / "reference"
        if _in_rounds(arm):
            from analysis.rounds import rounds

            done = rounds(request, folder, self._heard, reference=reference)
            if not done.finished:
                raise StopAskedError
            return [folder / f"T{number}" for number in range(1, arm.rounds + 1)]
        from analysis.alignment import align

        asked = AlignRequest(**{name: getattr(request, name) for name in AlignRequest.model_fields})
        if not align(asked, folder, self._heard, lambda: False, reference).finished:
            raise StopAskedError
        return [folder]

    def _perplexities(self, model: str) -> tuple[float, float]:
        """Of the base's own greedy answers to the harmless prompts, under base and model."""
        from toolkit.generate import generate
        from toolkit.judge.perplexity import answer_losses, pooled_perplexity
        from toolkit.models.load import load_model

        own = self.protocol
        prompts = read_prompts(own.attacked[1]).texts
        kept = self.work / "answers.json"
        if not kept.is_file():
            base = load_model(own.model)
            answers = generate(base, prompts, own.cost_tokens)
            found = pooled_perplexity(answer_losses(base, prompts, answers))
            write_atomically(kept, json.dumps({"answers": answers, "perplexity": found}))
        told = json.loads(kept.read_text("utf-8"))
        if model == own.model:
            return told["perplexity"], told["perplexity"]
        losses = answer_losses(load_model(model), prompts, told["answers"])
        return told["perplexity"], pooled_perplexity(losses)

    def _heard(self, event: dict[str, Any]) -> None:
        if event["kind"] == "note":
            self.say("  " + str(event["text"]))
        elif event["kind"] == "train":
            self._progress("train", int(event["step"]), int(event["total"]))
        elif event["kind"] == "stage":
            self._progress(str(event["stage"]), int(event["done"]), int(event["total"]))

    def _progress(self, stage: str, done: int, total: int) -> None:
        """A line a stage."""
        if stage != self._stage:
            self._stage = stage
            self.say(f"  {stage}, {total} to do")
