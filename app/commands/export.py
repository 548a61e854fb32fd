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
    "map",
    "layers",
    "attack",
    "compare",
    "curves",
    "composition",
    "kway",
    "depth",
    "overlap",
    "matrix",
    "difference",
    "success",
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
            help="Masks; attacks for attack, compare, curves and success; for map a mask and its "
            "scores; for difference two tables, first and second.",
        ),
    ],
    output: Output,
    score: Annotated[
        str, typer.Option(help="What colours map and difference; FIRST:SECOND for two scores.")
    ] = "sas",
    layer: Annotated[
        int | None, typer.Option(min=0, help="Only this layer of a map, every neuron of it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw a figure from stored results, as .png, .svg, .html or .json."""
    from analysis.exports.images import require_figure, write_figure

    require_figure(output)
    if name in ("map", "difference"):
        drawn = _map(name, inputs, score, layer)
    else:
        drawn = _drawn(name, inputs)
    write_figure(drawn, output)
    if as_json:
        terminal.print_json({"figure": name, "to": str(output)})
    else:
        terminal.say(f"figure: {output}")


def _drawn(name: FigureName, inputs: list[str]) -> "go.Figure":
    from analysis import figures
    from analysis.depth import depth_table
    from analysis.figures import paper
    from analysis.figures.matrix import overlap_matrix_figure
    from analysis.overlap.composition import composition
    from analysis.overlap.kway import kway_table
    from analysis.overlap.pairs import overlap_by_layer, overlap_table
    from analysis.redistribution import refusal_curve
    from analysis.robustness import headline, read_attack

    if name in ("attack", "compare", "curves", "success"):
        attacks = {spec: read_attack(Path(spec)) for spec in inputs}
        if name == "curves":
            return paper.refusal_curves_figure({k: refusal_curve(v) for k, v in attacks.items()})
        tables = {spec: headline(result) for spec, result in attacks.items()}
        if name == "attack":
            _count(inputs, 1, "attack", "one attack")
            return figures.attack_figure(tables[inputs[0]])
        if name == "success":
            _count(inputs, 1, "success", "one attack")
            called = {setting: setting.lower() for setting in tables[inputs[0]]["setting"]}
            return figures.success_figure(tables[inputs[0]], called)
        return figures.compare_figure(tables)
    sets = _sets(inputs)
    if name == "layers":
        _count(inputs, 1, "layers", "one mask")
        return figures.layer_fraction_figure(sets[inputs[0]])
    if name == "composition":
        return paper.composition_figure(composition(sets).layers)
    if name == "kway":
        return paper.kway_figure(kway_table(sets))
    if name == "matrix":
        return overlap_matrix_figure(overlap_table(sets), list(sets))
    if name == "depth":
        return paper.depth_figure(depth_table(sets))
    _count(inputs, 2, "overlap", "two masks")
    first, second = inputs
    return paper.method_overlap_figure(overlap_by_layer(sets[first], sets[second]), (first, second))


def _map(name: FigureName, inputs: list[str], score: str, layer: int | None) -> "go.Figure":
    """A map of one table, or of what a second one has more than a first."""
    from analysis.figures.maps import Colours, map_figure, safety_map_figure
    from analysis.overlap.operands import read_operand, read_scores
    from analysis.safety_map import Window, colour_limit, difference, grid
    from toolkit.errors import SafeNeuronError
    from toolkit.neurons import NeuronSet

    if name == "map":
        _count(inputs, 2, "map", "a mask and its scores.parquet")
        neurons = _sets(inputs[:1])[inputs[0]]
        table = read_scores(Path(inputs[1]))
        if score not in table:
            raise SafeNeuronError(f"{inputs[1]} has no score {score!r}; see its columns")
        window = None if layer is None else Window.of_layer(neurons.widths, _layer(neurons, layer))
        return safety_map_figure(table, neurons, score, window=window)
    if len(inputs) != 2:
        raise SafeNeuronError("the figure difference is of two tables of scores")
    ours, _, theirs = score.partition(":")
    theirs = theirs or ours
    first, second = read_operand(f"{inputs[0]}#{ours}"), read_operand(f"{inputs[1]}#{theirs}")
    if first.scores is None or second.scores is None:
        raise SafeNeuronError("the figure difference is of two tables of scores")
    values = difference(first.scores, second.scores, ours == theirs)
    none = NeuronSet.empty(first.widths)
    window = None if layer is None else Window.of_layer(none.widths, _layer(none, layer))
    label = f"{theirs} of the second less {ours} of the first"
    return map_figure(grid(values, ~none, window), Colours(label, colour_limit(values)))


def _layer(neurons: Any, layer: int) -> int:
    from toolkit.errors import SafeNeuronError

    if layer >= len(neurons.widths):
        raise SafeNeuronError(f"no layer {layer}: the model has {len(neurons.widths)}, from 0")
    return layer


def _sets(inputs: list[str]) -> dict[str, Any]:
    from analysis.overlap.operands import as_sets, read_operand

    return as_sets([read_operand(spec) for spec in inputs])


def _count(inputs: list[str], count: int, name: str, wanted: str) -> None:
    from toolkit.errors import SafeNeuronError

    if len(inputs) != count or len(set(inputs)) != count:
        raise SafeNeuronError(f"the figure {name} is of {wanted}")
