"""Rules: from windows to alerts that a person can act on.

A `Rule` describes a condition on one field of one series' windows; `load_rules` reads rules from YAML files.
A `RulesTask` evaluates them in event time::

    inactive ──breach──► pending ──held for `for_s`──► firing ──first window that clears──► resolved
        ▲                   │
        └──not a breach─────┘

* **breach**: the value is above ``above`` (or below ``below``). **clear**: it is at or below ``clear`` (at or
  above), which is the threshold itself unless the rule says otherwise. In between, firing goes on.
* **held**: from the start of the first breaching window to the end of the newest, with no other verdict in
  between. ``for_s: 0`` fires on the first. Silence is no recovery, so a pending series may skip windows; only
  after `_PATIENCE_S` (or ``for_s``, if longer) without one it begins anew.
* A window without the field says nothing: no breach, no clear. A series that vanishes while firing goes on.

Promises
- The same windows give the same alerts, byte for byte, however they are cut into batches and wherever a
  `snapshot` is restored between them.
- **One page an episode.** Evaluating a window again changes nothing, and a window that begins before the
  newest of its source is not evaluated: in one partition, a source's main windows come in order of start.
- An alert's id is made of the rule, the series and the start, so whoever reads `alerts` twice can tell.
- A rule that was removed or changed while firing is resolved at the next window of any series, and its
  evidence says so. Texts may be corrected without that: `Rule.version` names only what decides.
- State is bounded: only pending and firing series have any. A breach for which there is no room is not
  followed, and counted as ``too_many_episodes``.

It does not look at supplements (``part: "late"``), at several series together, or at the past of a series.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
import yaml
from msgspec import Meta, Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter
from streammon.errors import ConfigError, Fatal, Reason, Rejected
from streammon.events import SCHEMA
from streammon.results import DISTRIBUTIONS, Alert, AlertState, Completeness, Distribution, Gauge, Severity
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import MAX_TIME_UNIX_S, SCHEMA_HEADER

SKIPPED = Counter("streammon_rules_skipped", "Windows that rules did not look at, by why", ["reason"])
MAX_STATE_BYTES: Final = MAX_RECORD_BYTES * 9 // 10
"""What is pending or firing in one partition must fit into one record: 3,000 series with ordinary labels."""

_PATIENCE_S: Final = 300.0  # as long as Prometheus takes a silent series to be there still
_MAX_SERIES_BYTES: Final = 4096
_MAX_EVIDENCE_BYTES: Final = 100_000
_ROUNDING_S: Final = 1e-6  # times of today resolve 2.4e-7 s, so ten windows of 0.1 s may seem shorter than 1 s


# --- the description ---------------------------------------------------------------------------------------

Source = Literal["inference", "resource"]

_NUMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "inference": ("count", "throughput_per_s", "error_count", "error_rate"),
    "resource": ("count", "throughput_per_s"),
}
_DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = {"inference": DISTRIBUTIONS, "resource": ()}
_STATISTICS: Final = tuple(name for name in Distribution.__struct_fields__ if name != "sketch")
_GAUGE: Final = Gauge.__struct_fields__
_COMPLETENESS: Final = tuple(name for name in Completeness.__struct_fields__ if name != "watermark_unix_s")


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What is wrong when, how bad that is, and what the person who is woken should know."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    source: Source
    """Which windows."""
    field: str
    """A number in the window: ``error_rate``, ``duration_s.p99``, ``gauges.utilization.last`` …"""
    severity: Severity
    summary: str
    """One line for a person; ``{label}`` and ``{value}`` are filled in."""
    above: float | None = None
    below: float | None = None
    """Breached on that side of the number; a rule has one of the two."""
    clear: float | None = None
    """Firing ends at this value or better; the threshold itself if not given."""
    for_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds of event time that the breach must last."""
    where: dict[str, str] = {}
    """Labels that a series must have; every other label is free."""
    resolution_steps: tuple[str, ...] = ()
    contact: str | None = None
    escalation: tuple[str, ...] = ()
    runbook_url: str | None = None

    def __post_init__(self) -> None:
        for name in ("above", "below", "clear", "for_s"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise ValueError(f"`{name}` must be a finite number")
        if not _path(self.source, self.field):
            raise ValueError(f"`field` is not a number in {self.source} windows; {_fields_of(self.source)}")
        if (self.above is None) == (self.below is None):
            raise ValueError("`above` or `below`: exactly one of them must be given")
        if self._sign * self.clears_at > self._sign * self.threshold:
            side = "at most `above`" if self.above is not None else "at least `below`"
            raise ValueError(f"`clear` lies on the breaching side; it must be {side}, {self.threshold:g}")

    @cached_property
    def path(self) -> tuple[str, ...]:
        """Where the field is in a window's JSON object."""
        return _path(self.source, self.field)

    @cached_property
    def version(self) -> str:
        """Names what decides whether the rule fires; equal for rules that differ in their texts only."""
        decides = (self.name, self.source, self.field, self.where, self.above, self.below, self.clear)
        return _digest((*decides, self.for_s, self.severity), size=6)

    @cached_property
    def threshold(self) -> float:
        return next(bound for bound in (self.above, self.below) if bound is not None)

    @property
    def clears_at(self) -> float:
        return self.threshold if self.clear is None else self.clear

    @property
    def _sign(self) -> int:
        return 1 if self.above is not None else -1

    def breached(self, value: float) -> bool:
        return self._sign * value > self._sign * self.threshold

    def cleared(self, value: float) -> bool:
        return self._sign * value <= self._sign * self.clears_at


@dataclass(frozen=True)
class Rules:
    """Rules with distinct names, in the order of their files."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Rule]:
        return {rule.name: rule for rule in self.rules}

    @cached_property
    def by_source(self) -> Mapping[str, Sequence[Rule]]:
        return {source: [rule for rule in self.rules if rule.source == source] for source in get_args(Source)}


def _path(source: str, field: str) -> tuple[str, ...]:
    """The keys that lead to the field, or none if such windows cannot have it. Gauge names may hold dots."""
    match field.split("."):
        case [number] if number in _NUMBERS[source]:
            return (number,)
        case [name, statistic] if source == "inference" and name in DISTRIBUTIONS and statistic in _STATISTICS:
            return (name, statistic)
        case ["gauges", *name, statistic] if name and statistic in _GAUGE:
            return ("gauges", ".".join(name), statistic)
        case ["completeness", number] if number in _COMPLETENESS:
            return ("completeness", number)
        case ["cost", *name] if name and source == "inference":
            return ("cost", ".".join(name))
    return ()


def _fields_of(source: str) -> str:
    gauges = f"gauges.NAME.{'|'.join(_GAUGE)}"
    numbers = [*_NUMBERS[source], gauges, f"completeness.{'|'.join(_COMPLETENESS)}"]
    if source == "inference":
        numbers += [f"{'|'.join(DISTRIBUTIONS)} with .{'|'.join(_STATISTICS)}", "cost.CURRENCY"]
    return f"allowed: {', '.join(numbers)}"


def _digest(parts: object, size: int) -> str:
    return blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=size).hexdigest()


# --- the files ---------------------------------------------------------------------------------------------


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]


def load_rules(files: Iterable[Path]) -> Rules:
    """The rules of all files.

    Raises:
        ConfigError: naming the file, line and column, the rule, the field, its value, and what is allowed.
    """
    found: dict[str, tuple[Rule, Path]] = {}
    for file in files:
        for rule in _read(file):
            if rule.name in found:
                raise ConfigError(
                    f"{file}: rule {rule.name!r} is already in {found[rule.name][1]}; names must be distinct"
                )
            found[rule.name] = (rule, file)
    return Rules(tuple(rule for rule, _ in found.values()))


def _read(file: Path) -> tuple[Rule, ...]:
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(file, root)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the rules file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    try:  # not strict: YAML 1.1 reads 1e-3 as text
        return msgspec.convert(content, _File, strict=False).rules
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(file, root, str(error))) from None


def _refuse_repeated_keys(file: Path, node: yaml.Node | None) -> None:
    """YAML forbids a key twice in one mapping; PyYAML lets the last one win, silently."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(file, item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{_at(file, key)}: `{key.value}` is given twice; keep one")
            seen.add(key.value)
            _refuse_repeated_keys(file, value)


