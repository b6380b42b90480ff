"""Alerts into Prometheus Alertmanager: its own API, as Prometheus speaks it.

Alertmanager forgets what nobody repeats, and keeps no alert through a restart of its own. So the channel does what
Prometheus does:

* Every alert that fires is sent again each ``resend``, and one that is over for five more minutes, to each of ``urls``:
  the members of a cluster find out among themselves who notifies.
* A firing alert is said to end ``hold`` from now. If streammon stays away for longer, Alertmanager takes it for over.
* A delivery is done when one member has taken it; the others get it with the next repetition. The log says who is
  away, and when he is back.
* An alert whose labels change, its severity with them, is another one for Alertmanager: the old one is ended.

What is repeated is kept in memory, and in what a delivery returns to be remembered: `resume` goes on with it after a
restart, or in another process that takes over. An alert that a later notification of its group leaves out is still
repeated; only its end, or that of its group, ends it.

The rule becomes ``alertname``. Label names that Prometheus does not know are changed: ``a.b`` is sent as ``a_b``.
"""

from __future__ import annotations

import asyncio
import base64
import re
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any, Final

import aiohttp
import msgspec
from msgspec import Meta, Struct, field

from streammon.clock import Clock, system_clock
from streammon.durations import Duration, seconds
from streammon.errors import Rejected, Retryable, StreammonError
from streammon.results import Alert
from streammon.telemetry import log
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import Http, HttpDescription
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.told import address, labels_of, likely_causes, line, steps, title

RESOLVED_FOR_S: Final = 300.0
MAX_KEPT: Final = 20_000
MAX_REMEMBERED: Final = 1_000
"""Alerts of one group that outlive a restart; its memory is one record of at most some 100 kB."""
PER_POST: Final = 500
_MAX_LABELS: Final = 100
_MAX_CHARS: Final = 1000


