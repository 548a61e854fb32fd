"""The page of evidence: figures 3 to 7, what alignment moved, and what each shows in words."""

import shlex
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from analysis.depth import depth_table
from analysis.evidence.gather import Evidence, EvidenceRequest
from analysis.evidence.words import (
    composition_words,
    crossing_words,
    depth_words,
    kway_words,
    overlap_words,
    redistribution_words,
    scale_words,
)
from analysis.exports.images import write_figure
from analysis.figures.paper import (
    composition_figure,
    data_scale_figure,
    depth_figure,
    kway_figure,
    method_overlap_figure,
    redistribution_figure,
    refusal_curves_figure,
)
from analysis.overlap.pairs import overlap_by_layer, overlap_table
from analysis.statistics import wilson
from analysis.tables import markdown_table
from toolkit.files import write_atomically
from toolkit.neurons import NeuronSet

Pair = tuple[str, str]


def command_of(request: EvidenceRequest) -> str:
    """The one command that makes the page again."""
    default = EvidenceRequest().model_dump(mode="json")
    words = ["python", "-m", "analysis.evidence"]
    for name, value in request.model_dump(mode="json").items():
        if value != default[name]:
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join(words)


def method_pairs(methods: dict[str, NeuronSet]) -> list[Pair]:
    """Which methods figure 7 holds against each other: ES against each of the rest."""
    first = "ES" if "ES" in methods else next(iter(methods), "")
    return [(first, name) for name in methods if name != first]


def figures_of(found: Evidence) -> dict[str, go.Figure]:
    """Every figure of the page, by the name of its file."""
    drawn = {
        "composition": composition_figure(found.classes.layers, "topics"),
        "depth": depth_figure(depth_table(found.models)),
        "kway": kway_figure(found.kway, "topics"),
    }
    for first, second in method_pairs(found.methods):
        rows = overlap_by_layer(found.methods[first], found.methods[second])
        drawn[f"overlap-{first}-{second}".lower()] = method_overlap_figure(rows, (first, second))
    if found.scale is not None:
        drawn["data"] = data_scale_figure(found.scale)
    drawn["removal"] = refusal_curves_figure(found.curves)
    if found.moved is not None:
        drawn["redistribution"] = redistribution_figure(found.moved.layers)
    return drawn


def write_page(found: Evidence, path: Path, ending: str = ".png") -> list[Path]:
    """Write the page and its figures, which go to ``images`` beside it.

    Args:
        found: what is on it.
        path: the Markdown file.
        ending: of the figures' files; ``.png``, ``.svg`` or ``.html``.

    Returns:
        The files written, the page last.
    """
    files = []
    links: dict[str, str] = {}
    for name, figure in figures_of(found).items():
        target = path.parent / "images" / f"analysis-{name}{ending}"
        write_figure(figure, target)
        files.append(target)
        links[name] = f"images/{target.name}"
    write_atomically(path, page_text(found, links))
    return [*files, path]


def page_text(found: Evidence, links: dict[str, str]) -> str:
    """The page as Markdown; ``links`` has the file of each figure, by its name."""
    parts = ["# Where safety lives in the layers, and what alignment moves\n", _intro(found)]
    parts += _section(
        "Core, shared and specific neurons (the paper's figure 3)",
        links["composition"],
        composition_words(found.classes),
        markdown_table(_totals(found)),
    )
    parts += _section("Where in depth (figure 4)", links["depth"], depth_words(found.models), None)
    parts += _section(
        "Overlap of any K topics (figure 5)",
        links["kway"],
        kway_words(found.kway),
        markdown_table(found.kway.drop(columns=["low", "high"])),
    )
    if found.scale is not None:
        parts += _section(
            "Attack success against alignment data (figure 6)",
            links["data"],
            scale_words(found.scale),
            markdown_table(_scale_table(found.scale)),
        )
    parts += _methods(found, links)
    parts += _moved(found, links)
    parts.append("## Made from\n")
    parts += [f"- `safeneuron cache show {kind} {key[:12]}`" for kind, key in found.keys]
    return "\n".join(parts) + "\n"


