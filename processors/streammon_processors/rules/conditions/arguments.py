"""Arguments of functions that must be written out, because they decide what is kept of a series."""

from __future__ import annotations

from collections.abc import Collection

from streammon.durations import seconds
from streammon_processors.rules.conditions.cel import Call, Constant, ExpressionError, Node


def number_in(call: Call, node: Node) -> float:
    """Raises ExpressionError: it is no number that is written out."""
    if not isinstance(node, Constant) or not isinstance(node.value, float):
        raise ExpressionError(f"{call.function}: a number that is written out is wanted here")
    return node.value


def span_in(call: Call, node: Node) -> float:
    """How many seconds a text such as "10m" says. Raises ExpressionError."""
    if not isinstance(node, Constant) or not isinstance(node.value, str):
        raise ExpressionError(f'{call.function}: how far to look back must be written out, as "10m"')
    try:
        found = seconds(node.value)
    except ValueError as error:
        raise ExpressionError(f"{call.function}: {error}") from None
    if not found:
        raise ExpressionError(f"{call.function}: it looks back on nothing")
    return found


def choice_in(call: Call, node: Node, allowed: Collection[str]) -> str:
    """Raises ExpressionError: it is none of these texts."""
    if not isinstance(node, Constant) or node.value not in allowed:
        said = f", not {node.value!r}" if isinstance(node, Constant) else ""
        raise ExpressionError(f"{call.function}: {' or '.join(map(repr, allowed))} is wanted here{said}")
    return str(node.value)
