"""``safeneuron overlap``: how far masks and scores agree, and how far chance alone would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app import terminal

if TYPE_CHECKING:
    import pandas as pd


def overlap(
    operands: Annotated[
        list[str],
        typer.Argument(
            metavar="MASK...",
            help="Mask files, parts of them (mask.json#es), or scores (scores.parquet#es).",
        ),
    ],
    by_layer: Annotated[bool, typer.Option("--by-layer", help="A row a layer too.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="Combinations of one K at most.")] = 2_000,
    seed: Annotated[int, typer.Option(help="Of the combinations drawn beyond that.")] = 0,
    table: Annotated[
        Path | None, typer.Option("--table", help="Write the pairs to a .md or .csv file too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Overlap of masks and scores with its chance level: pairs, K at a time, core and shared."""
    from analysis.comparison import records
    from analysis.overlap.composition import composition
    from analysis.overlap.kway import kway_table
    from analysis.overlap.operands import as_sets, rank_table, read_operand
    from analysis.overlap.pairs import overlap_table
    from analysis.tables import require_table, write_table

    if table is not None:
        require_table(table)
    read = [read_operand(spec) for spec in operands]
    sets = as_sets(read)
    pairs = overlap_table(sets, by_layer)
    ranks = rank_table(read, by_layer)
    several = len(sets) > 2
    kway = kway_table(sets, limit, seed) if several else None
    classes = composition(sets) if several else None
    if table is not None:
        write_table(pairs, table)
    if as_json:
        found: dict[str, Any] = {"pairs": _plain(pairs), "ranks": _plain(ranks)}
        if kway is not None and classes is not None:
            found |= {
                "kway": records(kway),
                "composition": records(classes.totals()),
                "p_core": classes.p_core,
            }
        terminal.print_json(found)
        return
    _print_pairs(pairs)
    if len(ranks):
        rows = [
            (
                f"{row['a']} | {row['b']}",
                _layer(row["layer"]),
                f"{row['rho']:.3f}",
                f"{row['rho_chance']:.3f}",
                _p(row["p"]),
            )
            for row in records(ranks)
        ]
        head = ("scores", "layer", "rank correlation", "by chance", "p")
        terminal.print_table("rank correlation (Spearman), permuted within layers", head, rows)
    if kway is not None and classes is not None:
        rows = [
            (
                str(row["k"]),
                f"{row['drawn']} of {row['combinations']}",
                f"{row['ratio']:.4f}",
                f"{row['ratio_chance']:.2g}",
                f"{row['low']:.4f} to {row['high']:.4f}",
            )
            for row in records(kway)
        ]
        head = ("K", "combinations", "in all of K / in any", "by chance", "range")
        terminal.print_table("any K of them", head, rows)
        classed = [
            (row["class"], str(row["neurons"]), f"{row['share']:.1%}", f"{row['chance']:.1f}")
            for row in records(classes.totals())
        ]
        terminal.print_table(
            f"in all (core), in several (shared), in one; p of the core {_p(classes.p_core)}",
            ("class", "neurons", "share", "by chance"),
            classed,
        )
    if table is not None:
        terminal.say(f"table: {table}")


def _print_pairs(pairs: "pd.DataFrame") -> None:
    from analysis.comparison import records

    rows = [
        (
            f"{row['a']} | {row['b']}",
            _layer(row["layer"]),
            f"{row['first']} and {row['second']}",
            f"{row['both']} ({row['both_chance']:.1f})",
            f"{row['jaccard']:.4f} ({row['jaccard_chance']:.4f})",
            f"{row['overlap']:.4f} ({row['overlap_chance']:.4f})",
            _p(row["p_more"]),
        )
        for row in records(pairs)
    ]
    head = ("masks", "layer", "neurons", "in both", "Jaccard", "overlap coefficient", "p")
    terminal.print_table("pairs; in brackets what chance gives", head, rows)


def _plain(table: "pd.DataFrame") -> list[dict[str, Any]]:
    from analysis.comparison import records

    return records(table.astype(object).where(table.notna(), None))


def _layer(value: Any) -> str:
    import pandas as pd

    return "all" if pd.isna(value) else str(value)


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.4f}"
