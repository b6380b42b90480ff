"""Evidence: what was around an alert when it fired, and what may be behind it.

    alerts → pick those that have just fired → read what was around them → diagnose → evidence

`Diagnosis` is delivered the topic `alerts` as a sink is, and writes one record of `evidence` for each firing, under the
id of the alert and into its partition. What it promises:

* Rules and notifier never wait for it: it is a group of its own.
* At least once, and again changes nothing: the topic is compacted by the alert's id, and a record names the transition
  it explains, so that readers keep the newest.
* Alerts that come together share one read of the log. In a storm at most `MAX_DIAGNOSED` of those are diagnosed, the
  most severe and then the first of them; the others get evidence that says so. `MAX_READS` reads a batch at most.
* An alert that fired longer than `MAX_AGE_S` ago, or has ended by the time it is looked at, is left alone.

What it cannot do: know what is not in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from streammon.broker import Broker, Outgoing
from streammon.clock import Clock, system_clock
from streammon.results import Alert, Evidence
from streammon.telemetry import log
from streammon.wire import SCHEMA_HEADER
from streammon_sinks.decoding import Decoded, decode_all
from streammon_sinks.delivery import Item, Refused
from streammon_sinks.diagnosis.diagnose import Surroundings, diagnose
from streammon_sinks.diagnosis.gather import Fired, gather, lookback_s

__all__ = ["GROUP", "Diagnosis", "Surroundings", "diagnose", "gather"]

GROUP: Final = "diagnosis"
SETTLE_S: Final = 2.0
"""Windows of other partitions come about as soon as those of the alert; and alerts of one cause come together."""
TOGETHER_S: Final = 600.0
"""Alerts that began within so long share a read."""
MAX_READS: Final = 4
MAX_DIAGNOSED: Final = 50
MAX_AGE_S: Final = 6 * 3600.0
_SEVERITIES: Final = ("critical", "warning", "info")
Sleep = Callable[[float], Awaitable[None]]


class Diagnosis:
    """Writes the evidence of the alerts that it is given."""

    def __init__(self, broker: Broker, *, clock: Clock = system_clock, sleep: Sleep = asyncio.sleep) -> None:
        self._broker, self._clock, self._sleep = broker, clock, sleep

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        """Explain the alerts among these records that have just fired. Raises `Retryable` when the broker is away."""
        decoded, refused = decode_all(records)
        fired = just_fired(decoded, self._clock())
        outputs = [_forgotten(each.item) for each in decoded if each.result is None]
        if fired:
            await self._sleep(SETTLE_S)
            partitions = {
                each.result.id: each.item.where.partition for each in decoded if isinstance(each.result, Alert)
            }
            outputs += [_record(each, partitions[each.alert_id]) async for each in self._explained(fired)]
        if outputs:
            await self._broker.append(outputs)
        return refused

    async def _explained(self, fired: Sequence[Fired]) -> AsyncIterator[Evidence]:
        chosen, left = _bounded(fired)
        for group in chosen:
            around = await gather(self._broker, group)
            for each in group:
                yield await asyncio.to_thread(diagnose, each.alert, around, self._clock())
        if left:
            log.warning(
                "an alert storm: some alerts are not diagnosed", diagnosed=len(fired) - len(left), left=len(left)
            )
        for each in left:
            note = f"not diagnosed: {len(fired)} alerts fired together; see those of the highest severity"
            yield _unexplained(each.alert, note, self._clock())

    async def close(self) -> None:
        """The broker is somebody else's."""


def just_fired(decoded: Iterable[Decoded], now_unix_s: float) -> list[Fired]:
    """The alerts whose newest record here says that they began to fire, or fire worse than before."""
    newest: dict[str, Fired] = {}
    for each in decoded:
        if isinstance(each.result, Alert):
            newest[each.result.id] = Fired(each.result, each.item.record.timestamp / 1000)
    return [
        fired
        for fired in newest.values()
        if fired.alert.state in ("firing", "no_data") and now_unix_s - fired.taken_unix_s <= MAX_AGE_S
    ]


def _bounded(fired: Sequence[Fired]) -> tuple[list[list[Fired]], list[Fired]]:
    """Those to diagnose, in groups that share a read, and those for which there is no room."""
    by_urgency = sorted(
        fired, key=lambda each: (_SEVERITIES.index(each.alert.severity), each.alert.started_unix_s, each.alert.id)
    )
    groups: list[list[Fired]] = []
    left = by_urgency[MAX_DIAGNOSED:]
    for each in by_urgency[:MAX_DIAGNOSED]:
        group = next((group for group in groups if _share_a_read(group[0], each)), None)
        if group is not None:
            group.append(each)
        elif len(groups) < MAX_READS:
            groups.append([each])
        else:
            left.append(each)
    return groups, left


def _share_a_read(one: Fired, other: Fired) -> bool:
    near = abs(one.alert.started_unix_s - other.alert.started_unix_s) <= TOGETHER_S
    return (
        near
        and abs(one.taken_unix_s - other.taken_unix_s) <= TOGETHER_S
        and lookback_s(one.alert) == lookback_s(other.alert)
    )


def _unexplained(alert: Alert, note: str, now_unix_s: float) -> Evidence:
    window = alert.evidence.get("window")
    return Evidence(
        alert_id=alert.id,
        transition=alert.transition,
        onset_unix_s=alert.started_unix_s,
        made_unix_s=now_unix_s,
        window=window if isinstance(window, dict) else {},
        notes=[note],
    )


def _record(evidence: Evidence, partition: int) -> Outgoing:
    value = msgspec.json.encode(evidence)
    return Outgoing("evidence", evidence.alert_id.encode(), value, (SCHEMA_HEADER,), partition)


def _forgotten(item: Item) -> Outgoing:
    """An alert that is forgotten takes its evidence with it."""
    return Outgoing("evidence", item.record.key, None, (), item.where.partition)
