"""Alerts: an episode in the words of its rule, for the person who is woken."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from streammon.commands import Acknowledge
from streammon.durations import shown as shown_duration
from streammon.results import Alert
from streammon_processors.rules.conditions.cel import Node, Variable
from streammon_processors.rules.conditions.expression import (
    Evaluation,
    Reason,
    Said,
    came_out_of,
    quantity,
    reasons,
    tell,
    value_at,
)
from streammon_processors.rules.conditions.words import shown
from streammon_processors.rules.description import Level, Rule
from streammon_processors.rules.episodes import Episode

_MAX_EVIDENCE_BYTES: Final = 100_000
_MAX_CONDITION_BYTES: Final = 200
_MAX_SHOWN_BYTES: Final = 30


class Sight(NamedTuple):
    """The window or result that decided: its place among those that were evaluated together, and the whole of it."""

    evaluation: Evaluation
    row: int
    value: bytes


def of_window(rule: Rule, episode: Episode, sight: Sight) -> tuple[Episode, Alert]:
    """What a window has made of an episode, told; the episode remembers what was said."""
    found, held = _why(rule, episode, sight)
    value, shown_ = _measured(rule, found[0], sight) if found else (None, "")
    said = " and ".join(dict.fromkeys(_said(rule, reason, sight) for reason in found)) or _without_numbers(rule, sight)
    condition = _cut(said, _MAX_CONDITION_BYTES) + held
    if episode.state != "resolved" and found:
        episode = replace(episode, value=value, shown=shown_, condition=condition)
    return episode, _alert(rule, episode, condition, _evidence(rule.origin.evidence, sight.value), value)


def of_silence(rule: Rule, episode: Episode) -> tuple[Episode, Alert]:
    """A series has not been heard for as long as its rule will wait."""
    episode = replace(episode, value=None, shown="no data", condition=f"no data for {shown_duration(rule.silence_s)}")
    return episode, _alert(rule, episode, episode.condition, {"note": "no_data"})


def of_command(rule: Rule, command: Acknowledge, episode: Episode) -> tuple[Episode, Alert]:
    """Somebody works on it."""
    person = {"by": command.by, "via": command.via, "time_unix_s": command.time_unix_s, "note": command.note}
    evidence = {"note": "acknowledged", "acknowledged": person, "of_transition": command.transition}
    return episode, _alert(rule, episode, episode.condition, evidence, episode.value)


def never_fired(rule: Rule, episode: Episode) -> tuple[Episode, Alert]:
    """A breach of which nothing was heard any more before it had held."""
    return episode, _alert(rule, episode, "not heard of again before it had held", {"note": "not_held"})


def orphaned(episode: Episode, rule: Rule | None, now_unix_s: float) -> Alert:
    """The end of an alert whose rule decides no more; whether the trouble is over is not known."""
    what = "changed" if rule else "removed"
    now = max(episode.through_unix_s, now_unix_s)
    return Alert(
        id=episode.alert_id,
        rule=episode.rule,
        rule_version=episode.version,
        state="resolved",
        severity=episode.severity,
        labels=episode.series,
        value=None,
        condition=f"the rule was {what}",
        summary=f"{episode.rule}: no longer followed, because the rule was {what} while it was {episode.state}",
        started_unix_s=episode.since_unix_s,
        updated_unix_s=now,
        ended_unix_s=now,
        transition=episode.transition + 1,
        evidence={"note": f"rule_{what}", "new_rule_version": rule.version if rule else None},
    )


def _why(rule: Rule, episode: Episode, sight: Sight) -> tuple[Sequence[Reason | Said], str]:
    """The comparisons that made it so, and for how long they had to hold."""
    if episode.state == "resolved":
        return _over(rule.levels[0], episode, sight), ""
    level = next(each for each in rule.levels if each.severity == episode.severity)
    rung = episode.rungs[rule.levels.index(level)]
    held_s = episode.through_unix_s - (rung.since if rung.since is not None else episode.through_unix_s)
    held = f" for {held_s:.6g} s" if level.hold_s and rung.firing else ""
    breached = [*reasons(level.breach, True, sight.evaluation, sight.row)]
    return breached or [*reasons(level.clear, False, sight.evaluation, sight.row)], held


def _said(rule: Rule, reason: Reason | Said, sight: Sight) -> str:
    """A reason in words, and the numbers that go with it."""
    said = tell(reason, sight.evaluation, sight.row)
    about = ", ".join(_number(Variable(name), sight) for name in _told_of(rule, reason))
    return f"{said} ({about})" if about else said


def _number(field: Variable, sight: Sight) -> str:
    return f"{field.name} {shown(quantity(field), value_at(field, sight.evaluation, sight.row))}"


def _measured(rule: Rule, reason: Reason | Said, sight: Sight) -> tuple[float | None, str]:
    """The number that a reason is about, if there is one, and what to call it."""
    if isinstance(reason, Reason):
        return _shown(reason.about, sight)
    if told := _told_of(rule, reason):
        return _shown(Variable(told[0]), sight)
    return None, _cut(sight.evaluation.text(reason.about.name)[sight.row] or "", _MAX_SHOWN_BYTES)


def _shown(node: Node, sight: Sight) -> tuple[float, str]:
    value = value_at(node, sight.evaluation, sight.row)
    return value, shown(quantity(node), value)


def _cut(text: str, max_bytes: int) -> str:
    """An episode remembers it, and has only so much room."""
    return text.encode()[:max_bytes].decode(errors="ignore")


def _told_of(rule: Rule, reason: Reason | Said) -> Sequence[str]:
    return rule.origin.tells.get(reason.about.name, ()) if isinstance(reason, Said) else ()


def _without_numbers(rule: Rule, sight: Sight) -> str:
    """Why, where no comparison of numbers has decided."""
    said = (came_out_of(condition, sight.evaluation, sight.row) for condition in rule.conditions)
    return "heard again" if all(each is None for each in said) else "its labels say so"


def _over(level: Level, episode: Episode, sight: Sight) -> Sequence[Reason | Said]:
    evaluation, row, _ = sight
    cleared, unbreached = (
        [*reasons(level.clear, True, evaluation, row)],
        [*reasons(level.breach, False, evaluation, row)],
    )
    return (cleared or unbreached) if episode.transition > 1 else (unbreached or cleared)


def _alert(
    rule: Rule, episode: Episode, condition: str, evidence: Mapping[str, Any], value: float | None = None
) -> Alert:
    return Alert(
        id=episode.alert_id,
        rule=rule.name,
        rule_version=rule.version,
        state=episode.state,
        severity=episode.severity,
        labels=episode.series,
        value=value,
        condition=condition,
        summary=_fill(rule.summary, {**episode.series, "value": episode.shown}),
        started_unix_s=episode.since_unix_s,
        updated_unix_s=episode.through_unix_s,
        ended_unix_s=episode.through_unix_s if episode.state == "resolved" else None,
        transition=episode.transition,
        resolution_steps=list(rule.resolution_steps),
        contact=rule.contact,
        escalation=list(rule.escalation),
        runbook_url=rule.runbook_url,
        action=rule.action,
        evidence=dict(evidence),
    )


def _fill(template: str, names: Mapping[str, str]) -> str:
    """Fill in ``{name}``; an unknown name stays as it is, because a page must not fail for its wording."""
    return re.sub(r"\{([\w.-]+)\}", lambda found: names.get(found[1], found[0]), template)


def _evidence(name: str, value: bytes) -> dict[str, Any]:
    """The record that decided, under its name: ``window``, ``drift`` or ``run``."""
    try:
        record = {field: _without_sketch(part) for field, part in msgspec.json.decode(value).items()}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {"note": f"{name}_unreadable"}  # what no rule reads is not looked at before
    fits = len(msgspec.json.encode(record)) <= _MAX_EVIDENCE_BYTES
    return {name: record} if fits else {"note": f"{name}_too_large"}


def _without_sketch(part: object) -> object:
    """Nor those within."""
    if not isinstance(part, dict):
        return part
    return {name: _without_sketch(x) for name, x in part.items() if name != "sketch"}
