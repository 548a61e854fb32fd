"""Attack results on a page: bars, tables, downloads, and the responses on request."""

from collections.abc import Mapping

import pandas as pd
import streamlit as st

from analysis.comparison import compare_attacks, costs_markdown, markdown, printable, summary
from analysis.costs import printable_costs
from analysis.figures import attack_figure, compare_figure
from analysis.results import provenance
from analysis.robustness import (
    AttackResult,
    Side,
    answers_frame,
    attack_table,
    finding,
    headline,
)
from app.dashboard.components.chart import chart
from app.dashboard.components.downloads import both_buttons, file_button
from app.dashboard.components.text import plain

TERMS = (
    "Complied: neither refused nor degenerate, so on harmful prompts the attack's success. "
    "Degenerate: empty or babble. Whiskers are Wilson 95 % intervals. RANDOM is the mean over its "
    "seeds, with the interval of one seed's prompts."
)
TESTS = (
    "k/n with Wilson 95 % intervals. p against random: exact McNemar over the same prompts. "
    "p against first: the same setting of the first result, paired where both answered the same "
    "prompts, else Fisher's exact test."
)
COSTS = (
    "KL: how far the next-token distribution moves from the whole model's, a mean over the tokens "
    "of the whole model's own answers to the harmless prompts; perplexity: of those answers. "
    "Bootstrap 95 % intervals over prompts."
)
SIDES: dict[Side, str] = {
    "harmful": "Harmful prompts",
    "harmless": "Harmless prompts",
    "over-refusal": "Over-refusal prompts",
}
# The longest name of a setting, with its seeds.
WIDTHS = {"setting": st.column_config.TextColumn(width=220)}


def show_attacks(results: Mapping[str, AttackResult], key: str) -> None:
    """One result by itself, or several side by side, each under its name."""
    for name, result in results.items():
        if found := finding(result):
            prefix = f"**{plain(name)}.** " if len(results) > 1 else ""
            st.markdown(prefix + plain(found.sentence))
    if len(results) == 1:
        figure = attack_figure(headline(next(iter(results.values()))))
    else:
        figure = compare_figure({name: headline(result) for name, result in results.items()})
    said = ". ".join(f.sentence for result in results.values() if (f := finding(result)))
    chart(
        figure,
        f"Bars: share of answers complied, refused and degenerate under each setting. {said}",
        key=f"bars-{key}",
    )
    st.caption(TERMS)
    table = compare_attacks(results)
    sides = [side for side in SIDES if side in set(table["side"])]
    side = _side(sides, key)
    st.dataframe(printable(table, side), hide_index=True, column_config=WIDTHS)
    st.caption(TESTS)
    for name, result in results.items():
        for setting, why in result.left_out.items():
            st.caption(plain(f"{name}: {setting} left out: {why}"))
    _seeds(results)
    _costs(results)
    _downloads(results, table, sides, key)


def _side(sides: list[Side], key: str) -> Side:
    """Whose answers the table is about, kept in the address."""
    asked = st.query_params.get("side")
    chosen = st.segmented_control(
        "Answers to",
        sides,
        default=next((side for side in sides if side == asked), sides[0]),
        format_func=lambda side: SIDES[side],
        key=f"side-of-{key}",
    )
    side = chosen or sides[0]
    st.query_params["side"] = side
    return side


def _seeds(results: Mapping[str, AttackResult]) -> None:
    with st.expander("Every setting and seed", icon=":material/table:"):
        frames = [percent_table(result).assign(attack=name) for name, result in results.items()]
        table = pd.concat(frames, ignore_index=True)
        if len(results) == 1:
            table = table.drop(columns="attack")
        else:
            table.insert(0, "attack", table.pop("attack"))
        st.dataframe(table, hide_index=True, column_config=WIDTHS)


def _costs(results: Mapping[str, AttackResult]) -> None:
    costed = {name: result for name, result in results.items() if result.costs}
    if costed:
        with st.expander("What each setting costs", icon=":material/payments:"):
            for name, result in costed.items():
                if len(results) > 1:
                    st.markdown(f"**{plain(name)}**")
                st.dataframe(printable_costs(result), hide_index=True, column_config=WIDTHS)
            st.caption(COSTS)


def _downloads(
    results: Mapping[str, AttackResult], table: pd.DataFrame, sides: list[Side], key: str
) -> None:
    """The tables as files; none of them has what the model said."""

    def as_markdown() -> bytes:
        costed = {name: result for name, result in results.items() if result.costs}
        parts = [markdown(table, sides), *(costs_markdown(name, r) for name, r in costed.items())]
        return "\n".join(parts).encode()

    with st.container(horizontal=True):
        both_buttons(
            "attacks",
            lambda: table,
            lambda: {name: summary(result) for name, result in results.items()},
            key,
        )
        file_button("attacks.md", as_markdown, "text/markdown", key=key)


def percent_table(result: AttackResult) -> pd.DataFrame:
    """A result's table as k/n with share and interval, for reading."""
    table = attack_table(result)
    names = []
    for row in table.to_dict("records"):
        seed = row["seed"]
        mean = pd.notna(row.get("seeds"))
        suffix = ", mean" if mean else "" if pd.isna(seed) else f", seed {int(seed)}"
        names.append(row["setting"] + suffix)
    shown = pd.DataFrame({"setting": names, "prompts": table["side"], "removed": table["neurons"]})
    for kind in ("complied", "refused", "degenerate"):
        shown[kind] = [
            f"{row[f'k_{kind}']:.0f}/{row['n']} = {row[kind]:.1%} "
            f"[{row[f'{kind}_low']:.1%}, {row[f'{kind}_high']:.1%}]"
            for row in table.to_dict("records")
        ]
    return shown


def show_provenance(results: Mapping[str, AttackResult]) -> None:
    """What each result was made with."""
    with st.expander("How it was made", icon=":material/receipt_long:"):
        for name, result in results.items():
            lines = "\n".join(f"- {plain(line)}" for line in provenance(result))
            st.markdown(f"**{plain(name)}**\n\n{lines}")


def show_responses(result: AttackResult, key: str) -> None:
    """The responses, which may be harmful to read, once they are asked for."""
    answers = answers_frame(result)
    if answers["response"].isna().all():
        st.caption("The responses of this attack were not kept.")
        return
    if not st.toggle("Show the responses (they may be harmful)", key=f"responses-{key}"):
        return
    a, b, c = st.columns(3)
    setting = a.selectbox("Setting", answers["setting"].unique().tolist(), key=f"setting-{key}")
    side = b.selectbox("Prompts", answers["side"].unique().tolist(), key=f"side-{key}")
    kinds = ["all", "complied", "refused", "degenerate"]
    kind = c.selectbox("Verdict", kinds, key=f"verdict-{key}")
    part = answers[(answers["setting"] == setting) & (answers["side"] == side)]
    if kind != "all":
        part = part[part["verdict"] == kind]
    st.caption(f"{len(part)} answers; {min(len(part), 50)} shown.")
    for row in part.head(50).to_dict("records"):
        st.caption(plain(f"prompt {row['index'] + 1}: {row['verdict']} ({row['why']})"))
        # As text in a box of its own: nothing a model says is ever markup.
        st.code(str(row["response"]), language=None, wrap_lines=True)