def _explain(file: Path, root: yaml.Node | None, message: str) -> str:
    """The decoder's message, its path (``$.rules[0].above``) turned into a place in the file and a value."""
    problem, _, path = message.partition(" - at ")
    keys = re.findall(r"\w+", path.rpartition("$")[2]) + re.findall(r"`(\w+)`", problem)[:1]
    nodes = list(_descend(root, keys))
    last = nodes[-1] if nodes else None
    rule = next((f"rule {name.value!r}" for node in nodes for name in _children(node, "name")), "")
    field = ".".join(keys[2 : len(nodes) - 1])
    value = f" = {last.value[:80]!r}" if isinstance(last, yaml.ScalarNode) else ""
    parts = _at(file, last), rule, field + value, problem + _allowed(field, problem)
    return ": ".join(part for part in parts if part)


def _descend(node: yaml.Node | None, keys: Iterable[str]) -> Iterator[yaml.Node]:
    """The nodes along the keys, as far as they exist, from the root on."""
    if node is None:
        return
    yield node
    for key in keys:
        child = next(_children(node, key), None)
        if child is None:
            return
        yield (node := child)


def _children(node: yaml.Node, key: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for name, value in node.value if name.value == key)
    elif isinstance(node, yaml.SequenceNode) and key.isdecimal():
        yield from node.value[int(key) :][:1]


