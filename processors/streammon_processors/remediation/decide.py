"""The decision: from `remedies` to `remediations` and `loops`, exactly once, and by the broker's clock alone.

    alert asks for an action ─► is it fresh, known, not under way already, cooled down, within its limit?
        no  ─► skipped, with the reason
        yes ─► awaiting_approval (mode approve), or due (auto; as a dry run in mode dry_run)
    a person says yes ─► the same questions once more ─► due, or skipped
    a person says no, the alert resolves, or nobody answers in time ─► refused, withdrawn, expired

Promises
- A remediation is due once: its id is of the alert, its transition and the action, and ids are remembered.
- Cool-down and limit are of the action, over all alerts and partitions, counted from when it was due, dry runs too.
- What was approved is what is done: an action that has changed since it was proposed is skipped.
- An alert that is read more than `STALE_S` after its change asks for nothing, and an approval that is read so late
  allows nothing: whoever gave it expected something to happen then.
- What becomes of a retraining is followed in the same order (`retraining`).
- State is bounded: `MOST_OPEN` and `MOST_SEEN`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from streammon.broker import Outgoing, Record
from streammon.commands import Approve
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.remediation import (
    ENDS,
    MOST_IN,
    REMEDIATIONS,
    REMEDIES,
    Approval,
    Execution,
    Known,
    Policies,
    Policy,
    Remediation,
    State,
    Why,
    remediation_id,
)
from streammon.results import Alert
from streammon.retraining import Retrain
from streammon.tick import TICK
from streammon.wire import SCHEMA_HEADER
from streammon_processors.remediation.gather import decode_remedy
from streammon_processors.remediation.retraining import Memory, Retrainings

STALE_S: Final = 600.0
"""An alert is acted on within this long after its change, and an approval after it was given, or not at all."""
MOST_OPEN: Final = 300
MOST_SEEN: Final = 2000
_MOST_CHARACTERS: Final = 300
_MOST_LABEL_BYTES: Final = 1000


class _Memory(Struct, kw_only=True):
    """What the snapshot holds."""

    next: int = 0
    now_unix_s: float = 0.0
    open: dict[str, Remediation] = {}
    """Those that have not ended, the oldest first."""
    seen: dict[str, None] = {}
    """Ids that were decided, the oldest first."""
    due: dict[str, list[float]] = {}
    """When each action was due, the newest last."""
    retraining: Memory = msgspec.field(default_factory=Memory)


class RemedyTask:
    """Decides what is done about the alerts that name an action; there is one, since `remedies` has one partition."""

    def __init__(self, policies: Policies, partition: int) -> None:
        self._policies = policies
        self._partition = partition
        self._take(_Memory())

    def _take(self, memory: _Memory) -> None:
        self._memory, self._retrainings = memory, Retrainings(self._policies, memory.retraining)

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        return msgspec.json.encode(self._memory)

    def restore(self, snapshot: bytes) -> None:
        self._take(msgspec.json.decode(snapshot, type=_Memory))

    def offsets(self) -> Mapping[str, int]:
        return {REMEDIES: self._memory.next} if self._memory.next else {}

    @property
    def waiting(self) -> Sequence[str]:
        """Who waits for a person waits for a while only, and so does a retraining for whatever comes next."""
        awaited = any(each.state == "awaiting_approval" for each in self._memory.open.values())
        awaited = awaited or self._retrainings.is_waiting
        return (REMEDIES,) if awaited else ()

    def watermarks(self) -> Mapping[str, float]:
        return {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        memory = self._memory
        memory.next, memory.now_unix_s = record.offset + 1, max(memory.now_unix_s, record.timestamp / 1000)
        yield from self._all_told(self._expired())
        yield from self._retrainings.expire(memory.now_unix_s)
        if record.value is None or record.value == TICK:
            return
        try:
            content = decode_remedy(record.value)
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
            return
        if isinstance(content, Alert | Approve | Execution):
            yield from self._all_told(self._decide(content))
        else:
            yield from self._retrainings.learn(content, memory.now_unix_s)

    def _decide(self, content: Alert | Approve | Execution) -> Iterator[Remediation | Outgoing]:
        match content:
            case Alert(state="resolved"):
                yield from self._retrainings.ended(content.id, self._memory.now_unix_s)
                yield from self._withdrawn(content)
            case Alert():
                yield from self._asked(content)
            case Approve():
                yield from self._answered(content)
            case Execution():
                yield from self._executed(content)

    def _all_told(self, decided: Iterable[Remediation | Outgoing]) -> Iterator[Outgoing]:
        for each in decided:
            if isinstance(each, Outgoing):
                yield each
            else:
                yield self._told(each)
                known = self._policies.get(each.action)
                yield from self._retrainings.follow(each, known.policy if known else None)

    def _told(self, remediation: Remediation) -> Outgoing:
        """The record of a transition; what is open is remembered, and what was due until its executor has said so."""
        before = self._memory.open.pop(remediation.id, None)
        withdrawn = remediation.state == "withdrawn" and before is not None and before.state == "due"
        if remediation.state not in ENDS or withdrawn:
            self._memory.open[remediation.id] = remediation
        value = msgspec.json.encode(remediation)
        return Outgoing(REMEDIATIONS, remediation.id.encode(), value, (SCHEMA_HEADER,), self._partition)

    # --- an alert asks ------------------------------------------------------------------------------------------------

    def _asked(self, alert: Alert) -> Iterator[Remediation | Outgoing]:
        known = self._policies.get(alert.action or "")
        if alert.action is None or alert.state != (known.policy.when if known else "firing"):
            return
        proposed = self._proposal(alert, alert.action, known)
        if proposed.id in self._memory.seen:
            return
        self._memory.seen[proposed.id] = None
        if len(self._memory.seen) > MOST_SEEN:
            del self._memory.seen[next(iter(self._memory.seen))]
        if known is None:
            yield replace(proposed, state="skipped", reason=Why.UNKNOWN_ACTION)
            return
        why = Why.STALE if self._memory.now_unix_s - alert.updated_unix_s > STALE_S else None
        if why is None and known.policy.retrain is not None:
            why = yield from self._against_retraining(alert, known.policy.retrain)
        why = why or self._against_asking(alert, proposed, known.policy)
        if why := why or self._against_doing(alert.action, known.policy):
            yield replace(proposed, state="skipped", reason=why)
        elif known.policy.mode == "approve":
            yield proposed
        else:
            yield self._due(proposed)

    def _proposal(self, alert: Alert, action: str, known: Known | None) -> Remediation:
        small = len(msgspec.json.encode(alert.labels)) <= _MOST_LABEL_BYTES
        return Remediation(
            id=remediation_id(alert.id, alert.transition, action),
            action=action,
            action_version=known.version if known else None,
            state="awaiting_approval",
            dry_run=known is not None and known.policy.mode == "dry_run",
            time_unix_s=self._memory.now_unix_s,
            proposed_unix_s=self._memory.now_unix_s,
            alert_id=alert.id,
            alert_transition=alert.transition,
            rule=alert.rule,
            severity=alert.severity,
            labels=alert.labels if small else {},
            summary=alert.summary[:_MOST_CHARACTERS],
        )

    def _against_asking(self, alert: Alert, proposed: Remediation, policy: Policy) -> Why | None:
        """In a storm, no more waits for a person than may be done: else there is no room for other actions."""
        same = [each for each in self._memory.open.values() if each.action == proposed.action]
        if any(each.alert_id == alert.id for each in same):
            return Why.IN_PROGRESS
        if sum(each.state == "awaiting_approval" for each in same) >= policy.at_most.count:
            return Why.RATE_LIMIT
        return Why.TOO_MANY if len(self._memory.open) >= MOST_OPEN else None

    def _against_retraining(self, alert: Alert, retrain: Retrain) -> Generator[Outgoing, None, Why | None]:
        """While a model is trained anew, whatever asks for it is one more reason, and starts nothing."""
        now = self._memory.now_unix_s
        if self._retrainings.of_another_model(alert, retrain):
            return Why.OTHER_MODEL
        attached = self._retrainings.attached(alert, retrain, now)
        if attached is None:
            return self._retrainings.too_little(retrain, now)
        yield from attached
        return Why.IN_PROGRESS

    def _against_doing(self, action: str, policy: Policy) -> Why | None:
        now, due = self._memory.now_unix_s, self._memory.due.get(action, [])
        if due and now - due[-1] < policy.cool_down_s:
            return Why.COOL_DOWN
        recent = sum(now - each < policy.at_most.per_s for each in due)
        return Why.RATE_LIMIT if recent >= policy.at_most.count else None

    def _due(self, remediation: Remediation, **changes: Any) -> Remediation:
        due = self._memory.due.setdefault(remediation.action, [])
        due.append(self._memory.now_unix_s)
        del due[:-MOST_IN]
        return replace(remediation, state="due", time_unix_s=self._memory.now_unix_s, **changes)

    # --- a person answers, time passes, the alert ends ----------------------------------------------------------------

    def _answered(self, command: Approve) -> Iterator[Remediation]:
        waiting = self._memory.open.get(command.target_id)
        if waiting is None or waiting.state != "awaiting_approval":
            return
        approval = Approval(
            command_id=command.id,
            by=command.by,
            via=command.via,
            time_unix_s=command.time_unix_s,
            note=command.note and command.note[:_MOST_CHARACTERS],
        )
        known = self._policies.get(waiting.action)
        if not command.approved:
            yield self._next(waiting, "refused", approval=approval)
        elif self._memory.now_unix_s - command.time_unix_s > STALE_S:
            yield self._next(waiting, "skipped", reason=Why.STALE, approval=approval)
        elif known is None or known.version != waiting.action_version:
            yield self._next(waiting, "skipped", reason=Why.CHANGED, approval=approval)
        elif why := self._against_doing(waiting.action, known.policy):
            yield self._next(waiting, "skipped", reason=why, approval=approval)
        else:
            yield self._due(waiting, transition=waiting.transition + 1, approval=approval)

    def _expired(self) -> Iterator[Remediation]:
        """Those that nobody has answered. One whose action is gone waits no longer than its kind would by default."""
        for each in list(self._memory.open.values()):
            known = self._policies.get(each.action)
            within_s = (known.policy if known else Policy()).approve_within_s
            if each.state == "awaiting_approval" and self._memory.now_unix_s - each.proposed_unix_s >= within_s:
                yield self._next(each, "expired", reason=Why.UNANSWERED)

    def _withdrawn(self, alert: Alert) -> Iterator[Remediation]:
        """What was not begun is not done any more; a retraining that was approved is, whatever it was asked for by."""
        for each in list(self._memory.open.values()):
            wanted = self._retrainings.is_wanted(each.id)
            over = each.alert_id == alert.id if wanted is None else not wanted
            if over and each.state in ("awaiting_approval", "due"):
                yield self._next(each, "withdrawn", reason=Why.RESOLVED)

    # --- somebody executes --------------------------------------------------------------------------------------------

    def _executed(self, execution: Execution) -> Iterator[Remediation]:
        """Written down as it was, also of what was withdrawn in the moment in which it began."""
        known = self._memory.open.get(execution.remediation.id, execution.remediation)
        if known.state == "withdrawn" and execution.state == "expired":
            self._memory.open.pop(known.id, None)
            return
        yield self._next(known, execution.state, reason=execution.reason, detail=execution.detail)

    def _next(self, before: Remediation, state: State, **changes: Any) -> Remediation:
        now = self._memory.now_unix_s
        return replace(before, state=state, transition=before.transition + 1, time_unix_s=now, **changes)
