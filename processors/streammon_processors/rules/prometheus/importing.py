"""Prometheus rule files as a file of our rules, with everything that was not translated and why.

Takes rule files and the ``PrometheusRule`` objects of the Prometheus operator. Each alert has an `Outcome`: translated,
translated with differences, or not; recording rules are put into the alerts that use them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import msgspec
import yaml

from streammon.errors import ConfigError
from streammon.results import Severity
from streammon.yaml_files import not_yaml
from streammon_processors.rules.description import Rule
from streammon_processors.rules.prometheus import promql
from streammon_processors.rules.prometheus.translation import (
    Condition,
    Knowledge,
    UntranslatedError,
    lasting,
    refuse,
    translate,
)

SEVERITIES: Final[Mapping[str, Severity]] = {
    "critical": "critical", "page": "critical", "high": "critical", "emergency": "critical", "p1": "critical",
    "warning": "warning", "warn": "warning", "ticket": "warning", "medium": "warning", "error": "warning",
    "p2": "warning",
    "info": "info", "low": "info", "notice": "info", "none": "info", "p3": "info",
}  # fmt: skip
DEFAULT_SEVERITY: Final[Severity] = "warning"
_ALERT: Final = {"alert", "expr", "for", "keep_firing_for", "labels", "annotations"}
_TAKEN: Final = {"summary", "message", "title", "description", "runbook_url", "runbook"}
SHORTEST_SILENCE_S: Final = 60.0


@dataclass(frozen=True)
class Written:
    """A rule as it stands in a file."""

    file: str
    line: int
    group: str
    name: str
    is_record: bool
    fields: Mapping[str, str]
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    problem: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def expr(self) -> str:
        return " ".join(self.fields.get("expr", "").split())


@dataclass(frozen=True)
class Outcome:
    """What became of a rule."""

    written: Written
    rule: Mapping[str, Any] | None = None
    """None: it was not translated."""
    why_not: str = ""
    differences: tuple[str, ...] = ()
    """Where the translation means something else."""
    notes: tuple[str, ...] = ()
    """What it does not tell, without meaning anything else."""

    def __str__(self) -> str:
        place = f"{self.written.file}:{self.written.line}: {self.written.name}"
        if self.rule is None:
            return f"{place}: not translated: {self.why_not}"
        return f"{place}: translated" + (f", but: {'; '.join(self.differences)}" if self.differences else "")


def import_rules(files: Iterable[Path], knowledge: Knowledge) -> list[Outcome]:
    """What becomes of each alert and recording rule.

    Raises:
        ConfigError: a file cannot be read, or is no rule file.
    """
    written = [rule for file in files for rule in _read(file)]
    recorded = {**knowledge.recorded, **dict(_recorded(written))}
    names: set[str] = set()
    return [_outcome(rule, replace(knowledge, recorded=recorded), names) for rule in written]


def _recorded(written: Iterable[Written]) -> Iterator[tuple[str, promql.Expression]]:
    """Those that are recorded once; one that several rules record is whatever is asked of it."""
    rules = [rule for rule in written if rule.is_record and not rule.problem]
    for rule in rules:
        if sum(other.name == rule.name for other in rules) == 1:
            try:
                yield rule.name, promql.parse(rule.expr)
            except promql.PromqlError:
                continue


# ---------------------------------------------------------------- one rule


def _outcome(rule: Written, knowledge: Knowledge, names: set[str]) -> Outcome:
    if rule.problem:
        return Outcome(rule, why_not=rule.problem)
    if rule.is_record:
        return Outcome(rule, why_not="a recording rule; it is put into the alerts that use it")
    try:
        return _translated(rule, translate(rule.expr, knowledge), names)
    except (UntranslatedError, promql.PromqlError) as error:
        return Outcome(rule, why_not=str(error))


def _translated(rule: Written, condition: Condition, names: set[str]) -> Outcome:
    severity, differences = _severity(rule.labels.get("severity"))
    name = _name(rule.name, severity, names)
    differences += rule.remarks
    differences += condition.remarks
    if name != rule.name:
        differences += (f"it is named {name!r} here, which routes and silences have to know",)
    if others := {label: value for label, value in rule.labels.items() if label != "severity"}:
        shown = ", ".join(f'{label}="{value}"' for label, value in others.items())
        differences += (f"its alerts have no {shown}: route them by rule or by the labels of the series",)
    summary, notes = _texts(rule, condition.labels, condition.fields.get("by"))
    fields = {"name": name, **condition.fields, **_times(rule, condition), "severity": severity, "summary": summary}
    if url := rule.annotations.get("runbook_url") or rule.annotations.get("runbook"):
        fields["runbook_url"] = url
    try:
        msgspec.convert(fields, Rule, strict=False)
    except msgspec.ValidationError as error:
        refuse(str(error).partition(" - at ")[0])
    names.add(name)
    return Outcome(rule, fields, "", differences, notes)


def _severity(written: str | None) -> tuple[Severity, tuple[str, ...]]:
    if written is not None and written in get_args(Severity):
        return SEVERITIES[written], ()
    found = SEVERITIES.get((written or "").lower(), DEFAULT_SEVERITY)
    said = f"severity {written!r}" if written is not None else "no severity"
    return found, (f"{said} became {found}",)


def _name(written: str, severity: str, names: set[str]) -> str:
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", written).lstrip("_.-")[:80] or "alert"
    tried = [plain, f"{plain}-{severity}", *(f"{plain}-{number}" for number in range(2, len(names) + 3))]
    return next(name for name in tried if name not in names)


def _times(rule: Written, condition: Condition) -> dict[str, Any]:
    for_s = _seconds(rule, "for")
    if (silence_s := condition.fields.get("no_data_for")) is not None:
        return {"no_data_for": lasting(max(silence_s + for_s, SHORTEST_SILENCE_S))}
    keep_s = _seconds(rule, "keep_firing_for")
    return {**({"for": lasting(for_s)} if for_s else {}), **({"keep_firing_for": lasting(keep_s)} if keep_s else {})}


def _seconds(rule: Written, field: str) -> float:
    text = rule.fields.get(field, "0").strip()
    try:
        return promql.duration_s(text)
    except promql.PromqlError as error:
        refuse(f"`{field}`: {error}")


# ---------------------------------------------------------------- texts

_TEMPLATE: Final = re.compile(r"\{\{-?\s*(.*?)\s*-?\}\}", re.DOTALL)
_LABEL: Final = re.compile(r"(?:\$labels|\.Labels)\.(\w+)(?:\s*\|.*)?", re.DOTALL)
_VALUE: Final = re.compile(r'(?:printf\s+"[^"]*"\s+)?(?:\$value|\.Value)(?:\s*\|.*)?', re.DOTALL)


def _texts(rule: Written, labels: Mapping[str, str], by: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """The summary, and what of the texts is not in it. ``by``: the labels of alerts that do not have all."""
    said = rule.annotations
    summary = said.get("summary") or said.get("title") or said.get("message") or said.get("description") or rule.name
    filled, notes = _filled(" ".join(summary.split()), labels, by)
    for name, text in said.items():
        if name not in _TAKEN or (name in ("description", "message") and text != summary):
            notes = (*notes, f"{name}: {' '.join(text.split())}")
    return filled, notes


def _filled(text: str, labels: Mapping[str, str], by: Collection[str] | None) -> tuple[str, tuple[str, ...]]:
    """With our placeholders, ``{host}``, instead of ``{{ $labels.instance }}``."""
    unknown: list[str] = []

    def placeholder(found: re.Match[str]) -> str:
        label = _LABEL.fullmatch(found[1])
        if label and (by is None or labels.get(label[1]) in by):
            return "{" + labels.get(label[1], label[1]) + "}"
        if _VALUE.fullmatch(found[1]):
            return "{value}"
        unknown.append(found[0])
        return "…"

    filled = _TEMPLATE.sub(placeholder, text)
    return filled, tuple(f"the summary lacks {each}" for each in unknown)


# ---------------------------------------------------------------- files


def _read(file: Path) -> Iterator[Written]:
    try:
        text = file.read_text(encoding="utf-8")
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        hint = "; a Helm chart has to be rendered first, `helm template`" if "{{" in str(error) else ""
        raise ConfigError(f"{not_yaml(str(file), error)}{hint}") from None
    found = [rule for document in documents if document for rule in _of_document(file, document)]
    if not found and not any(document and _groups(document) is not None for document in documents):
        raise ConfigError(f"{file} is no Prometheus rule file: it holds no `groups`")
    yield from found


def _groups(document: yaml.Node) -> yaml.Node | None:
    fields = _mapping(document)
    return (
        _mapping(fields["spec"].node).get("groups", _NONE).node
        if "spec" in fields
        else fields.get("groups", _NONE).node
    )


def _of_document(file: Path, document: yaml.Node) -> Iterator[Written]:
    groups = _groups(document)
    for group in _items(groups):
        fields = _mapping(group)
        remarks = tuple(
            f"`{name}` of its group is left out"
            for name in ("limit", "query_offset")
            if name in fields and fields[name].text not in ("0", "0s", "")
        )
        labels = _texts_of(fields["labels"].node) if "labels" in fields else {}
        for rule in _items(fields["rules"].node) if "rules" in fields else ():
            yield _written(file, fields["name"].text if "name" in fields else "", rule, labels, remarks)


def _written(file: Path, group: str, node: yaml.Node, above: Mapping[str, str], remarks: tuple[str, ...]) -> Written:
    fields = _mapping(node)
    texts = {name: value.text for name, value in fields.items() if isinstance(value.node, yaml.ScalarNode)}
    name = texts.get("alert") or texts.get("record") or "?"
    problem = ""
    if ("alert" in texts) == ("record" in texts):
        problem = "it has to have either `alert` or `record`"
    elif "expr" not in texts:
        problem = "it has no `expr`"
    elif "alert" in texts and (unknown := sorted(set(fields) - _ALERT)):
        problem = f"its field `{unknown[0]}` is not known"
    labels = {**above, **(_texts_of(fields["labels"].node) if "labels" in fields else {})}
    annotations = _texts_of(fields["annotations"].node) if "annotations" in fields else {}
    line = node.start_mark.line + 1
    return Written(str(file), line, group, name, "record" in texts, texts, labels, annotations, problem, remarks)


class _Field(NamedTuple):
    node: yaml.Node | None

    @property
    def text(self) -> str:
        return str(self.node.value) if isinstance(self.node, yaml.ScalarNode) else ""


_NONE: Final = _Field(None)


def _mapping(node: yaml.Node | None) -> dict[str, _Field]:
    pairs = node.value if isinstance(node, yaml.MappingNode) else ()
    return {str(key.value): _Field(value) for key, value in pairs}


def _texts_of(node: yaml.Node | None) -> dict[str, str]:
    return {name: value.text for name, value in _mapping(node).items()}


def _items(node: yaml.Node | None) -> Sequence[yaml.Node]:
    return node.value if isinstance(node, yaml.SequenceNode) else ()


# ---------------------------------------------------------------- the result


_HEAD: Final = (
    "# Imported from Prometheus by `streammon rules import`. Before `streammon rules check` takes the rules,",
    "# they need what a person wants to know who is woken: resolution_steps, contact, escalation, runbook_url.",
)


def as_yaml(outcomes: Sequence[Outcome], *, contact: str | None = None) -> str:
    """A file of rules, with the differences and what was not translated as comments."""
    lines = list(_HEAD)
    translated = [each for each in outcomes if each.rule is not None]
    lines += ["", "rules:" if translated else "rules: []"]
    for each in translated:
        lines += _rule_lines(each, contact)
    left = [each for each in outcomes if each.rule is None and not each.written.is_record]
    if left:
        lines += ["", "# Not translated:"]
        for each in left:
            lines += ["#", *_comment(str(each)), *_comment(f"  {each.written.expr}")]
    return "\n".join(lines) + "\n"


def _rule_lines(outcome: Outcome, contact: str | None) -> Iterator[str]:
    assert outcome.rule is not None
    written = outcome.written
    yield ""
    yield from _indented(_comment(f"{written.file}:{written.line}: {written.expr}"))
    for difference in outcome.differences:
        yield from _indented(_comment(f"differs: {difference}"))
    for note in outcome.notes:
        yield from _indented(_comment(note))
    fields = {**outcome.rule, **({"contact": contact} if contact else {})}
    dumped = yaml.safe_dump([fields], sort_keys=False, allow_unicode=True, width=10_000)
    yield from _indented(dumped.splitlines())


def _comment(text: str) -> list[str]:
    """On one line, whatever is in it."""
    return ["# " + "".join(char if char.isprintable() else " " for char in text)]


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def summary_of(outcomes: Sequence[Outcome]) -> str:
    alerts = [each for each in outcomes if not each.written.is_record]
    done = [each for each in alerts if each.rule is not None]
    differing = sum(bool(each.differences) for each in done)
    recorded = len(outcomes) - len(alerts)
    tail = f"; {recorded} recording rule{'s' * (recorded > 1)}" if recorded else ""
    left = len(alerts) - len(done)
    return f"{len(alerts)} alerts: {len(done)} translated, {differing} of them with differences; {left} not{tail}"
