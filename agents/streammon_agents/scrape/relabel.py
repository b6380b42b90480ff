"""Relabelling as Prometheus does it: rules that rewrite, keep and drop label sets, one after the other.

Expressions are RE2's and match the whole text. Of Prometheus' actions all are here. A label whose value becomes empty
is not there any more.

Source: Prometheus, ``model/relabel/relabel.go``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

Labels = dict[str, str]
Relabel = Callable[[Labels], Labels | None]
"""The labels after all rules, in a dictionary of their own; None: what has them is dropped."""

Action = Literal[
    "replace", "keep", "drop", "keepequal", "dropequal", "hashmod",
    "labelmap", "labeldrop", "labelkeep", "lowercase", "uppercase",
]  # fmt: skip

_ANY: Final = "(.*)"
_ALL: Final = "$1"
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TEMPLATE: Final = re.compile(r"(?:(?:[a-zA-Z_]|\$(?:\{\w+\}|\w+))+\w*)+", re.ASCII)
_REFERENCE: Final = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))", re.ASCII)
_WITH_TARGET: Final = frozenset({"replace", "keepequal", "dropequal", "hashmod", "lowercase", "uppercase"})
_OF_NAMES: Final = frozenset({"labelmap", "labeldrop", "labelkeep"})


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of ``relabel_configs`` or ``metric_relabel_configs``, with Prometheus' names and defaults."""

    source_labels: list[str] = []
    separator: str = ";"
    regex: str | int | float | bool = _ANY
    modulus: Annotated[int, Meta(ge=0)] = 0
    target_label: str = ""
    replacement: str = _ALL
    action: Action = "replace"

    def __post_init__(self) -> None:
        if self.action in _WITH_TARGET and not self._fits(self.target_label):
            raise ValueError(f"target_label = {self.target_label!r} cannot be that of the action {self.action}")
        if self.action == "hashmod" and not self.modulus:
            raise ValueError("modulus has to be given for the action hashmod, and to be above 0")
        if self.action == "labelmap" and not _TEMPLATE.fullmatch(self.replacement):
            raise ValueError(f"replacement = {self.replacement!r} cannot be the name of a label")
        if self.action in _OF_NAMES and self.source_labels:
            raise ValueError(f"source_labels have no part in the action {self.action}, which looks at names")
        self.pattern()

    def _fits(self, label: str) -> bool:
        allowed = _TEMPLATE if self.action == "replace" and "$" in label else _LABEL
        return allowed.fullmatch(label) is not None

    def pattern(self) -> Any:
        """The expression. Raises ValueError where it is none."""
        import re2  # only who relabels loads it

        options = re2.Options()
        options.log_errors = False
        text = str(self.regex).lower() if isinstance(self.regex, bool) else str(self.regex)  # YAML: regex: true
        try:
            return re2.compile(f"(?s:{text})", options)
        except re2.error as error:
            raise ValueError(f"regex = {text!r} is no regular expression of RE2: {error}") from None


def relabelling(rules: Sequence[Rule]) -> Relabel:
    """What the rules do, one after the other."""
    steps = [_step(rule) for rule in rules]

    def relabel(labels: Labels) -> Labels | None:
        left: Labels | None = dict(labels)
        for step in steps:
            left = step(left) if left is not None else None
        return left if left is None else {name: value for name, value in left.items() if value}

    return relabel


def _step(rule: Rule) -> Relabel:
    pattern = rule.pattern()

    def joined(labels: Labels) -> str:
        return rule.separator.join(labels.get(name, "") for name in rule.source_labels)

    def kept(is_kept: Callable[[Labels], bool]) -> Relabel:
        return lambda labels: labels if is_kept(labels) else None

    def with_target(value: Callable[[str], str]) -> Relabel:
        return lambda labels: {**labels, rule.target_label: value(joined(labels))}

    def replace(labels: Labels) -> Labels:
        match = pattern.fullmatch(joined(labels))
        if match is None:
            return labels
        target = _expanded(rule.target_label, match)
        return {**labels, target: _expanded(rule.replacement, match)} if _LABEL.fullmatch(target) else labels

    def labelmap(labels: Labels) -> Labels:
        found = ((pattern.fullmatch(name), value) for name, value in labels.items())
        return labels | {_expanded(rule.replacement, match): value for match, value in found if match}

    def names(is_kept: bool) -> Relabel:
        return lambda labels: {
            name: value for name, value in labels.items() if (pattern.fullmatch(name) is not None) is is_kept
        }

    steps: dict[Action, Relabel] = {
        "replace": replace,
        "keep": kept(lambda labels: pattern.fullmatch(joined(labels)) is not None),
        "drop": kept(lambda labels: pattern.fullmatch(joined(labels)) is None),
        "keepequal": kept(lambda labels: labels.get(rule.target_label, "") == joined(labels)),
        "dropequal": kept(lambda labels: labels.get(rule.target_label, "") != joined(labels)),
        "hashmod": with_target(lambda text: str(_hash(text) % rule.modulus)),
        "lowercase": with_target(str.lower),
        "uppercase": with_target(str.upper),
        "labelmap": labelmap,
        "labeldrop": names(is_kept=False),
        "labelkeep": names(is_kept=True),
    }
    return steps[rule.action]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.md5(text.encode(), usedforsecurity=False).digest()[8:], "big")


def _expanded(template: str, match: Any) -> str:
    """``$1``, ``${1}`` and ``${name}`` by what they matched, and nothing where that is nothing; ``$$`` is ``$``."""
    if "$" not in template:
        return template
    names, groups = match.re.groupindex, (match.group(0), *match.groups())

    def of(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name is None:
            return "$"
        number = int(name) if name.isdecimal() else names.get(name, len(groups))
        return (groups[number] or "") if number < len(groups) else ""

    return _REFERENCE.sub(of, template)
