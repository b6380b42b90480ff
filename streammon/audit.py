"""The audit: everything that people told streammon, and what became of it; and what streammon did by itself.

A command is a record, so the audit is the topic `commands`, read against `alerts`. An acknowledgement names the
transition that its giver saw; it was applied if the next transition of the alert says ``acknowledged``. Every
transition of a remediation is an entry, too, by whoever approved it, or else by streammon.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from enum import StrEnum

from msgspec import Struct

from streammon.alert_log import AlertLog
from streammon.commands import Acknowledge, AnyCommand, Approve, Silence, Unsilence
from streammon.remediation import Remediation
from streammon.results import Alert, AlertState

States = Mapping[tuple[str, int], AlertState]
"""The state of each transition that is known: of an alert's id, and its number."""


class Outcome(StrEnum):
    """What became of a command. The values go over the wire: add, never rename."""

    APPLIED = "applied"
    WAITING = "waiting"  # the alert has not changed since
    REPEATED = "repeated"  # somebody was faster
    OVERTAKEN = "overtaken"  # the alert changed before the command came
    NO_EFFECT = "no_effect"  # it was about nothing, or nothing any more
    UNKNOWN = "unknown"  # what would tell is not in the log any more, or never was


class Entry(Struct, frozen=True, kw_only=True):
    """One command of one person."""

    id: str
    time_unix_s: float
    """By the clock of whoever sent it."""
    taken_unix_s: float
    """By the broker's clock."""
    by: str
    via: str
    what: str
    target: str
    """The alert's id, the silence's, what the silence is about, or the id of what was approved."""
    outcome: str
    """An `Outcome`; or the state that a remediation came to."""
    rule: str | None = None
    note: str | None = None


def audit(log: AlertLog, states: States, remediations: Sequence[Remediation] = ()) -> list[Entry]:
    """Every command in ``log`` and every one of ``remediations``, the oldest first.

    ``states``: as many transitions as there are; ``remediations``: likewise, in the order in which they were decided.
    """
    entries = [*_entries(log, states, remediations), *map(_of_remediation, remediations)]
    return sorted(entries, key=lambda entry: (entry.taken_unix_s, entry.id))


def _of_remediation(remediation: Remediation) -> Entry:
    approved = remediation.approval
    why = remediation.detail or remediation.reason
    dry = ", dry run" if remediation.dry_run else ""
    return Entry(
        id=f"{remediation.id}-{remediation.transition}",
        time_unix_s=remediation.time_unix_s,
        taken_unix_s=remediation.time_unix_s,
        by=approved.by if approved else "streammon",
        via=approved.via if approved else "rule",
        what="remediation",
        target=remediation.alert_id,
        outcome=remediation.state,
        rule=remediation.rule,
        note=f"{remediation.action} {remediation.id[:7]}{dry}" + (f": {why}" if why else ""),
    )


def _entries(log: AlertLog, states: States, remediations: Sequence[Remediation]) -> Iterator[Entry]:
    answered = {each.approval.command_id for each in remediations if each.approval}
    newest = {each.id: each for each in remediations}
    acknowledged: set[tuple[str, int]] = set()
    lifted: set[str] = set()
    rules = {id_: kept.alert.rule for id_, kept in log.alerts.items()}
    for told in log.told.values():
        command = told.command
        yield Entry(
            id=command.id,
            time_unix_s=command.time_unix_s,
            taken_unix_s=told.taken_unix_s,
            by=command.by,
            via=command.via,
            what=str(command.__struct_config__.tag),
            target=target_of(command),
            outcome=_approved(command, newest.get(command.target_id), answered)
            if isinstance(command, Approve)
            else _outcome(log, states, command, acknowledged, lifted),
            rule=rules.get(command.alert_id) if isinstance(command, Acknowledge) else _rule(command, newest),
            note=command.note,
        )


def target_of(command: AnyCommand) -> str:
    match command:
        case Acknowledge():
            return command.alert_id
        case Silence():
            return ", ".join(map(str, command.matchers))
        case Unsilence():
            return command.silence_id
        case Approve():
            return command.target_id


def _outcome(
    log: AlertLog,
    states: States,
    command: Acknowledge | Silence | Unsilence,
    acknowledged: set[tuple[str, int]],
    lifted: set[str],
) -> Outcome:
    match command:
        case Acknowledge():
            seen = command.alert_id, command.transition
            repeated = seen in acknowledged
            acknowledged.add(seen)
            return Outcome.REPEATED if repeated else _acknowledged(log, states, *seen)
        case Silence():
            lasts = command.ends_unix_s > max(command.starts_unix_s, command.time_unix_s)
            return Outcome.APPLIED if lasts else Outcome.NO_EFFECT
        case Unsilence():
            repeated = command.silence_id in lifted
            lifted.add(command.silence_id)
            return Outcome.REPEATED if repeated else _lifted(log, command)


def _approved(command: Approve, about: Remediation | None, answered: Set[str]) -> Outcome:
    if command.id in answered:
        return Outcome.APPLIED
    if about is None:
        return Outcome.UNKNOWN  # who waits for it says so elsewhere
    return Outcome.WAITING if about.state == "awaiting_approval" else Outcome.NO_EFFECT


def _rule(command: AnyCommand, newest: Mapping[str, Remediation]) -> str | None:
    about = newest.get(command.target_id) if isinstance(command, Approve) else None
    return about.rule if about else None


def _acknowledged(log: AlertLog, states: States, alert_id: str, transition: int) -> Outcome:
    following = states.get((alert_id, transition + 1))
    if following is not None:
        return Outcome.APPLIED if following == "acknowledged" else Outcome.OVERTAKEN
    newest = log.alerts.get(alert_id)
    stands = newest is not None and newest.alert.transition == transition
    if stands and newest is not None and newest.alert.state == "resolved":
        return Outcome.NO_EFFECT
    return Outcome.WAITING if stands else Outcome.UNKNOWN


def _lifted(log: AlertLog, command: Unsilence) -> Outcome:
    silences = {quiet.silence.id: quiet.silence for quiet in log.silences()}
    silence = silences.get(command.silence_id)
    if silence is None:
        return Outcome.NO_EFFECT
    return Outcome.APPLIED if command.time_unix_s < silence.ends_unix_s else Outcome.NO_EFFECT


def states_of(transitions: Mapping[tuple[str, int], Alert]) -> dict[tuple[str, int], AlertState]:
    return {place: alert.state for place, alert in transitions.items()}