class Alertmanager(HttpDescription, frozen=True, tag="alertmanager"):
    """Alertmanagers to send every alert to."""

    urls: Annotated[list[str], Meta(min_length=1, max_length=10)]
    """Addresses of the members of one cluster: `http://alertmanager-0:9093`."""
    resend: Duration = "1m"
    """How often firing alerts are sent again."""
    hold: Duration = "15m"
    """How long Alertmanager takes an alert for firing without having heard of it again."""
    labels: dict[str, str] = field(default_factory=dict)
    """Labels that every alert gets."""
    generator_url: str | None = None
    """Where the link of an alert leads: streammon's page."""
    username: str | None = None
    password: Secret | None = None
    """Of `username`."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer …`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if seconds(self.resend) < 1 or seconds(self.hold) < 2 * seconds(self.resend):
            raise ValueError("hold: has to be at least twice `resend`, and `resend` at least 1s")
        for url in (*self.urls, *filter(None, [self.generator_url])):
            if not address(url) or "@" in url:
                raise ValueError(f"{url.rpartition('@')[2][:200]!r} is no address such as http://alertmanager:9093")
        if (self.username is None) != (self.password is None) or (self.username and self.token):
            raise ValueError("give `username` and `password` together, or `token`, or none of them")

    def open(self, name: str, session: aiohttp.ClientSession) -> Channel:
        return AlertmanagerChannel(name, self, session)


class Told(Struct, frozen=True, omit_defaults=True):
    """One alert as Alertmanager knows it. Its labels are its identity there."""

    alert_id: str
    labels: dict[str, str]
    annotations: dict[str, str]
    started_unix_s: float
    ended_unix_s: float | None = None

    @property
    def key(self) -> bytes:
        return msgspec.json.encode(self.labels, order="sorted")


class _Kept(Struct, frozen=True):
    """What is sent again, for which group, and until when if it is over."""

    told: Told
    group: str
    until_unix_s: float | None


class AlertmanagerChannel:
    """Sends alerts, and sends them again, until it is closed."""

    def __init__(
        self,
        name: str,
        description: Alertmanager,
        session: aiohttp.ClientSession,
        *,
        clock: Clock = system_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Raises ConfigError: a secret is not there."""
        description.check_secrets(name)
        self._name = name
        self._description = description
        self._http = Http(name, session, description.timeout_s, clock)
        self._clock = clock
        self._sleep = sleep
        self._kept: dict[bytes, _Kept] = {}  # oldest first
        self._away: dict[str, str] = {}  # URL to why, so that each change is logged once
        self._one_at_a_time = asyncio.Lock()  # else a repetition could overtake the end of its alert
        self._repeating: asyncio.Task[None] | None = None

    def resume(self, memories: Iterable[Memory]) -> None:
        """Go on with what was to be sent again when the last process stopped: the newest memory of each group."""
        recently = self._clock() - RESOLVED_FOR_S
        for memory in memories:
            told = (each for each in _remembered(memory) if (each.ended_unix_s or recently) >= recently)
            self._keep(memory.get("group", ""), told)

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        async with self._one_at_a_time:
            before = self._told_of(notification.group) or _remembered(memory)
            now_told = [*self._told(notification, before)]
            await self._deliver(now_told)
            self._keep(notification.group, now_told)
        told = {each.key: each for each in (*before, *now_told)}
        return _memory(notification.group, told.values())

    async def amend(self, notification: Notification, memory: Memory) -> Memory:
        """Other annotations of what fires, of which Alertmanager tells nobody."""
        return await self.deliver(notification, memory)

    async def resend(self) -> None:
        """Send everything that fires, and what was over less than five minutes ago, once more."""
        self._forget()
        for number in range(0, len(self._kept), PER_POST):
            async with self._one_at_a_time:
                batch = [each.told for each in islice(self._kept.values(), number, number + PER_POST)]
                await self._post_everywhere(batch)

    async def close(self) -> None:
        """Stop sending again."""
        if task := self._repeating:
            self._repeating = None
            task.cancel()
            await asyncio.wait([task])

    # ---------------------------------------------------------------- what is told, and kept

    def _told(self, notification: Notification, before: Iterable[Told]) -> Iterator[Told]:
        """Its alerts, and the end of what they were under other labels; of a group that is over, the end of all."""
        told = {each.alert_id: each for each in (self._alert(alert) for alert in notification.alerts)}
        yield from told.values()
        for old in before:
            new = told.get(old.alert_id)
            over = new.key != old.key if new else notification.status == "resolved"
            if over and old.ended_unix_s is None:
                yield msgspec.structs.replace(old, ended_unix_s=notification.created_unix_s)

    def _alert(self, alert: Alert) -> Told:
        over = alert.state == "resolved"
        return Told(
            alert_id=alert.id,
            labels=labels_for_prometheus(alert, self._description.labels),
            annotations=dict(_annotations(alert)),
            started_unix_s=alert.started_unix_s,
            ended_unix_s=(alert.ended_unix_s or alert.updated_unix_s) if over else None,
        )

    def _told_of(self, group: str) -> list[Told]:
        return [each.told for each in self._kept.values() if each.group == group]

    def _keep(self, group: str, told: Iterable[Told]) -> None:
        now = self._clock()
        for each in told:
            self._kept.pop(each.key, None)
            until = None if each.ended_unix_s is None else max(each.ended_unix_s, now) + RESOLVED_FOR_S
            self._kept[each.key] = _Kept(each, group, until)
        self._forget()
        if self._kept:
            self._repeat()

    def _forget(self) -> None:
        now = self._clock()
        self._kept = {key: each for key, each in self._kept.items() if (each.until_unix_s or now) >= now}
        too_many = list(islice(self._kept, max(0, len(self._kept) - MAX_KEPT)))
        for key in too_many:
            del self._kept[key]
        if too_many:
            log.warning("too many alerts; the oldest are not sent again", channel=self._name, count=len(too_many))

    def _repeat(self) -> None:
        if self._repeating is None:
            self._repeating = asyncio.create_task(self._repeat_for_ever(), name=f"channel {self._name}: resend")

    async def _repeat_for_ever(self) -> None:
        while True:
            await self._sleep(seconds(self._description.resend))
            try:
                await self.resend()
            except Exception as error:  # a mistake of ours; if it ended this task, alerts would end that still fire
                log.error("alerts could not be sent again", channel=self._name, error=type(error).__name__)

    # ---------------------------------------------------------------- how it gets there

    async def _deliver(self, told: Sequence[Told]) -> None:
        """Return when one member has taken all of it. Raises Retryable or Rejected."""
        for number in range(0, len(told), PER_POST):
            errors = await self._post_everywhere(told[number : number + PER_POST])
            if len(errors) == len(self._description.urls):
                raise next((error for error in errors if isinstance(error, Retryable)), errors[0])

    async def _post_everywhere(self, told: Sequence[Told]) -> list[StreammonError]:
        """What went wrong, where it did."""
        now = self._clock()
        body = msgspec.json.encode([self._payload(each, now) for each in told])
        outcomes = await asyncio.gather(*(self._post(url, body) for url in self._description.urls))
        return [outcome for outcome in outcomes if outcome is not None]

    async def _post(self, url: str, body: bytes) -> StreammonError | None:
        error: StreammonError | None = None
        try:
            await self._http.post(f"{url.rstrip('/')}/api/v2/alerts", body, self._authorization())
        except (Retryable, Rejected) as raised:
            error = raised
        self._say(url, error)
        return error

    def _say(self, url: str, error: StreammonError | None) -> None:
        if error and url not in self._away:
            log.warning("alertmanager did not take alerts; they are sent again", channel=self._name, error=str(error))
        elif not error and url in self._away:
            log.info("alertmanager takes alerts again", channel=self._name, url=url)
        self._away.pop(url, None)
        if error:
            self._away[url] = str(error)

    def _authorization(self) -> dict[str, str | SecretValue]:
        description = self._description
        if description.token:
            return {"Authorization": SecretValue(f"Bearer {self._http.secret('token', description.token).reveal()}")}
        if description.password:
            password = self._http.secret("password", description.password).reveal()
            pair = base64.b64encode(f"{description.username}:{password}".encode()).decode()
            return {"Authorization": SecretValue(f"Basic {pair}")}
        return {}

    def _payload(self, told: Told, now: float) -> dict[str, Any]:
        """What is over, is over now at the latest; an alert lasts at least a millisecond, or it is refused."""
        start = min(max(told.started_unix_s, 0.0), now)
        end = now + seconds(self._description.hold) if told.ended_unix_s is None else min(told.ended_unix_s, now)
        link = {"generatorURL": self._description.generator_url} if self._description.generator_url else {}
        return {
            "labels": told.labels,
            "annotations": told.annotations,
            "startsAt": _time(start),
            "endsAt": _time(max(end, start + 0.001)),
            **link,
        }


