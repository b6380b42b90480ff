"""The ping to somebody outside who calls when it stays away, so that the silence of all of streammon is noticed.

Made for healthchecks.io, Dead Man's Snitch, Better Stack, Uptime Kuma and whoever else waits for a GET request. One is
sent every ``ping.interval_s``, but only while ``healthy()`` finds nothing to complain of.

What it promises: it blocks and ends nobody, whatever the other side does; it makes at most `TRIES` requests an
interval, each bounded by ``ping.timeout_s``; its URL is in no log and no error, because whoever knows it can keep the
alarm off. What it cannot do: tell that the other side has received a ping and lost it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from prometheus_client import Counter

from streammon.backoff import Backoff
from streammon.broker import Broker, Record, TopicPartition
from streammon.config import PingSettings
from streammon.errors import ConfigError, Retryable
from streammon.secret_files import secret
from streammon.telemetry import log
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER

if TYPE_CHECKING:
    import aiohttp

TRIES: Final = 3
PATIENCE_S: Final = 5.0
"""How long records that are there may take to come."""
PINGS = Counter("streammon_pings", "Pings to the service outside, by what became of them", ["outcome"])

Healthy = Callable[[], Awaitable[str | None]]
"""None if all is well, else what is not, in words for a log."""


def ping_url(settings: PingSettings) -> str | None:
    """Where to. Raises ConfigError, without the URL in it."""
    url = secret("ping.url", settings.url, settings.url_file)
    if url is not None and not _is_http(url):
        raise ConfigError("ping.url: expected http://HOST… or https://HOST…; it is not shown, because it is a secret")
    return url


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


async def pinging(settings: PingSettings, healthy: Healthy, *, stop: asyncio.Event) -> None:
    """Ping until ``stop`` is set; where no URL is given, only wait for that. Raises ConfigError for a wrong one."""
    url = ping_url(settings)
    if url is None:
        await stop.wait()
        return
    import aiohttp

    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(total=settings.timeout_s), trust_env=True
    ) as session:
        pinger = asyncio.create_task(_Pinger(session, url, settings.interval_s, healthy).run())
        stopped = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({pinger, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            pinger.cancel()
            stopped.cancel()
            await asyncio.wait({pinger})
    if not pinger.cancelled():
        pinger.result()  # never ends by itself, but for an error of ours


class _Pinger:
    def __init__(self, session: aiohttp.ClientSession, url: str, interval_s: float, healthy: Healthy) -> None:
        self._session = session
        self._url = url
        self._interval_s = interval_s
        self._healthy = healthy
        self._complaint: str | None = None

    async def run(self) -> None:
        now = asyncio.get_running_loop().time
        due = now()
        while True:
            await self._once()
            due = max(due + self._interval_s, now())
            await asyncio.sleep(due - now())

    async def _once(self) -> None:
        complaint = await self._healthy()
        if complaint is not None:
            PINGS.labels("withheld").inc()
        else:
            complaint = await self._send()
            PINGS.labels("failed" if complaint else "sent").inc()
        self._tell(complaint)

    async def _send(self) -> str | None:
        """What went wrong with the last try, or None."""
        pauses, complaint = Backoff(first_s=0.5).pauses(), None
        for number in range(TRIES):
            if number:
                await asyncio.sleep(next(pauses))
            complaint = await self._get()
            if complaint is None:
                return None
        return complaint

    async def _get(self) -> str | None:
        import aiohttp

        try:
            async with self._session.get(self._url) as answer:
                return None if answer.ok else f"the service outside answers {answer.status}"
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return f"the service outside cannot be reached: {type(error).__name__}"  # its text may hold the URL

    def _tell(self, complaint: str | None) -> None:
        """Once a change, not once an interval."""
        if complaint and complaint != self._complaint:
            log.warning("no ping is sent", reason=complaint)
        elif self._complaint and not complaint:
            log.info("pings are sent again")
        self._complaint = complaint


class Flow:
    """Whether events still become windows, as seen from the log: what `up` and `notify` judge their health by.

    Only base windows say so. Ticks are written into an idle log, too, and let rollups end that were begun before.
    """

    def __init__(self, broker: Broker, stale_s: float) -> None:
        self._broker = broker
        self._stale_s = stale_s
        self._ends: Mapping[TopicPartition, int] | None = None
        self._moved_at: float | None = None

    async def __call__(self) -> str | None:
        now = asyncio.get_running_loop().time()
        try:
            if await self._flows():
                self._moved_at = now
        except Retryable as error:
            return str(error)
        if self._moved_at is None:  # whoever is started again and again must not pass for alive
            return "no new window yet"
        still_s = now - self._moved_at
        return f"no new window for {still_s:.0f} s" if still_s > self._stale_s else None

    async def _flows(self) -> bool:
        """Whether there is a window that was not there when it was last asked; what comes first is looked at only."""
        reader = await self._broker.reader(["windows"], "latest" if self._ends is None else self._ends)
        try:
            self._ends = ends = await reader.ends()
            while any(reader.positions()[each] < end for each, end in ends.items()):
                polled = await reader.poll(PATIENCE_S)
                if not polled:
                    return False
                if any(map(_is_base_window, chain.from_iterable(polled.values()))):
                    return True
            return False
        finally:
            await reader.close()


def _is_base_window(record: Record) -> bool:
    return record.value != TICK and all(name != ROLLUP_HEADER for name, _ in record.headers)