def _at(file: Path, node: yaml.Node | None) -> str:
    return f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}" if node else str(file)


def _allowed(field: str, problem: str) -> str:
    allowed = {"source": get_args(Source), "severity": get_args(Severity)}.get(field, ())
    if "unknown field" in problem:
        allowed = Rule.__struct_fields__ if field else ("rules",)
    return f"; allowed: {', '.join(allowed)}" if allowed else ""


# --- the task ----------------------------------------------------------------------------------------------

Labels = dict[str, str]
_SortedLabels = tuple[tuple[str, str], ...]
_Key = tuple[str, _SortedLabels]  # the rule's name and the series


class Skipped(StrEnum):
    """Why a rule did not look at a window. The values are labels: add, never rename."""

    SUPPLEMENT = "supplement"
    NO_SERIES = "no_series"
    BACK_IN_TIME = "back_in_time"
    TOO_MANY_EPISODES = "too_many_episodes"
    LABELS_TOO_LONG = "labels_too_long"


_Time = Annotated[float, Meta(ge=0, lt=MAX_TIME_UNIX_S)]


class _Window(Struct, tag_field="type", tag="window", gc=False):
    """What every rule needs of a `results.Window`: reading one with its sketches takes six times as long."""

    source: str
    part: str
    series: Labels
    start_unix_s: _Time
    end_unix_s: _Time
    count: int
    schema: int = SCHEMA