def labels_for_prometheus(alert: Alert, more: Mapping[str, str]) -> dict[str, str]:
    """``alertname``, ``severity``, what the channel adds, and the labels of the series under names that are allowed."""
    labels = {"alertname": line(alert.rule, _MAX_CHARS) or "alert", "severity": str(alert.severity)}
    others = labels_of(alert, _MAX_LABELS, _MAX_CHARS)
    for name, value in [*sorted(more.items()), *sorted(others.items())]:
        allowed = re.sub(r"\W", "_", name, flags=re.ASCII)
        allowed = f"_{allowed}" if allowed[:1].isdigit() else allowed
        while allowed in labels:
            allowed += "_"
        labels[allowed] = value
    return labels


def _annotations(alert: Alert) -> Iterator[tuple[str, str]]:
    yield "summary", title(alert, _MAX_CHARS)
    told = {
        "condition": line(alert.condition, _MAX_CHARS),
        "value": "" if alert.value is None else f"{alert.value:g}",
        "state": alert.state,
        "resolution_steps": "\n".join(f"{number}. {step}" for number, step in enumerate(steps(alert), 1)),
        "likely_causes": "\n".join(cause.text for cause in likely_causes(alert)),
        "contact": line(alert.contact or "", _MAX_CHARS),
        "runbook_url": address(alert.runbook_url) or "",
        "alert_id": line(alert.id, _MAX_CHARS),
    }
    yield from ((name, text) for name, text in told.items() if text)


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds")


# ---------------------------------------------------------------- what outlives a restart


def _memory(group: str, told: Iterable[Told]) -> Memory:
    """Packed, because alerts of one group say nearly the same."""
    firing_first = sorted(told, key=lambda each: (each.ended_unix_s is not None, each.key))
    packed = zlib.compress(msgspec.json.encode(firing_first[:MAX_REMEMBERED]))
    return {"group": group, "alerts": base64.b85encode(packed).decode()}


def _remembered(memory: Memory) -> list[Told]:
    packed = memory.get("alerts")
    return msgspec.json.decode(zlib.decompress(base64.b85decode(packed)), type=list[Told]) if packed else []
