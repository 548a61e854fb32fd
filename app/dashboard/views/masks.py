"""Masks: the library, set algebra by clicking, masks from elsewhere, and where each may go."""

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from analysis.exports.masks import neurons_frame
from analysis.figures import layer_fraction_figure
from analysis.mask_library import (
    Card,
    Operation,
    cards,
    combine,
    discard,
    keep,
    keep_text,
)
from app.dashboard import data
from app.dashboard.components.chart import chart
from app.dashboard.components.choose import choose_many
from app.dashboard.components.downloads import both_buttons, downloads, file_button
from app.dashboard.components.gate import admit
from app.dashboard.components.terms import terms
from app.dashboard.components.text import failure, heading, nothing_yet, plain
from toolkit.errors import SafeNeuronError
from toolkit.masks import MaskFile, read_mask

WHAT: dict[Operation, str] = {
    "union": "in any of them",
    "intersection": "in all of them",
    "difference": "in the first alone",
}


def _library(found: Sequence[Card]) -> None:
    st.subheader("Library")
    table = pd.DataFrame(
        {
            "from": card.origin,
            "model": data.model_label(card.source),
            "method": card.method,
            "neurons": card.count,
            "share": card.fraction,
            "layers": len(card.widths),
            "made": card.created,
            "mask": card.sha256[:8],
        }
        for card in found
    )
    st.caption("Click rows to choose masks, or choose them by name below.")
    st.dataframe(
        table,
        hide_index=True,
        key="library",
        on_select=lambda: _picked(found),
        selection_mode="multi-row",
        column_config={
            "method": st.column_config.TextColumn(width="medium"),
            "share": st.column_config.NumberColumn(format="percent"),
            "made": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )
    downloads("masks", lambda: table, key="library")


def _picked(found: Sequence[Card]) -> None:
    """Rows that were clicked are the masks that are chosen."""
    rows = st.session_state["library"].selection.rows
    st.session_state["masks-choices"] = [_name(found[row]) for row in rows if row < len(found)]


def _name(card: Card) -> str:
    """A mask's name in the address: the same neurons may be kept and a study's."""
    return f"{card.origin[0]}{card.sha256[:12]}"


def _import() -> None:
    with st.expander("Import a mask", icon=":material/upload_file:"):
        st.caption(
            "A mask file of schema safeneuron.neuron-mask/1, as the command line and these pages "
            "write them. It is checked before it is kept; a file that is none is refused."
        )
        given = st.file_uploader("Mask file", type="json", key="upload")
        if given is None:
            return
        try:
            path = keep_text(given.getvalue().decode("utf-8"), given.name[:80])
            mask = read_mask(path)
        except UnicodeDecodeError:
            failure(SafeNeuronError(f"{given.name[:80]} is not UTF-8 text, so it is not a mask"))
        except SafeNeuronError as error:
            failure(error)
        else:
            st.success(
                plain(f"Kept: {mask.count:,} neurons of {mask.model.source}, {mask.sha256[:8]}."),
                icon=":material/check:",
            )


def _algebra(chosen: list[Card]) -> MaskFile:
    """The chosen mask, or what set algebra makes of several."""
    masks = [read_mask(card.path) for card in chosen]
    if len(masks) == 1:
        return masks[0]
    names: list[Operation] = list(WHAT)
    asked = st.query_params.get("how", names[0])
    how = st.segmented_control(
        "Set algebra",
        names,
        default=asked if asked in names else names[0],
        key="how",
        format_func=lambda name: f"{name}: {WHAT[name]}",
    )
    operation = how or names[0]
    st.query_params["how"] = operation
    models = {card.fingerprint for card in chosen}
    if len(models) > 1:
        st.warning(
            "These masks were made on different models of one shape; the result is kept as one of "
            "the first's.",
            icon=":material/warning:",
        )
    sets = [mask.neuron_set() for mask in masks]
    together = combine(masks, operation)
    shown = {f"mask {place + 1}": len(each) for place, each in enumerate(sets)}
    shown[operation] = together.count
    with st.container(horizontal=True):
        for label, value in shown.items():
            st.metric(label, f"{value:,}", border=True, width=150)
    return together


def _show(mask: MaskFile, chosen: list[Card]) -> None:
    neurons = mask.neuron_set()
    sides = mask.prompts
    st.caption(
        plain(
            f"{mask.count:,} of {mask.model.neurons:,} neurons ({mask.fraction:.2%}) of "
            f"{data.model_label(mask.model.source)}; method: {mask.method.name}; from "
            f"{sides.harmful.count} harmful ({sides.harmful.name}) and {sides.harmless.count} "
            f"harmless prompts ({sides.harmless.name})"
        )
    )
    if not mask.count:
        st.info("No neuron is in it.", icon=":material/explore:")
        return
    counts = neurons.counts()
    most = int(counts.argmax())
    chart(
        layer_fraction_figure(neurons),
        f"Bars: the mask's share of each layer; layer {most} has most, {int(counts[most]):,}",
        key="by-layer",
    )
    with st.container(horizontal=True):
        if st.button("Attack with it", icon=":material/bolt:"):
            _go("views/attack.py", mask, chosen)
        if st.button("Align with it", icon=":material/shield:"):
            _go("views/align.py", mask, chosen)
        made = len(chosen) > 1 or chosen[0].origin == "working"
        if made and st.button("Keep it", icon=":material/bookmark_add:"):
            keep(mask)
            st.rerun()
        file_button("mask.json", lambda: mask.to_json().encode(), "application/json")
        both_buttons("neurons", lambda: neurons_frame(mask))
        if len(chosen) == 1 and chosen[0].origin != "study":
            _removal(chosen[0])


def _removal(card: Card) -> None:
    label = "Empty the working mask" if card.origin == "working" else "Remove from the library"
    with st.popover(label, icon=":material/delete:"):
        st.markdown("It cannot be brought back.")
        if st.button("Remove", type="primary", key="remove"):
            discard(card)
            st.query_params.pop("masks", None)
            st.rerun()


def _go(page: str, mask: MaskFile, chosen: list[Card]) -> None:
    """To a page that uses a mask; one that was just made, or may still change, is kept first."""
    stays = len(chosen) == 1 and chosen[0].origin != "working"
    path = chosen[0].path if stays else keep(mask)
    st.switch_page(page, query_params={"mask": str(path), "model": mask.model.source})


admit()
heading(
    "Masks",
    "Sets of neurons: those that studies chose, those you kept, and what they have in common.",
)
found = cards()
if not found:
    nothing_yet("mask", "identify the neurons of a model of yours on the Safety map, or import one")
else:
    _library(found)
    by_name = {_name(card): card for card in found}
    labels = {name: data.mask_label(card) for name, card in by_name.items()}
    st.subheader("Look at one, or combine several")
    terms("Neuron", "Union", "Working mask")
    names = choose_many(
        "masks",
        "Masks",
        list(by_name),
        lambda name: labels[name],
        help="Several of one model shape are united, intersected, or taken from the first.",
    )
    if not names:
        st.info("Choose a mask.", icon=":material/explore:")
    else:
        picked = [by_name[name] for name in names]
        try:
            _show(_algebra(picked), picked)
        except SafeNeuronError as error:
            failure(error)
_import()
