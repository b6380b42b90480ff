"""The load: calls the service over HTTP as its users would, and tells it later what was true.

Requests come at random (a Poisson process) and do not wait for each other: a slow service gets no fewer of them.
About one in a hundred is malformed. More than `MAX_IN_FLIGHT` at once are not sent, and counted.

The truth takes its time: half of ``label_delay_s`` at least, all of it on average, sometimes much longer. What one page
in ten was, nobody ever finds out. One user in twenty rates the answer. The pages are those of the world as it is by
then, see `examples.model_service.world`.
"""

from __future__ import annotations

import asyncio
import heapq
import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple

import aiohttp

from examples.model_service.lifetime import until_told_to_stop
from examples.model_service.options import Times, drift_times, load_parser
from examples.model_service.world import as_of

MAX_IN_FLIGHT = 200
MALFORMED_EVERY = 97  # shares no factor with the turns of the detectors, so that each gets its part
FEEDBACK_EVERY_S = 0.5
FOUND_OUT, RATED = 0.9, 0.05
"""Shares of the answers."""
BEST, WORST = 5, 1
TIMEOUT = aiohttp.ClientTimeout(total=5.0)
START_TIMEOUT = aiohttp.ClientTimeout(total=60.0)
LARGEST_BURST_S = 1.0
"""A schedule further behind than this (the machine was asleep) is not caught up with."""


class Truth(NamedTuple):
    """What the feedback will say, and when. ``rating``: from `WORST` to `BEST`, of a user who says so."""

    due: float
    event_id: str
    phishing: bool | None
    rating: int | None


class Load:
    """Requests and feedback over one session."""

    def __init__(
        self, session: aiohttp.ClientSession, pages: Sequence[dict[str, Any]], label_delay_s: float, drift: Times
    ) -> None:
        self._session = session
        self._pages = pages
        self._label_delay_s = label_delay_s
        self._drift = drift
        self._started = asyncio.get_running_loop().time()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._truths: list[Truth] = []
        """A heap: the next one due is first."""
        self.answers: Counter[int | str] = Counter()
        """By HTTP status; also ``unanswered`` and ``not sent``."""

    async def run(self, rate: float) -> None:
        """Send ``rate`` requests a second, and the feedback, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._requests(rate))
            tasks.create_task(self._feedback())

    async def _requests(self, rate: float) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        for number in count(1):
            due = max(due + random.expovariate(rate), loop.time() - LARGEST_BURST_S)
            await asyncio.sleep(due - loop.time())
            if len(self._in_flight) >= MAX_IN_FLIGHT:
                self.answers["not sent"] += 1
                continue
            task = asyncio.create_task(self._request(number))
            self._in_flight.add(task)
            task.add_done_callback(self._in_flight.discard)

    async def _request(self, number: int) -> None:
        page = self._pages[number % len(self._pages)]
        features = as_of(page, asyncio.get_running_loop().time() - self._started, self._drift)
        body = json.dumps(features)
        if number % MALFORMED_EVERY == 0:
            body = malformed(features, number // MALFORMED_EVERY)
        headers = {"traceparent": f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-01"}
        try:
            async with self._session.post("/predict", data=body, headers=headers) as response:
                self.answers[response.status] += 1
                if response.status == 200:
                    self._expect_feedback(await response.json(), page["label"])
        except (aiohttp.ClientError, TimeoutError):
            self.answers["unanswered"] += 1

    def _expect_feedback(self, answer: dict[str, Any], phishing: bool) -> None:
        known = phishing if random.random() < FOUND_OUT else None
        rating = (BEST if answer["phishing"] == phishing else WORST) if random.random() < RATED else None
        if known is not None or rating is not None:
            due = asyncio.get_running_loop().time() + self._label_delay_s * (0.5 + random.expovariate(2.0))
            heapq.heappush(self._truths, Truth(due, answer["event_id"], known, rating))

    async def _feedback(self) -> None:
        while True:
            await asyncio.sleep(FEEDBACK_EVERY_S)
            if truths := self._due():
                with suppress(aiohttp.ClientError, TimeoutError):
                    await self._session.post("/feedback", json=truths)

    def _due(self) -> list[dict[str, Any]]:
        now = asyncio.get_running_loop().time()
        due = []
        while self._truths and self._truths[0].due <= now:
            _, event_id, phishing, rating = heapq.heappop(self._truths)
            due.append({"event_id": event_id, "phishing": phishing, "rating": rating})
        return due


def malformed(features: dict[str, Any], number: int) -> str:
    """One of three ways to get a request wrong."""
    first, *others = features
    body = json.dumps(features)
    return (
        body[:-1],
        json.dumps({name: features[name] for name in others}),
        json.dumps(features | {first: "yes"}),
    )[number % 3]


async def main(url: str, rate: float, label_delay_s: float, drift: Times) -> int:
    """Load the service at ``url`` until told to stop (0), or until there is no such service (1)."""
    stopped = asyncio.create_task(until_told_to_stop())
    loading = asyncio.create_task(_load(url, rate, label_delay_s, drift))
    await asyncio.wait([loading, stopped], return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        return 0
    print(f"load: {url}: {loading.exception()!r}", file=sys.stderr)
    return 1


async def _load(url: str, rate: float, label_delay_s: float, drift: Times) -> None:
    connector = aiohttp.TCPConnector(limit=MAX_IN_FLIGHT)
    async with aiohttp.ClientSession(url, timeout=TIMEOUT, connector=connector) as session:
        async with session.get("/pages", timeout=START_TIMEOUT) as response:
            pages = await response.json()
        await Load(session, pages, label_delay_s, drift).run(rate)


if __name__ == "__main__":
    given = load_parser().parse_args()
    sys.exit(asyncio.run(main(given.url, given.rate, given.label_delay, drift_times(given))))
