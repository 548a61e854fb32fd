"""Attack results side by side, each setting tested against its control and against the first."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.costs import printable_costs
from analysis.robustness import (
    JUDGED,
    AttackResult,
    Side,
    attack_table,
    finding,
    headline,
    succeeded,
)
from analysis.statistics import mcnemar, two_proportions, wilson
from analysis.tables import markdown_table
from toolkit.errors import SafeNeuronError

COLUMNS = {
    "setting": "setting",
    "neurons": "removed",
    "success": "successful",
    "complied": "complied",
    "refused": "refused",
    "degenerate": "degenerate",
    "p_random": "p against random",
    "p_first": "p against first",
}


def compare_attacks(results: Mapping[str, AttackResult]) -> pd.DataFrame:
    """Every setting of every result, one row each and side.

    To the columns of :func:`analysis.robustness.attack_table` come ``result`` (its name)
    and ``p_first``: the exact p-value that the same setting succeeds as often as in the
    first result. Paired (McNemar) where both answered the same prompts, else Fisher's;
    ``test_first`` says which. RANDOM is its mean over seeds, which has no pairs.
    """
    if not results:
        raise SafeNeuronError("nothing to compare: name at least one attack file")
    first = next(iter(results.values()))
    frames = []
    for name, result in results.items():
        table = headline(result)
        table.insert(0, "result", name)
        tests = [
            (None, None) if result is first else _against_first(first, result, row)
            for row in records(table)
        ]
        table["p_first"] = [p for p, _ in tests]
        table["test_first"] = [test for _, test in tests]
        frames.append(table)
    return pd.concat(frames, ignore_index=True)


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows by column name."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.itertuples(index=False)]


def _against_first(
    first: AttackResult, other: AttackResult, row: dict[str, Any]
) -> tuple[float | None, str | None]:
    name, side = str(row["setting"]), row["side"]
    theirs = _successes(first, name, side)
    if not theirs:
        return None, None
    ours = _successes(other, name, side)
    if ours and first.prompts[side].sha256 == other.prompts[side].sha256:
        shared = ours.keys() & theirs.keys()
        gained = sum(ours[i] and not theirs[i] for i in shared)
        lost = sum(theirs[i] and not ours[i] for i in shared)
        return mcnemar(gained, lost), "McNemar"
    counts = wilson(sum(theirs.values()), len(theirs))
    own = wilson(int(row["k_success"]), int(row["n"]))
    return two_proportions(own, counts), "Fisher"


def _successes(result: AttackResult, setting: str, side: Side) -> dict[int, bool]:
    """Which prompts an unseeded setting succeeded on."""
    return {
        a.index: succeeded(a)
        for a in result.answers
        if (a.setting, a.seed, a.side) == (setting, None, side) and a.verdict != "skipped"
    }


def summary(result: AttackResult) -> dict[str, Any]:
    """What an attack showed as plain values: the finding, the table, the costs."""
    found = finding(result)
    table = attack_table(result)
    return {
        "verdict": found.sentence if found else None,
        "separated": found.separated if found else None,
        "table": table.astype(object).where(table.notna(), None).to_dict("records"),
        "costs": [cost.model_dump() for cost in result.costs],
    }


def printable(table: pd.DataFrame, side: Side) -> pd.DataFrame:
    """One side as words: k/n with intervals, p-values, and who was not asked."""
    rows = []
    chosen = table[table["side"] == side]
    harm = bool((chosen["k_success"] != chosen["k_complied"]).any() or chosen["unparsed"].any())
    several = "result" in chosen and chosen["result"].nunique() > 1
    for row in records(chosen):
        seeds = row.get("seeds")
        name = str(row["setting"])
        if seeds is not None and pd.notna(seeds):
            name += f" (mean of {int(seeds)})"
        cells = {"result": row["result"]} if several else {}
        cells |= {"setting": name, "neurons": str(row["neurons"])}
        if harm:
            cells["success"] = str(wilson(int(row["k_success"]), int(row["n"])))
            if row["unparsed"]:
                cells["success"] += f" ({row['unparsed']} unparsed)"
        for verdict in JUDGED:
            cells[verdict] = str(wilson(int(row[f"k_{verdict}"]), int(row["n"])))
        for test in ("p_random", "p_first"):
            value = row.get(test)
            cells[test] = "-" if value is None or pd.isna(value) else _p(value)
        if row["skipped"]:
            cells["degenerate"] += f" ({row['skipped']} not asked: too long)"
        rows.append(cells)
    shown = pd.DataFrame(rows).rename(columns=COLUMNS)
    empty = [c for c in ("p against random", "p against first") if (shown[c] == "-").all()]
    return shown.drop(columns=empty)


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"


def markdown(table: pd.DataFrame, sides: list[Side]) -> str:
    """The table of each side in Markdown, with what its numbers are."""
    parts = []
    for side in sides:
        title = f"**{side} prompts**, k/n with Wilson 95 % intervals"
        parts.append(title + "\n\n" + markdown_table(printable(table, side)))
    return "\n".join(parts)


def costs_markdown(name: str, result: AttackResult) -> str:
    """What each setting of an attack costs, in Markdown; for results with costs."""
    title = (
        f"**{name}: costs** on {result.prompts['harmless'].name}: divergence from the whole model "
        f"and perplexity over its own answers of at most {result.generation.cost_tokens} tokens, "
        "with bootstrap 95 % intervals over prompts"
    )
    return title + "\n\n" + markdown_table(printable_costs(result))
