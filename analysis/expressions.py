"""Set expressions over scores: ``es+sas``, ``es&t``, ``snip-utility``, ``(es+sas)-auc``.

::

    expression  operand, then any number of: an operator and an operand; read left to right
    operator    + union, & intersection, - difference
    operand     a name, or an expression in parentheses
    name        a score: measured on the harmful prompts (against the harmless ones)
                score@utility: the same with the utility prompts in place of the harmful
                score@contrast: the number on the harmful minus that on the utility prompts
                utility: what stands to its left, every score of it measured @utility
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from toolkit.errors import SafeNeuronError

Mask = npt.NDArray[np.bool_]
Operator = Literal["+", "&", "-"]
Side = Literal["", "utility", "contrast"]

_TOKEN = re.compile(r"\s*([a-z][a-z0-9_]*(?:@[a-z]+)?|[-+&()])")
UTILITY = "utility"
DEEPEST = 20  # parentheses within parentheses


@dataclass(frozen=True)
class Leaf:
    """A score and the prompts it is measured on."""

    score: str
    side: Side = ""

    @property
    def name(self) -> str:
        """As the expression writes it, and as the table's column is called."""
        return f"{self.score}@{self.side}" if self.side else self.score


@dataclass(frozen=True)
class Combination:
    """Two expressions under an operator."""

    operator: Operator
    left: "Expression"
    right: "Expression"


Expression = Leaf | Combination


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        SafeNeuronError: it is not one; the line says where it stops being one.
    """
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        if match.start() != end:
            break
        tokens.append(match.group(1))
        end = match.end()
    if text[end:].strip():
        raise SafeNeuronError(
            f"the method {text[:60]!r} can't be read from {text[end:].strip()[:20]!r} on; write "
            "scores with + (union), & (intersection), - (difference) and parentheses, such as "
            "es+sas"
        )
    expression, left = _expression(tokens, text)
    if left:
        raise SafeNeuronError(f"the method {text[:60]!r} has a ')' without its '('")
    return expression


def _expression(tokens: list[str], text: str, depth: int = 0) -> tuple[Expression, list[str]]:
    if depth > DEEPEST:
        raise SafeNeuronError(f"the method {text[:60]!r} has too many parentheses")
    expression, tokens = _operand(tokens, text, depth)
    while tokens and tokens[0] != ")":
        operator, *tokens = tokens
        if operator not in ("+", "&", "-"):
            raise SafeNeuronError(
                f"the method {text[:60]!r} wants +, & or - before {operator!r}, such as es+sas"
            )
        if tokens and tokens[0] == UTILITY:
            right, tokens = _on_utility(expression, text), tokens[1:]
        else:
            right, tokens = _operand(tokens, text, depth)
        # The comparison narrows the type, which a membership test does not.
        known: Operator = "+" if operator == "+" else "&" if operator == "&" else "-"
        expression = Combination(known, expression, right)
    return expression, tokens


def _operand(tokens: list[str], text: str, depth: int) -> tuple[Expression, list[str]]:
    if not tokens:
        raise SafeNeuronError(f"the method {text[:60]!r} ends where a score should stand")
    first, *rest = tokens
    if first == "(":
        inner, rest = _expression(rest, text, depth + 1)
        if not rest:
            raise SafeNeuronError(f"the method {text[:60]!r} has a '(' without its ')'")
        return inner, rest[1:]
    if first in ("+", "&", "-", ")"):
        raise SafeNeuronError(f"the method {text[:60]!r} has {first!r} where a score should stand")
    score, _, side = first.partition("@")
    if score == UTILITY or side not in ("", "utility", "contrast"):
        raise SafeNeuronError(
            f"the method {text[:60]!r}: {first!r} is no score; the sides are score@utility and "
            "score@contrast, and 'utility' alone stands to the right of what it repeats, such as "
            "snip-utility"
        )
    return Leaf(score, "utility" if side == "utility" else "contrast" if side else ""), rest


def _on_utility(expression: Expression, text: str) -> Expression:
    if isinstance(expression, Combination):
        left, right = (_on_utility(part, text) for part in (expression.left, expression.right))
        return Combination(expression.operator, left, right)
    if expression.side:
        raise SafeNeuronError(
            f"the method {text[:60]!r} measures {expression.name} on the utility prompts twice"
        )
    return Leaf(expression.score, "utility")


def leaves(expression: Expression) -> list[Leaf]:
    """Every score of an expression, in the order it is first named."""
    return list(dict.fromkeys(_leaves(expression)))


def _leaves(expression: Expression) -> Iterator[Leaf]:
    if isinstance(expression, Leaf):
        yield expression
    else:
        yield from _leaves(expression.left)
        yield from _leaves(expression.right)


def taken(expression: Expression) -> list[Leaf]:
    """The scores that choose, not those that only take away."""
    if isinstance(expression, Leaf):
        return [expression]
    right = [] if expression.operator == "-" else taken(expression.right)
    return list(dict.fromkeys([*taken(expression.left), *right]))


def is_union(expression: Expression) -> bool:
    """Whether the expression has no operator but +."""
    if isinstance(expression, Leaf):
        return True
    parts = (expression.left, expression.right)
    return expression.operator == "+" and all(is_union(part) for part in parts)


def combine(expression: Expression, masks: Mapping[str, Mask]) -> Mask:
    """The expression's set, from that of each of its scores, ``[neurons]`` each."""
    if isinstance(expression, Leaf):
        return masks[expression.name]
    left, right = combine(expression.left, masks), combine(expression.right, masks)
    if expression.operator == "+":
        return left | right
    return left & right if expression.operator == "&" else left & ~right
