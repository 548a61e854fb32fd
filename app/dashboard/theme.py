"""The theme: one palette in light and dark, as the page server's options.

Both sides are given, so that a page follows its reader's system. Text has at least 7 : 1
against its background, links and icons 4.5 : 1; the tests measure it.
"""

from analysis.figures.themes import DARK, LIGHT

# Streamlit's names for the parts of a theme -> colour, on light and on dark.
_PARTS: dict[str, tuple[str, str]] = {
    "primaryColor": ("#0b6480", "#2f87a6"),
    "backgroundColor": (LIGHT.background, DARK.background),
    "secondaryBackgroundColor": ("#f1f4f6", "#1a232c"),
    "textColor": ("#1b252f", "#e8edf2"),
    "linkColor": ("#0b6480", "#6cc0dc"),
    "borderColor": ("#cdd5dc", "#34404c"),
    "codeBackgroundColor": ("#f1f4f6", "#1a232c"),
    "codeTextColor": ("#1b252f", "#e8edf2"),
    "grayTextColor": ("#4f5b67", "#b4bec8"),
    "redTextColor": ("#a3262a", "#ff9c94"),
    "orangeTextColor": ("#8a4600", "#f5b06b"),
    "blueTextColor": ("#0a5c8f", "#86c8f0"),
    "greenTextColor": ("#0b6a4d", "#67d6b1"),
}


def _side(name: str, place: int) -> dict[str, str]:
    return {f"theme.{name}.{part}": colors[place] for part, colors in _PARTS.items()}


THEME: dict[str, str] = {
    "theme.font": "sans-serif",
    "theme.baseRadius": "small",
    "theme.linkUnderline": "true",
    "theme.showWidgetBorder": "true",
    **_side("light", 0),
    **_side("dark", 1),
}
