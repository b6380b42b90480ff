"""Episodes, and the alerts that tell of them: what a person reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from streammon.results import Alert, AlertState, Severity
from streammon_processors.rules.description import Rule, digest

Labels = dict[str, str]
_MAX_EVIDENCE_BYTES: Final = 100_000


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
        return digest((self.rule, self.version, self.series, self.since_unix_s), size=16)


_UNITS: Final = {"_per_s": "/s", "_s": " s", "_bytes": " B", "_j": " J"}
_FRACTIONS: Final = ("error_rate", "utilization")


def firing(rule: Rule, episode: Episode, value: float, content: Mapping[str, Any]) -> Alert:
    sign = ">" if rule.above is not None else "<"
    held_s = f" for {episode.through_unix_s - episode.since_unix_s:.6g} s" if rule.for_s else ""
    condition = f"{_condition(rule, value, sign, rule.threshold)}{held_s}"
    return _alert(rule, episode, content, state="firing", value=value, condition=condition)


def resolved(rule: Rule, episode: Episode, value: float, content: Mapping[str, Any]) -> Alert:
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
