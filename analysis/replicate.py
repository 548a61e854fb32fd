"""The comparison of alignment methods: ``python -m analysis.replicate`` (``make replicate``).

Every cell is an arm of :data:`analysis.arms.ARMS` and a seed: the base is trained so, and
attacked on all StrongREJECT prompts with the set found before training and with sets found
again. A cell's JSON is written as soon as it is done, and one that is there is not done
again: interrupted, the comparison goes on where it was, on another machine too, and several
processes may fill it side by side. Then the section of the results page is written from the
cells.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from analysis.arms import ARMS, QUICK, QUICK_SEEDS, SEEDS, Arm, Protocol, chosen_arms
from analysis.before_after import StopAskedError
from analysis.cells import Cell, count, path_of, read_cell, read_cells, write_cell
from analysis.requests import (
    AlignRequest,
    AttackRequest,
    IdentifyRequest,
    RoundsRequest,
    parse_request,
)
from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, require_writable, sha256_text, write_atomically
from toolkit.home import home
from toolkit.masks import read_mask
from toolkit.models.sources import CARD, resolve
from toolkit.prompts import read_prompts

RESULTS, PAGE = Path("docs/replicate"), Path("docs/results.md")
QUICK_RESULTS, QUICK_PAGE = Path("build/replicate-quick"), Path("build/replicate-quick/results.md")
Say = Callable[[str], None]


class Replication:
    """One comparison: its protocol, where its cells go, and where it works.

    Args:
        protocol: what all cells share.
        results: folder of the cells.
        work: folder of models and other things that can be made again.
        say: hears a line of what is done.
        keep_models: leave the trained models in ``work``.
    """

    def __init__(
        self, protocol: Protocol, results: Path, work: Path, say: Say, keep_models: bool = False
    ) -> None:
        self.protocol, self.results, self.say = protocol, results, say
        self.work = work / protocol.sha256[:12]
        self.keep_models = keep_models
        self._stage = ""

    def run(self, arms: Sequence[Arm], seeds: Sequence[int], redo: bool = False) -> list[str]:
        """Make every missing cell, seed by seed, so that early seeds compare all arms.

        A cell that can't be made (its loss is no number, say) does not keep the others from
        being made.

        Args:
            arms: to compare.
            seeds: of pairs, data order and everything random.
            redo: make cells anew that were made otherwise, instead of stopping there.

        Returns:
            The cells that could not be made, and why.

        Raises:
            SafeNeuronError: a cell in ``results`` was made otherwise, or what all arms share
                can't be made.
            StopAskedError: training was told to stop.
        """
        wanted = [(arm, seed) for seed in seeds for arm in arms if arm.seeded or seed == seeds[0]]
        missing = [(arm, seed) for arm, seed in wanted if not self._there(arm, seed, redo)]
        self.say(f"{len(wanted) - len(missing)} of {len(wanted)} cells are there")
        failed: list[str] = []
        started = time.monotonic()
        for place, (arm, seed) in enumerate(missing):
            pace = (time.monotonic() - started) / max(1, place)
            left = f", {pace * (len(missing) - place) / 60:.0f} min left at this pace"
            nth = f"{place + 1} of {len(missing)} to do{left if place else ''}"
            self.say(f"{arm.name}, seed {seed}: {nth}")
            # What is wrong with these is wrong for every arm.
            with self._alone("shared"):
                mask = self._mask()
                pairs = self._pairs(seed, mask) if arm.seeded else None
            with self._alone(self._folder(arm, seed).name) as waited:
                if waited and self._there(arm, seed, redo):
                    continue
                try:
                    cell = self.cell(arm, seed, mask, pairs)
                except SafeNeuronError as error:
                    self.say(f"{arm.name}, seed {seed}: failed, {error}")
                    failed.append(f"{arm.name}, seed {seed} ({error})")
                    continue
                written = write_cell(self.results, cell)
                spent = cell.training_seconds + cell.attack_seconds
                self.say(f"{arm.name}, seed {seed}: {written} after {spent:.0f} s")
                self._tidy(arm, seed, missing[place + 1 :])
        return failed

    @contextmanager
    def _alone(self, name: str) -> Iterator[bool]:
        """Keep other processes off one part of the work; whether one was waited for."""
        self.work.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.work / f"{name}.lock")
        waited = False
        try:
            lock.acquire(timeout=0)
        except Timeout:
            self.say(f"  waits for another process, which works on {name}")
            waited = True
            lock.acquire()
        try:
            yield waited
        finally:
            lock.release()

    def _there(self, arm: Arm, seed: int, redo: bool) -> bool:
        path = path_of(self.results, arm.name, seed)
        cell = read_cell(path)
        if cell is None:
            if path.exists():
                self.say(f"{path} is broken and is made again")
            return False
        if cell.key == self._key(arm, seed):
            return True
        if redo:
            return False
        raise SafeNeuronError(
            f"{path} was made under another protocol or with other numbers of its recipe; choose "
            "another --results folder, or --redo it"
        )

    def _key(self, arm: Arm, seed: int) -> str:
        """Names what a cell depends on, wherever it is made."""
        asked = None
        if arm.recipe is not None:
            left = {"model", "mask", "pairs"}
            asked = self._request(arm, seed, Path("m"), Path("p")).model_dump(
                mode="json", exclude=left
            )
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

    # --- one cell ------------------------------------------------------------------------

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
            key=self._key(arm, seed),
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

    def _mask(self) -> Path:
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

    def _pairs(self, seed: int, mask_path: Path) -> Path:
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

    def _folder(self, arm: Arm, seed: int) -> Path:
        rounds = arm.recipe == "safeneuron" and arm.zero
        return self.work / (f"rounds-seed{seed}" if rounds else f"{arm.name}-seed{seed}")

    def _train(self, arm: Arm, seed: int, mask_path: Path, pairs: Path) -> list[Path]:
        """The folders of the models trained, the last that of the arm.

        T1, T2 and T3 are one run of rounds.
        """
        request, folder = self._request(arm, seed, mask_path, pairs), self._folder(arm, seed)
        reference = self.work / "reference"
        if folder.name.startswith("rounds-"):
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

    def _tidy(self, arm: Arm, seed: int, left: Sequence[tuple[Arm, int]]) -> None:
        """Remove a model that no cell needs any more; each is half a gigabyte."""
        folder = self._folder(arm, seed)
        if not self.keep_models and all(self._folder(*other) != folder for other in left):
            shutil.rmtree(folder, ignore_errors=True)

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

    # --- what is heard -------------------------------------------------------------------

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


def _say(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stderr.flush()


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() for part in parts):
        raise SafeNeuronError(f"--seeds {text!r}: give numbers such as 0,1,2")
    return tuple(int(part) for part in parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the missing cells, then write the page's section from all cells there are."""
    from analysis.replicated import write_page

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a first look: part of everything")
    parser.add_argument("--arms", help="comma-separated; " + ", ".join(ARMS))
    parser.add_argument("--seeds", help="comma-separated numbers; 0,1,2 by default")
    parser.add_argument("--model", help="that all arms begin with")
    parser.add_argument("--preset", choices=("two-core", "paper"))
    parser.add_argument("--safety", help="safety pairs, as those of safeneuron align")
    parser.add_argument("--general", help="general pairs, as those of safeneuron align")
    parser.add_argument("--rejected-from", help="model that complies, as that of safeneuron align")
    parser.add_argument("--total", type=int, help="pairs drawn")
    parser.add_argument("--max-length", type=int, help="tokens of a pair")
    parser.add_argument("--results", type=Path, help="folder of the cells")
    parser.add_argument("--page", type=Path, help="the page to write")
    parser.add_argument("--redo", action="store_true", help="redo cells that were made otherwise")
    parser.add_argument("--keep-models", action="store_true")
    parser.add_argument("--write-only", action="store_true", help="only write the page")
    asked = parser.parse_args(arguments)
    names = ("model", "preset", "safety", "general", "rejected_from", "total", "max_length")
    changed = {name: getattr(asked, name) for name in names if getattr(asked, name) is not None}
    protocol = replace(QUICK if asked.quick else Protocol(), **changed)
    results = asked.results or (QUICK_RESULTS if asked.quick else RESULTS)
    page = asked.page or (QUICK_PAGE if asked.quick else PAGE)
    failed: list[str] = []
    try:
        seeds = QUICK_SEEDS if asked.quick else SEEDS
        if asked.seeds is not None:
            seeds = _numbers(asked.seeds)
        arms = chosen_arms(asked.arms)
        require_writable(results)
        require_writable(page)
        if not asked.write_only:
            work = home() / "replicate"
            replication = Replication(protocol, results, work, _say, asked.keep_models)
            try:
                failed = replication.run(arms, seeds, asked.redo)
            except (KeyboardInterrupt, StopAskedError):
                # The cells there are stay readable.
                if cells := read_cells(results):
                    write_page(page, cells, results)
                raise
        cells = read_cells(results)
        if cells or not failed:
            write_page(page, cells, results)
        if failed:
            raise SafeNeuronError(
                f"not made: {'; '.join(failed)}; the same command tries again, "
                f"{page} has the others"
            )
    except (KeyboardInterrupt, StopAskedError):
        sys.stderr.write("replicate: stopped; the same command goes on\n")
        sys.exit(130)
    except SafeNeuronError as error:
        sys.stderr.write("replicate: " + " ".join(str(error).split()) + "\n")
        sys.exit(2)
    sys.stdout.write(f"{page}\n")


if __name__ == "__main__":
    main()
