"""``safeneuron export`` and ``safeneuron figure``: results for other programs and for papers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app import terminal

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from analysis.robustness import AttackResult
    from toolkit.masks import MaskFile

ENDINGS = {".json": "json", ".safetensors": "safetensors", ".csv": "csv"}
ENDINGS |= {".parquet": "parquet", ".md": "markdown", ".html": "html"}
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Format = Literal[
    "json", "safetensors", "transformerlens", "nnsight", "csv", "parquet", "markdown", "html"
]
FigureName = Literal[
    "map", "layers", "attack", "compare", "curves", "composition", "kway", "depth", "overlap"
]


def export(
    what: Annotated[Path, typer.Argument(help="A mask, an attack, or a table of scores.")],
    output: Output,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="By default what the output's name ends in."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a mask for TransformerLens, nnsight or anything that reads safetensors, or a table."""
    from analysis.exports.masks import export_mask
    from analysis.overlap.operands import TABLES, read_scores
    from analysis.robustness import AttackResult
    from analysis.tables import write_table
    from toolkit.errors import SafeNeuronError

    chosen = form or ENDINGS.get(output.suffix.lower())
    if chosen is None:
        raise SafeNeuronError(
            f"{output}: say which --format, since its name does not; a .py is transformerlens or "
            "nnsight"
        )
    if what.suffix.lower() in TABLES:
        _require(chosen in ("csv", "parquet", "markdown", "html"), "a table of scores", chosen)
        write_table(read_scores(what), _named(output, chosen))
    else:
        result = _read(what)
        if isinstance(result, AttackResult):
            _export_attack(result, chosen, output)
        else:
            export_mask(result, chosen, output)
    if as_json:
        terminal.print_json({"from": str(what), "format": chosen, "to": str(output)})
    else:
        terminal.say(f"{chosen}: {output}")


def _export_attack(result: "AttackResult", form: str, output: Path) -> None:
    from analysis.exports.pages import attack_page
    from analysis.robustness import attack_table
    from analysis.tables import write_table
    from toolkit.files import write_atomically

    _require(form in ("json", "csv", "parquet", "markdown", "html"), "an attack", form)
    if form == "json":
        text = result.model_dump_json(by_alias=True, indent=1) + "\n"
        write_atomically(_named(output, form), text)
    elif form == "html":
        write_atomically(_named(output, form), attack_page(result))
    else:
        write_table(attack_table(result), _named(output, form))


def _require(able: bool, what: str, form: str) -> None:
    from toolkit.errors import SafeNeuronError

    if not able:
        raise SafeNeuronError(f"{what} has no {form} form; only a mask does")


def _named(output: Path, form: str) -> Path:
    from toolkit.errors import SafeNeuronError

    if ENDINGS.get(output.suffix.lower()) != form:
        ending = next(end for end, name in ENDINGS.items() if name == form)
        raise SafeNeuronError(f"{output}: name a file of the format {form} {ending}")
    return output


def _read(path: Path) -> "MaskFile | AttackResult":
    """A mask or an attack, told by its schema."""
    import json

    from analysis.robustness import read_attack
    from toolkit.masks import read_mask

    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return read_mask(path)  # which says what is wrong
    schema = data.get("schema") if isinstance(data, dict) else None
    if isinstance(schema, str) and schema.startswith("safeneuron.attack/"):
        return read_attack(path)
    return read_mask(path)


def figure(
    name: Annotated[FigureName, typer.Argument(help="Which figure.")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Masks; attacks for attack, compare and curves; for map a mask and its scores.",
        ),
    ],
    output: Output,
    as_json: Json = False,
) -> None:
    """Draw a figure from stored results, as .png, .svg, .html or .json."""
    from analysis.exports.images import require_figure, write_figure

    require_figure(output)
    write_figure(_drawn(name, inputs), output)
    if as_json:
        terminal.print_json({"figure": name, "to": str(output)})
    else:
        terminal.say(f"figure: {output}")


def _drawn(name: FigureName, inputs: list[str]) -> "go.Figure":
    from analysis import figures
    from analysis.depth import depth_table
    from analysis.figures import paper
    from analysis.overlap.composition import composition
    from analysis.overlap.kway import kway_table
    from analysis.overlap.operands import read_scores
    from analysis.overlap.pairs import overlap_by_layer
    from analysis.redistribution import refusal_curve
    from analysis.robustness import headline, read_attack

    if name in ("attack", "compare", "curves"):
        attacks = {spec: read_attack(Path(spec)) for spec in inputs}
        if name == "curves":
            return paper.refusal_curves_figure({k: refusal_curve(v) for k, v in attacks.items()})
        tables = {spec: headline(result) for spec, result in attacks.items()}
        if name == "attack":
            _count(inputs, 1, "attack", "one attack")
            return figures.attack_figure(tables[inputs[0]])
        return figures.compare_figure(tables)
    if name == "map":
        _count(inputs, 2, "map", "a mask and its scores.parquet")
        neurons = _sets(inputs[:1])[inputs[0]]
        return figures.safety_map_figure(read_scores(Path(inputs[1])), neurons)
    sets = _sets(inputs)
    if name == "layers":
        _count(inputs, 1, "layers", "one mask")
        return figures.layer_fraction_figure(sets[inputs[0]])
    if name == "composition":
        return paper.composition_figure(composition(sets).layers)
    if name == "kway":
        return paper.kway_figure(kway_table(sets))
    if name == "depth":
        return paper.depth_figure(depth_table(sets))
    _count(inputs, 2, "overlap", "two masks")
    first, second = inputs
    return paper.method_overlap_figure(overlap_by_layer(sets[first], sets[second]), (first, second))


def _sets(inputs: list[str]) -> dict[str, Any]:
    from analysis.overlap.operands import as_sets, read_operand

    return as_sets([read_operand(spec) for spec in inputs])


def _count(inputs: list[str], count: int, name: str, wanted: str) -> None:
    from toolkit.errors import SafeNeuronError

    if len(inputs) != count or len(set(inputs)) != count:
        raise SafeNeuronError(f"the figure {name} is of {wanted}")
