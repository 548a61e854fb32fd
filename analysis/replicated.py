"""The comparison's section of the results page: computed from its cells, nothing by hand."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from analysis.answers import answers, contrasts, evidence_table, goals_table
from analysis.arms import ARMS, Protocol, title_of, titled
from analysis.arms_figure import draw
from analysis.cells import Cell, by_arm
from analysis.contrasts import ADAPTIVE, AGAIN, COLUMNS, FULL, SINGLE, not_complied, share
from analysis.elsewhere import FOLDER as ELSEWHERE
from analysis.elsewhere import elsewhere_rows, read_elsewhere
from analysis.results import write_section
from analysis.statistics import wilson
from analysis.tables import markdown_rows
from analysis.tried import FOLDER, HEADER, numbers, read_tried, tried_rows
from toolkit.errors import SafeNeuronError

MARKS = (
    "<!-- comparison: written by analysis.replicate -->",
    "<!-- end of the comparison -->",
)
# Means over models, FULL, counted from the paper's Table 1: nine of them, and all ten.
PAPER_FULL = {
    "base": (70.7, 72.0),
    "sn-tune": (74.7, 75.9),
    "dpo": (47.0, 51.3),
    "freeze-and-zero": (28.6, 34.4),
}
PAPER_NOTE = (
    "The paper's means are ours, of its Table 1: nine models without DeepSeek-R1-1.5B, on which "
    "its method did next to nothing, and all ten.\n"
)
UNLIKE = (
    "A row is the mean over its own seeds; answers, goals and contrasts take of two arms the seeds "
    "that both have.\n"
)
CHOSEN = (
    "The numbers of `adaptive` were chosen after trials that were attacked on these prompts (under "
    "what else was tried), and it trains at twice the rate of plain DPO with five times its share "
    "of SFT; the presets of the others come from earlier trials on this model, some with the same "
    "prompts. No row is a blind test, and adaptive's least."
)
# NeuronGuard (2608.23959) on Llama-3.1-8B: what it reports of itself and of SafeNeuron.
NEURONGUARD = (
    ("NeuroStrike, no defence", "0.89"),
    ("NeuroStrike, SafeNeuron", "0.22"),
    ("NeuroStrike, NeuronGuard", "0.04"),
    ("iterative pruning, 5 rounds, no defence", "0.83"),
    ("iterative pruning, 5 rounds, SafeNeuron", "0.42"),
    ("iterative pruning, 5 rounds, NeuronGuard", "0.09"),
)


def _ordered(arms: Mapping[str, list[Cell]]) -> list[tuple[str, list[Cell]]]:
    known = [name for name in ARMS if name in arms]
    return [(name, arms[name]) for name in [*known, *sorted(set(arms) - set(known))]]


def _titled(name: str, cells: Sequence[Cell]) -> str:
    return titled(name, [cell.seed for cell in cells])


def attacks_table(arms: Mapping[str, list[Cell]]) -> str:
    """Success of each attack on harmful prompts, a row an arm."""
    used = [c for c in COLUMNS if any(share(cells, c) for cells in arms.values())]
    rows = []
    for name, cells in _ordered(arms):
        shares = [share(cells, column) for column in used]
        told = [str(found) if found else "-" for found in shares]
        nine, ten = (f"{mean:.1f} %" for mean in PAPER_FULL[name]) if name in PAPER_FULL else "--"
        rows.append([_titled(name, cells), *told, nine, ten])
    paper = [f"the paper's FULL, mean of {many}" for many in ("nine", "ten")]
    return markdown_rows(["arm", *(column.name for column in used), *paper], rows)


def others_table(arms: Mapping[str, list[Cell]]) -> str:
    """What was answered to the same prompts where the attack did not succeed, a row an arm."""
    used = [c for c in COLUMNS if any(share(cells, c) for cells in arms.values())]
    rows = []
    for name, cells in _ordered(arms):
        told = []
        for column in used:
            if share(cells, column) is None:
                told.append("-")
                continue
            refused, degenerate = not_complied(cells, column)
            told.append(f"{refused:g} + {degenerate:g}")
        rows.append([_titled(name, cells), *told])
    return markdown_rows(["arm", *(column.name for column in used)], rows)


def numbers_table(arms: Mapping[str, list[Cell]]) -> str:
    """What each arm was trained with, a row an arm; recipes differ in more than their idea."""
    rows = []
    for name, cells in _ordered(arms):
        if cells[0].training is not None:
            told = numbers(cells[0].training["settings"])
            rounds = ARMS[name].rounds if name in ARMS else 1
            several = f"{rounds} rounds, each " if rounds > 1 else ""
            rows.append([title_of(name), several + told])
    return markdown_rows(["arm", "numbers"], rows) if rows else ""


def seeds_table(arms: Mapping[str, list[Cell]]) -> str:
    """The same figures a seed, as counts."""
    rows = []
    for name, cells in _ordered(arms):
        for cell in cells:
            counts = [column.pick(cell) for column in (FULL, AGAIN, ADAPTIVE, SINGLE)]
            told = [f"{found[0].success}/{found[0].n}" if found else "-" for found in counts]
            rounds = ", ".join(str(c.success) for c in cell.adaptive_rounds()) or "-"
            rows.append([title_of(name), str(cell.seed), *told, rounds, cell.device or "unknown"])
    header = ["arm", "seed", "FULL", "AGAIN", "ADAPTIVE, best", "SINGLE", "ADAPTIVE, every round"]
    return markdown_rows([*header, "on"], rows)


def _usual_device(arms: Mapping[str, list[Cell]]) -> str | None:
    """Where most cells were made: seconds of several devices have no mean."""
    return Counter(cell.device for cells in arms.values() for cell in cells).most_common(1)[0][0]


def _mean_seconds(seconds: Sequence[float]) -> str:
    return f"{np.mean(seconds):.0f}" if seconds else "-"


def costs_table(arms: Mapping[str, list[Cell]]) -> str:
    """What each arm costs on harmless prompts, and what its attacks cost."""
    usual = _usual_device(arms)
    rows = []
    for name, cells in _ordered(arms):
        refused = [cell.of("ORI", "harmless")[0] for cell in cells if cell.of("ORI", "harmless")]
        ratios = [cell.perplexity / cell.perplexity_base for cell in cells]
        divergence = [c.kl for cell in cells for c in cell.costs if c.setting == "FULL"]
        measured = [kl for kl in divergence if kl is not None]
        figures = [cell.training["figures"] for cell in cells if cell.training]
        timed = [cell for cell in cells if cell.device == usual]
        share_refused = wilson(
            round(float(np.mean([c.refused for c in refused]))), refused[0].n if refused else 0
        )
        rows.append(
            [
                _titled(name, cells),
                str(share_refused),
                f"{np.mean(ratios):.3f}",
                f"{np.mean(measured):.3g}" if measured else "-",
                f"{np.mean([f['frozen_numbers'] for f in figures]):,.0f}" if figures else "-",
                _mean_seconds([cell.training_seconds for cell in timed if cell.training]),
                _mean_seconds([cell.attack_seconds for cell in timed]),
            ]
        )
    header = [
        "arm",
        "harmless refused, as it is",
        "perplexity of the base's answers / the base's",
        "KL of FULL, nats a token",
        "numbers held",
        f"training, s on {usual or 'an unknown device'}",
        "attack, s",
    ]
    return markdown_rows(header, rows)


def _facts(cells: Sequence[Cell]) -> str:
    first = cells[0]
    harmful, harmless = (first.prompts[side] for side in ("harmful", "harmless"))
    # T3 has T2 and T1 in it: of each cell the last round alone.
    last = [cell.training["figures"]["seconds"] for cell in cells if cell.training]
    spent = sum(last) + sum(cell.attack_seconds for cell in cells)
    devices = ", ".join(sorted({cell.device or "unknown" for cell in cells}))
    versions = sorted({", ".join(f"{k} {v}" for k, v in c.versions.items()) for c in cells})
    own = first.protocol
    lines = [
        f"Model `{own['model']}` (fingerprint `{first.base[:12]}`); mask of {first.mask_count} "
        f"neurons ({first.mask_fraction:.2%}; top {own['top_sas']} by SAS, {own['top_es']} by ES, "
        f"position {own['position']}), `{first.mask[:12]}`, found before training.",
        *_pairs_fact(cells),
        f"Attacked: {harmful.count} harmful ({harmful.name}), {harmless.count} harmless "
        f"({harmless.name}); greedy answers of at most {own['max_new_tokens']} tokens; judge "
        f"`{first.judge}`.",
        f"{len(cells)} cells, seeds {', '.join(str(s) for s in sorted({c.seed for c in cells}))}, "
        f"{spent / 3600:.1f} h in all on {devices}; {'; '.join(versions)}.",
        "A share is the mean over seeds with the Wilson 95 % interval of one seed's n: seeds "
        "answer the same prompts. p: sign flips over prompts, each its mean over seeds, adjusted "
        "for the number of contrasts (Holm). An answer counts as yes or no only at an adjusted p "
        "below 0.05, and if every seed agrees.",
        *_noise_fact(cells),
    ]
    if any(cell.arm == "adaptive" for cell in cells) and own["model"] == Protocol().model:
        lines.append(CHOSEN)
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _pairs_fact(cells: Sequence[Cell]) -> list[str]:
    """Which pairs the arms of each seed trained on, if there is such an arm."""
    told = {cell.seed: cell.pairs for cell in reversed(cells) if cell.pairs}
    if not told:
        return []
    first = told[min(told)]
    sources = ", ".join(f"{source['role']}: {source['name']}" for source in first["sources"])
    counts = ", ".join(
        f"{pairs['kept']} pairs, {pairs['safety']} of them from safety data or on harmful prompts "
        f"(seed {seed})"
        for seed, pairs in sorted(told.items())
    )
    return [f"Trained on {counts}; {sources}."]


def _noise_fact(cells: Sequence[Cell]) -> list[str]:
    """How far two runs of one attack differ: AGAIN and the first adaptive round are one."""
    apart = [
        abs(again[0].success - rounds[0].success)
        for cell in cells
        if (again := cell.of("AGAIN")) and (rounds := cell.adaptive_rounds())
        if again[0].neurons == rounds[0].neurons
    ]
    if not apart:
        return []
    return [
        "AGAIN and the first adaptive round remove the same neurons, answered in other batches: "
        f"they differ by at most {max(apart)} in {len(apart)} cells, which is what rounding does."
    ]


def section(
    cells: Sequence[Cell],
    results: str,
    figures: Sequence[str] = (),
    tried: Mapping[str, Cell] | None = None,
    again: Sequence[Cell] = (),
) -> str:
    """The comparison as Markdown.

    Args:
        cells: of one protocol.
        results: where their files are, as the page names it.
        figures: of the page, as it names them.
        tried: cells of other protocols or numbers, by folder and name.
        again: cells of the comparison made once more on another device.
    """
    arms = by_arm(cells)
    missing = [name for name in ARMS if name not in arms]
    known = contrasts(arms)
    parts = ["## Which training stands the attack?\n", answers(arms, known)]
    if missing:
        parts.append(f"Not run yet: {', '.join(missing)}.\n")
    parts += [f"![Attack success by arm]({name})\n" for name in figures]
    parts += ["**Attack success on harmful prompts**, k/n\n", attacks_table(arms), PAPER_NOTE]
    if len({tuple(c.seed for c in own) for name, own in arms.items() if name != "base"}) > 1:
        parts.append(UNLIKE)
    parts += [
        "**The other answers to them**, refused + degenerate; SINGLE picks its neuron by refusals "
        "alone, so that what it leaves may be babble\n",
        others_table(arms),
    ]
    if goals := goals_table(arms):
        parts += ["**Goals**\n", goals]
    if evidence := evidence_table(known):
        parts += ["**Behind the answers**, attack success of two arms\n", evidence]
    if trained := numbers_table(arms):
        parts += ["**What each arm was trained with**\n", trained]
    parts += ["**Costs**, on harmless prompts\n", costs_table(arms)]
    parts += ["**Every seed**, successes on harmful prompts\n", seeds_table(arms)]
    if twice := elsewhere_rows(cells, again):
        parts += [
            "**The same cell on two devices**, successes on harmful prompts; the second of each "
            f"is in `{results}/{ELSEWHERE}`\n",
            markdown_rows(["cell", "on", *(column.name for column in COLUMNS)], twice),
        ]
    if tried:
        parts += [
            f"**What else was tried**, a seed each, in `{results}/{FOLDER}`: other pairs or other "
            "numbers, not to be held against those above\n",
            markdown_rows(HEADER, tried_rows(tried)),
        ]
    peers = markdown_rows(["attack and defence", "attack success"], NEURONGUARD)
    parts += [
        "**What NeuronGuard reports** (arXiv 2608.23959) after task tuning, NeuroStrike on "
        "Llama-3.1-8B, judged by Llama Guard 3: another model, another judge\n",
        peers,
        f"**How it was made**; a file a cell in `{results}`, `make replicate` adds those missing\n",
        _facts(cells),
    ]
    return "\n".join(parts)


def write_page(path: Path, cells: Sequence[Cell], results: Path) -> None:
    """Write the comparison's section into a page, above what else is on it.

    Raises:
        SafeNeuronError: there are no cells.
    """
    if not cells:
        raise SafeNeuronError(f"{results} holds no cell yet: 'make replicate' makes them")
    drawn = draw(by_arm(cells), path.parent / "images")
    told = section(cells, results.as_posix(), drawn, read_tried(results), read_elsewhere(results))
    write_section(path, told, MARKS, leads=True)