class Episode(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule and one series, from the first breaching window to the resolve. ``transition`` 0: pending.

    ``through`` is the end of the series' newest window that had the field; ``value`` the breach the alert is about.
    """

    rule: str
    version: str
    severity: Severity
    series: Labels
    since_unix_s: float
    through_unix_s: float
    value: float
    transition: int = 0

    @property
    def firing(self) -> bool:
        return self.transition > 0

    @property
    def alert_id(self) -> str:
        return _digest((self.rule, self.version, self.series, self.since_unix_s), size=16)


def step(
    rule: Rule, episode: Episode | None, window: _Window, value: float, content: Mapping[str, Any]
) -> tuple[Episode | None, Alert | None]:
    """What one value makes of an episode (None: inactive), and the alert to announce, if that is news."""
    if episode and episode.firing:
        episode = msgspec.structs.replace(episode, through_unix_s=window.end_unix_s)
        return (None, _resolved(rule, episode, value, content)) if rule.cleared(value) else (episode, None)
    if not rule.breached(value):
        return None, None
    since = episode.since_unix_s if episode else window.start_unix_s
    held = window.end_unix_s - since >= rule.for_s - _ROUNDING_S
    episode = Episode(
        rule=rule.name,
        version=rule.version,
        severity=rule.severity,
        series=window.series,
        since_unix_s=since,
        through_unix_s=window.end_unix_s,
        value=float(value),
        transition=1 if held else 0,
    )
    return episode, _firing(rule, episode, value, content) if held else None


class _Snapshot(Struct, omit_defaults=True):
    next_offset: int | None
    newest_start_unix_s: dict[str, float]
    episodes: list[Episode]


class RulesTask:
    """Evaluates rules on one partition of `windows` and writes to the same partition of `alerts`."""

    waiting: Sequence[str] = ()
    """No topic: time passing alone changes nothing here."""

    def __init__(self, rules: Rules, partition: int, *, max_state_bytes: int = MAX_STATE_BYTES) -> None:
        self._rules = rules
        self._partition = partition
        self._max_state_bytes = max_state_bytes
        self._state_bytes = 0
        self._next_offset: int | None = None
        self._newest_start: dict[str, float] = {}  # by source
        self._episodes: dict[_Key, Episode] = {}
        self._orphans: list[Episode] = []  # firing, but their rule is gone or decides otherwise now

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The alerts that these windows fire or resolve; a record that is no window becomes a dead letter."""
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        """The state after the last output; equal states are equal bytes."""
        episodes = sorted([*self._episodes.values(), *self._orphans], key=_key)
        newest_start = dict(sorted(self._newest_start.items()))
        return msgspec.json.encode(_Snapshot(self._next_offset, newest_start, episodes))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a `snapshot`, also with other rules than it was taken with. Raises Fatal."""
        try:
            state = msgspec.json.decode(snapshot, type=_Snapshot)
        except msgspec.DecodeError as error:
            raise Fatal(f"the snapshot of the rules task is not one of this version: {error}") from error
        known = [episode for episode in state.episodes if self._still_decides(episode)]
        self._next_offset, self._newest_start = state.next_offset, state.newest_start_unix_s
        self._episodes = {_key(episode): episode for episode in known}
        self._orphans = [e for e in state.episodes if e.firing and not self._still_decides(e)]
        self._state_bytes = sum(map(_size_bytes, self._episodes))

    def offsets(self) -> Mapping[str, int]:
        """The next record of `windows` to read: nothing is read twice."""
        return {} if self._next_offset is None else {"windows": self._next_offset}

    def watermarks(self) -> Mapping[str, float]:
        """Rules follow the time of the windows; they keep none of their own."""
        return {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._next_offset = record.offset + 1
        try:
            window, content = _decode(record.value or b"")
        except Rejected as error:
            yield dead_letter(
                error.reason,
                error.detail,
                topic=topic,
                value=record.value,
                partition=record.partition,
                offset=record.offset,
                to_partition=self._partition,
            )
            return
        if reason := self._reason_to_skip(window):
            SKIPPED.labels(reason).inc()
            return
        self._advance(window)
        alerts = [*self._retire(window), *self._evaluate(window, content)]
        yield from (self._outgoing(alert) for alert in alerts)

    def _reason_to_skip(self, window: _Window) -> Skipped | None:
        if window.part != "main":
            return Skipped.SUPPLEMENT
        if not window.series and not window.count:
            return Skipped.NO_SERIES
        if window.start_unix_s < self._newest_start.get(window.source, 0.0):
            return Skipped.BACK_IN_TIME
        return None

    def _advance(self, window: _Window) -> None:
        """Note how far the source is, and forget what was pending in it and has been silent for too long."""
        if window.start_unix_s == self._newest_start.get(window.source):
            return
        self._newest_start[window.source] = window.start_unix_s
        for key, episode in list(self._episodes.items()):
            rule = self._rules.by_name[episode.rule]
            silent_s = window.start_unix_s - episode.through_unix_s
            if rule.source == window.source and not episode.firing and silent_s > max(rule.for_s, _PATIENCE_S):
                self._forget(key)

    def _retire(self, window: _Window) -> list[Alert]:
        """Resolve what is firing without its rule."""
        orphans, self._orphans = self._orphans, []
        return [_orphaned(episode, self._rules.by_name.get(episode.rule), window) for episode in orphans]

    def _evaluate(self, window: _Window, content: Mapping[str, Any]) -> Iterator[Alert]:
        labels = _sorted(window.series)
        for rule in self._rules.by_source.get(window.source, ()):
            if rule.where.items() <= window.series.items():
                value = _value(content, rule.path)
                key = rule.name, labels
                if value is not None and (alert := self._step(key, rule, window, value, content)):
                    yield alert

    def _step(self, key: _Key, rule: Rule, window: _Window, value: float, content: Mapping[str, Any]) -> Alert | None:
        before = self._episodes.get(key)
        after, alert = step(rule, before, window, value, content)
        if after is None:
            self._forget(key)
        elif before or self._has_room_for(key):
            self._episodes[key] = after
        else:
            return None
        return alert

    def _has_room_for(self, key: _Key) -> bool:
        size_bytes = _size_bytes(key)
        if size_bytes > _MAX_SERIES_BYTES:
            SKIPPED.labels(Skipped.LABELS_TOO_LONG).inc()
            return False
        if self._state_bytes + size_bytes > self._max_state_bytes:
            SKIPPED.labels(Skipped.TOO_MANY_EPISODES).inc()
            return False
        self._state_bytes += size_bytes
        return True

    def _forget(self, key: _Key) -> None:
        if self._episodes.pop(key, None):
            self._state_bytes -= _size_bytes(key)

    def _still_decides(self, episode: Episode) -> bool:
        rule = self._rules.by_name.get(episode.rule)
        return rule is not None and rule.version == episode.version

    def _outgoing(self, alert: Alert) -> Outgoing:
        return Outgoing("alerts", alert.id.encode(), msgspec.json.encode(alert), (SCHEMA_HEADER,), self._partition)


def _key(episode: Episode) -> _Key:
    return episode.rule, _sorted(episode.series)


def _sorted(series: Labels) -> _SortedLabels:
    return tuple(sorted(series.items()))


def _size_bytes(key: _Key) -> int:
    """What an episode adds to the snapshot at most: its rule and labels as JSON, and everything else."""
    return len(msgspec.json.encode(key)) + 200


def _decode(value: bytes) -> tuple[_Window, dict[str, Any]]:
    """What every rule needs of the record, and all of it. Raises Rejected."""
    try:
        content = msgspec.json.decode(value)
        window = msgspec.convert(content, _Window)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, str(error)) from None
    if window.schema != SCHEMA:
        raise Rejected(Reason.UNKNOWN_SCHEMA, f"schema is {window.schema}; known: {SCHEMA}")
    return window, content


def _value(content: Any, path: Iterable[str]) -> float | None:
    """The number at the path, or None: the window does not say."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, int | float) else None


# --- what a person reads -----------------------------------------------------------------------------------

_UNITS: Final = {"_per_s": "/s", "_s": " s", "_bytes": " B", "_j": " J"}
_FRACTIONS: Final = ("error_rate", "utilization")


def _firing(rule: Rule, episode: Episode, value: float, content: Mapping[str, Any]) -> Alert:
    sign = ">" if rule.above is not None else "<"
    held_s = f" for {episode.through_unix_s - episode.since_unix_s:.6g} s" if rule.for_s else ""
    condition = f"{_condition(rule, value, sign, rule.threshold)}{held_s}"
    return _alert(rule, episode, content, state="firing", value=value, condition=condition)


def _resolved(rule: Rule, episode: Episode, value: float, content: Mapping[str, Any]) -> Alert:
    sign = "≤" if rule.above is not None else "≥"
    condition = _condition(rule, value, sign, rule.clears_at)
    ended = msgspec.structs.replace(episode, transition=episode.transition + 1)
    return _alert(rule, ended, content, state="resolved", value=value, condition=condition)


def _alert(
    rule: Rule,
    episode: Episode,
    content: Mapping[str, Any],
    *,
    state: AlertState,
    value: float,
    condition: str,
) -> Alert:
    return Alert(
        id=episode.alert_id,
        rule=rule.name,
        rule_version=rule.version,
        state=state,
        severity=rule.severity,
        labels=episode.series,
        value=value,
        condition=condition,
        summary=_fill(rule.summary, {**episode.series, "value": _shown(_words(rule)[0], episode.value)}),
        started_unix_s=episode.since_unix_s,
        updated_unix_s=episode.through_unix_s,
        ended_unix_s=episode.through_unix_s if state == "resolved" else None,
        transition=episode.transition,
        resolution_steps=list(rule.resolution_steps),
        contact=rule.contact,
        escalation=list(rule.escalation),
        runbook_url=rule.runbook_url,
        evidence=_evidence(content),
    )


def _orphaned(episode: Episode, rule: Rule | None, window: _Window) -> Alert:
    """The end of an alert whose rule decides no more; whether the trouble is over is not known."""
    what = "changed" if rule else "removed"
    now = max(episode.through_unix_s, window.end_unix_s)
    return Alert(
        id=episode.alert_id,
        rule=episode.rule,
        rule_version=episode.version,
        state="resolved",
        severity=episode.severity,
        labels=episode.series,
        value=None,
        condition=f"the rule was {what}",
        summary=f"{episode.rule}: no longer followed, because the rule was {what} while it was firing",
        started_unix_s=episode.since_unix_s,
        updated_unix_s=now,
        ended_unix_s=now,
        transition=episode.transition + 1,
        evidence={"note": f"rule_{what}", "new_rule_version": rule.version if rule else None},
    )


def _condition(rule: Rule, value: float, sign: str, bound: float) -> str:
    quantity, words = _words(rule)
    return f"{words} {_shown(quantity, value)} {sign} {_shown(quantity, bound)}"


def _words(rule: Rule) -> tuple[str, str]:
    """The name that tells the unit, and how to say the field: "p99 of duration_s"."""
    names = [name for name in rule.path if name not in ("gauges", "completeness")]
    return "count" if names[-1] == "count" else names[0], " of ".join(reversed(names))


def _shown(quantity: str, value: float) -> str:
    if quantity.endswith(_FRACTIONS):
        return f"{_number(100 * value)} %"
    if quantity.endswith("_s") and not quantity.endswith("_per_s") and 0 < abs(value) < 1:
        return f"{_number(1000 * value)} ms"
    return _number(value) + next((unit for end, unit in _UNITS.items() if quantity.endswith(end)), "")


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _fill(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{name}``; an unknown name stays as it is, because a page must not fail for its wording."""
    return re.sub(r"\{([\w.-]+)\}", lambda found: names.get(found[1], found[0]), template)


def _evidence(content: Mapping[str, Any]) -> dict[str, Any]:
    window = {name: _without_sketch(part) for name, part in content.items()}
    fits = len(msgspec.json.encode(window)) <= _MAX_EVIDENCE_BYTES
    return {"window": window} if fits else {"note": "window_too_large"}


def _without_sketch(part: object) -> object:
    return {name: x for name, x in part.items() if name != "sketch"} if isinstance(part, dict) else part
