"""Pages that stand alone: a mask, or an attack, as HTML with its figures."""

import html

import pandas as pd
import plotly.graph_objects as go

from analysis.comparison import compare_attacks, printable
from analysis.costs import printable_costs
from analysis.figures import attack_figure, layer_fraction_figure
from analysis.robustness import AttackResult, finding, headline
from analysis.tables import html_page, html_table
from toolkit.masks import MaskFile


def mask_page(mask: MaskFile) -> str:
    """A mask: where it comes from, its share of each layer, and its neurons."""
    method = ", ".join(f"{name} {value}" for name, value in mask.method.parameters.items())
    sides = mask.prompts
    facts = (
        f"{mask.count} of {mask.model.neurons} MLP neurons ({mask.fraction:.2%}) of "
        f"{mask.model.source} ({mask.model.architecture}, fingerprint "
        f"{mask.model.fingerprint[:12]}), by {mask.method.name} ({method}) from "
        f"{sides.harmful.count} harmful prompts ({sides.harmful.name}) and "
        f"{sides.harmless.count} harmless ones ({sides.harmless.name})."
    )
    neurons = mask.neuron_set()
    rows = pd.DataFrame(
        {
            "layer": layer,
            "neurons": len(ids),
            "width": neurons.widths[layer],
            "share": f"{len(ids) / neurons.widths[layer]:.2%}",
            "which": " ".join(map(str, ids.tolist())),
        }
        for layer, ids in neurons.layers().items()
    )
    body = f"<p>{html.escape(facts)}</p>{_drawn(layer_fraction_figure(neurons))}{html_table(rows)}"
    return html_page(f"Neurons of {mask.model.source}", body)


def attack_page(result: AttackResult) -> str:
    """An attack: what it showed, each setting with its intervals, and what it costs."""
    found = finding(result)
    body = f"<p>{html.escape(found.sentence)}</p>" if found else ""
    body += _drawn(attack_figure(headline(result)))
    table = compare_attacks({"attack": result})
    for side in result.prompts:
        body += f"<h2>{side} prompts</h2>{html_table(printable(table, side))}"
    if result.costs:
        body += f"<h2>Costs</h2>{html_table(printable_costs(result))}"
    return html_page(f"Attack on {result.model.source}", body)


def _drawn(figure: go.Figure) -> str:
    """A figure with the plotting library inside, so that the page needs no network."""
    drawn: str = figure.to_html(full_html=False, include_plotlyjs="inline")
    return drawn
