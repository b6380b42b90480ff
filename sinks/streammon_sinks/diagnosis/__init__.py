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
* What cannot be explained, be it by a fault of ours, gets evidence that says so: an alert never stops its own program.

What it cannot do: know what is not in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Final

import msgspec

from streammon.broker import Broker, Outgoing
from streammon.clock import Clock, system_clock
from streammon.errors import StreammonError
from streammon.results import Alert, Evidence
from streammon.telemetry import log
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER
from streammon_sinks.decoding import Decoded, decode_all
from streammon_sinks.delivery import Item, Refused
from streammon_sinks.diagnosis.alerted import Fired, began_unix_s, lookback_s, window_of
from streammon_sinks.diagnosis.diagnose import Surroundings, diagnose
from streammon_sinks.diagnosis.gather import gather

__all__ = ["GROUP", "Diagnosis", "Surroundings", "diagnose", "gather"]

GROUP: Final = "diagnosis"
SETTLE_S: Final = 2.0
"""Windows of other partitions come about as soon as those of the alert; and alerts of one cause come together."""
TOGETHER_S: Final = 600.0
"""Alerts that began within so long share a read."""
MAX_READS: Final = 4
MAX_DIAGNOSED: Final = 50
MAX_AGE_S: Final = 6 * 3600.0
_MOST_BYTES: Final = MAX_RECORD_BYTES - 4096  # key and headers count, too
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
            for evidence in await self._together(group):
                yield evidence
        if left:
            log.warning(
                "an alert storm: some alerts are not diagnosed", diagnosed=len(fired) - len(left), left=len(left)
            )
        for each in left:
            note = f"not diagnosed: {len(fired)} alerts fired together; see those of the highest severity"
            yield _unexplained(each.alert, note, self._clock())

    async def _together(self, group: Sequence[Fired]) -> list[Evidence]:
        """The evidence of alerts that share a read.

        Evidence is a help, and `up` decides and pages in the same process: where a record makes us stumble, that is
        said, and not met again and again.
        """
        try:
            around = await gather(self._broker, group)
            return [await asyncio.to_thread(self._diagnosed, each.alert, around) for each in group]
        except StreammonError:
            raise
        except Exception as error:
            return [self._stumbled(each.alert, error) for each in group]

    def _diagnosed(self, alert: Alert, around: Surroundings) -> Evidence:
        try:
            return diagnose(alert, around, self._clock())
        except Exception as error:
            return self._stumbled(alert, error)

    def _stumbled(self, alert: Alert, error: Exception) -> Evidence:
        log.error("an alert could not be diagnosed", alert=alert.id, error=type(error).__name__, exc_info=error)
        note = f"not diagnosed: a fault of streammon ({type(error).__name__}), which its log tells"
        return _unexplained(alert, note, self._clock())

    async def close(self) -> None:
        """The broker is somebody else's."""


def just_fired(decoded: Iterable[Decoded], now_unix_s: float) -> list[Fired]:
    """The alerts that, by their records here, began to fire, or fire worse than before, and have not ended."""
    newest: dict[str, Fired] = {}
    for each in decoded:
        match each.result:
            case Alert(state="firing" | "no_data") as alert:
                newest[alert.id] = Fired(alert, each.item.record.timestamp / 1000)
            case Alert(state="pending" | "resolved") as alert:  # and who has acknowledged it wants to know all the more
                newest.pop(alert.id, None)
    return [fired for fired in newest.values() if now_unix_s - fired.taken_unix_s <= MAX_AGE_S]


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
    near = abs(began_unix_s(one.alert) - began_unix_s(other.alert)) <= TOGETHER_S
    return (
        near
        and abs(one.taken_unix_s - other.taken_unix_s) <= TOGETHER_S
        and lookback_s(one.alert) == lookback_s(other.alert)
    )


def _unexplained(alert: Alert, note: str, now_unix_s: float) -> Evidence:
    return Evidence(
        alert_id=alert.id,
        transition=alert.transition,
        onset_unix_s=alert.started_unix_s,
        made_unix_s=now_unix_s,
        window=window_of(alert),
        notes=[note],
    )


def _record(evidence: Evidence, partition: int) -> Outgoing:
    value = msgspec.json.encode(evidence)
    if len(value) > _MOST_BYTES:
        without = msgspec.structs.replace(evidence, window={}, history=[], comoving=[], causes=[])
        value = msgspec.json.encode(msgspec.structs.replace(without, notes=["it was too large for a record"]))
    return Outgoing("evidence", evidence.alert_id.encode(), value, (SCHEMA_HEADER,), partition)


def _forgotten(item: Item) -> Outgoing:
    """An alert that is forgotten takes its evidence with it."""
    return Outgoing("evidence", item.record.key, None, (), item.where.partition)