def _intro(found: Evidence) -> str:
    request = found.request
    topics = "; ".join(
        f"{name} ({mask.prompts.harmful.count})" for name, mask in found.topics.masks.items()
    )
    control = (
        "all against the same harmless prompts"
        if found.topics.shared_control
        else "each against harmless prompts of its own, so that a shared control makes no overlap"
    )
    left = "".join(
        f" Left out for having few prompts: {name} ({count})."
        for name, count in found.topics.left_out.items()
    )
    return (
        "Everything on this page, the words too, is written from stored results by\n\n"
        f"```\n{command_of(request)}\n```\n\n"
        f"Model: `{Path(request.model).name}`. Neurons are the top {request.top_sas:.2%} by SAS "
        f"and {request.top_es:.2%} by ES at the {request.position} token position. Topics: "
        f"{topics}; {control}.{left} Chance is exact: random sets with the same number of neurons "
        "in each layer. The paper gives neither chance levels nor the numbers behind its "
        "figures, so agreement is with its words.\n"
    )


def _section(title: str, link: str, words: list[str], table: str | None) -> list[str]:
    parts = [f"## {title}\n", *(f"- {word}" for word in words), ""]
    parts.append(_shown(title, link))
    if table is not None:
        parts.append(table)
    return parts


def _shown(title: str, link: str) -> str:
    if link.endswith(".html"):
        return f"[{title}]({link})\n"
    return f"![{title}]({link})\n"


def _totals(found: Evidence) -> pd.DataFrame:
    totals = found.classes.totals()
    totals["share"] = [f"{share:.1%}" for share in totals["share"]]
    return totals.rename(columns={"share": "share of the union", "chance": "by chance"})


def _scale_table(scale: pd.DataFrame) -> pd.DataFrame:
    """Settings against shares of the data, cells k/n with their intervals."""
    cells = scale.assign(
        cell=[
            str(wilson(int(k), int(n))) for k, n in zip(scale["k_success"], scale["n"], strict=True)
        ],
        column=[f"{share:.0%} of the data" for share in scale["data"]],
    )
    wide = cells.pivot_table(
        index="setting", columns="column", values="cell", aggfunc="first", sort=False
    )
    return wide.reset_index()


def _methods(found: Evidence, links: dict[str, str]) -> list[str]:
    pairs = method_pairs(found.methods)
    if not pairs:
        return []
    parts = ["## Overlap of methods (figure 7)\n"]
    for first, second in pairs:
        told = overlap_words((first, second), found.methods[first], found.methods[second])
        parts.append(f"- {told}")
    parts.append("")
    for first, second in pairs:
        name = f"overlap-{first}-{second}".lower()
        parts.append(_shown(f"{first} and {second}, layer by layer", links[name]))
    parts.append(markdown_table(_pair_table(overlap_table(found.methods))))
    positions = overlap_table({f"{name} token": each for name, each in found.positions.items()})
    parts += ["The same model read at other token positions:\n"]
    parts.append(markdown_table(_pair_table(positions)))
    return parts


def _pair_table(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "a": "one",
        "b": "other",
        "first": "neurons",
        "second": "and",
        "both": "in both",
        "both_chance": "by chance",
        "jaccard": "Jaccard",
        "jaccard_chance": "by chance ",
        "overlap": "overlap coefficient",
        "p_more": "p",
    }
    shown = table[list(columns)].rename(columns=columns)
    shown["p"] = ["< 1e-4" if p < 1e-4 else f"{p:.2g}" for p in table["p_more"]]
    return shown


def _moved(found: Evidence, links: dict[str, str]) -> list[str]:
    parts = ["## What alignment moved\n"]
    if found.moved is None:
        parts.append(
            "No alignment was asked for; how many neurons must go is of the model alone.\n"
        )
        parts.append(_shown("Refusals against neurons removed", links["removal"]))
        return parts
    moved = found.moved
    crossed = crossing_words(found.curves["before"], found.curves["after"])
    parts += [f"- {word}" for word in [*redistribution_words(moved), *crossed]]
    parts += ["", markdown_table(moved.summary)]
    parts.append(_shown("Refusals against neurons removed", links["removal"]))
    parts.append(_shown("Safety mass by layer, before and after", links["redistribution"]))
    columns = ["layer", "mass_before", "mass_after", "effective_before", "effective_after"]
    columns += ["neurons_before", "neurons_after", "stayed", "joined", "left"]
    parts.append(markdown_table(moved.layers[columns]))
    return parts
