"""The comparison of alignment methods: ``python -m analysis.replicate`` (``make replicate``).

Every cell is an arm of :data:`analysis.arms.ARMS` and a seed: the base is trained so, and
attacked on all StrongREJECT prompts with the set found before training and with sets found
again. A cell's JSON is written as soon as it is done, and one that is there is not done
again: interrupted, the comparison goes on where it was, on another machine too, and several
processes may fill it side by side. Then the section of the results page is written from the
cells.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from filelock import FileLock, Timeout

from analysis.arms import ARMS, QUICK, QUICK_SEEDS, SEEDS, Arm, Protocol, chosen_arms
from analysis.before_after import StopAskedError
from analysis.cell_maker import CellMaker, Say
from analysis.cells import path_of, read_cell, read_cells, write_cell
from toolkit.errors import SafeNeuronError
from toolkit.files import require_writable
from toolkit.home import home

RESULTS, PAGE = Path("docs/replicate"), Path("docs/results.md")
QUICK_RESULTS, QUICK_PAGE = Path("build/replicate-quick"), Path("build/replicate-quick/results.md")


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
        self.results, self.say, self.keep_models = results, say, keep_models
        self.work = work / protocol.sha256[:12]
        self.maker = CellMaker(protocol, self.work, say)

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
        # What has no seed is one cell, whichever seeds are asked for.
        wanted = [
            (arm, seed if arm.seeded else SEEDS[0])
            for seed in seeds
            for arm in arms
            if arm.seeded or seed == seeds[0]
        ]
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
                mask = self.maker.mask()
                pairs = self.maker.pairs(seed, mask) if arm.seeded else None
            with self._alone(self.maker.folder(arm, seed).name) as waited:
                if waited and self._there(arm, seed, redo):
                    continue
                try:
                    cell = self.maker.cell(arm, seed, mask, pairs)
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
        if cell.key == self.maker.key(arm, seed):
            return True
        if redo:
            return False
        raise SafeNeuronError(
            f"{path} was made under another protocol or with other numbers of its recipe; choose "
            "another --results folder, or --redo it"
        )

    def _tidy(self, arm: Arm, seed: int, left: Sequence[tuple[Arm, int]]) -> None:
        """Remove a model that no cell needs any more; each is half a gigabyte."""
        folder = self.maker.folder(arm, seed)
        if not self.keep_models and all(self.maker.folder(*other) != folder for other in left):
            shutil.rmtree(folder, ignore_errors=True)


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
