"""The service: a detector behind HTTP, watched by streammon.

=====================  ================================================================================
``POST /predict``      ``{feature: value, …}`` → ``{"event_id": …, "phishing": true, "confidence": 0.9}``
``POST /feedback``     ``[{"event_id": …, "phishing": false, "rating": 1}, …]``: what turned out to be true, and what
                       users think of the answer; either may be null
``GET /pages``         the labelled web pages, for the load generator
=====================  ================================================================================

All that streammon asks of a service is in `Service.predict` (``measure``), `Service.feedback` (``label``) and
`Service.deploy` (``change``).

Two versions of the model answer side by side, four requests to the first and one to the second. Every few minutes
the first is tuned, and its requests wait: see `Detector.tune`. And every few minutes a version that was trained on the
newest labels takes its place, and leaves it the second. Nothing here invents a latency or an error.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator, Sequence
from itertools import count, cycle
from typing import Any

from aiohttp import web

from examples.model_service.detector import HTTPS, Detector, Example, Features
from examples.model_service.options import Times, Tuning
from streammon_agents import Monitor

SERVICE, MODEL = "phishing-api", "phishing"
MAX_WAITING = 100
"""More requests than this waiting for one detector are turned away with 503."""
MAX_UNLABELLED = 20_000
"""Predictions whose label is still awaited; the oldest are forgotten beyond that."""
FIRST_PAGES = 400
"""Web pages that the first versions are made of: the older half one of them, all the other."""


class Malformed(web.HTTPBadRequest):
    """The request is at fault; answered with 400."""


class Overloaded(web.HTTPServiceUnavailable):
    """Too many are waiting already; answered with 503."""


class Service:
    """Answers, learns, and reports both through ``monitor``."""

    def __init__(self, monitor: Monitor, pages: Sequence[Example]) -> None:
        self._monitor = monitor
        self._pages = pages
        self._names = frozenset(pages[0].features)
        self.stable = Detector("knn-1", pages[FIRST_PAGES // 2 : FIRST_PAGES])
        self.canary = Detector("knn-2", pages[:FIRST_PAGES])
        self._versions = (f"knn-{number}" for number in count(3))
        self._turns: Iterator[bool] = cycle([True] * 4 + [False])
        self._unlabelled: dict[str, Features] = {}

    def app(self) -> web.Application:
        """The routes in the table above."""
        app = web.Application()
        app.router.add_post("/predict", self.predict)
        app.router.add_post("/feedback", self.feedback)
        app.router.add_get("/pages", self.pages)
        return app

    async def predict(self, request: web.Request) -> web.Response:
        detector = self.stable if next(self._turns) else self.canary
        with self._monitor.measure(endpoint="/predict", model_version=detector.version, **_trace(request)) as call:
            try:
                features = self._features(await request.read())
                call.set(features=features)
                answer = await self._ask(detector, features)
            except web.HTTPException as refusal:
                call.set(http_status=refusal.status)
                raise
            call.set(http_status=200, event_id=answer["event_id"], prediction=answer["phishing"])
            call.set(confidence=answer["confidence"])
        self._remember(answer["event_id"], features)
        return web.json_response(answer)

    async def _ask(self, detector: Detector, features: Features) -> dict[str, Any]:
        if detector.waiting >= MAX_WAITING:
            raise Overloaded(text=f"{MAX_WAITING} requests are waiting for {detector.version}")
        detector.waiting += 1
        try:
            async with detector.lock:
                phishing, confidence = detector.predict(features)
        finally:
            detector.waiting -= 1
        return {"event_id": secrets.token_hex(8), "phishing": phishing, "confidence": confidence}

    def _features(self, body: bytes) -> Features:
        try:
            features = json.loads(body)
        except ValueError as error:
            raise Malformed(text=f"not JSON: {error}") from None
        if not isinstance(features, dict) or features.keys() != self._names:
            raise Malformed(text=f"expected an object of {', '.join(sorted(self._names))}")
        if wrong := [
            name for name, value in features.items() if name != "https" and not isinstance(value, int | float)
        ]:
            raise Malformed(text=f"expected a number: {', '.join(wrong)}")
        if features["https"] not in HTTPS:
            raise Malformed(text=f"https is {features['https']!r}, expected one of {', '.join(HTTPS)}")
        return features

    def _remember(self, event_id: str, features: Features) -> None:
        self._unlabelled[event_id] = features
        if len(self._unlabelled) > MAX_UNLABELLED:
            del self._unlabelled[next(iter(self._unlabelled))]

    async def feedback(self, request: web.Request) -> web.Response:
        for event_id, phishing, rating in _truths(await request.read()):
            self._monitor.label(event_id, label=phishing, rating=rating, source="feedback")
            features = self._unlabelled.pop(event_id, None)
            if features is not None and phishing is not None:
                self.stable.take_note(Example(features, phishing))
        return web.Response(status=204)

    def deploy(self) -> None:
        """A version that was trained on what is true now takes over; the one before it keeps one request in five."""
        new = self.stable.successor(next(self._versions))
        self.stable, self.canary = new, self.stable
        self._monitor.change("deploy", model_version=new.version, actor="demo", ref="trained on the newest labels")

    async def pages(self, _: web.Request) -> web.Response:
        return web.json_response([page._asdict() for page in self._pages])


def _truths(body: bytes) -> list[tuple[str, bool | None, float | None]]:
    try:
        return [(one["event_id"], one["phishing"], one.get("rating")) for one in json.loads(body)]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Malformed(text=f"expected [{{event_id, phishing, rating}}, …]: {error!r}") from None


def _trace(request: web.Request) -> dict[str, str]:
    """The caller's trace (W3C ``traceparent``: version-trace-span-flags), with a span of our own."""
    parts = request.headers.get("traceparent", "").split("-")
    return {"trace_id": parts[1], "span_id": secrets.token_hex(8)} if len(parts) == 4 else {}


async def tune_for_ever(service: Service, tuning: Tuning) -> None:
    """Tune what answers most at the appointed times."""
    await asyncio.sleep(tuning.first_s)
    while True:
        await _tune_for_a_while(service, tuning)
        await asyncio.sleep(tuning.every_s - tuning.lasts_s)


async def _tune_for_a_while(service: Service, tuning: Tuning) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + tuning.lasts_s
    while loop.time() < end:
        await service.stable.tune(tuning.budget_s)
        await asyncio.sleep(tuning.pause_s)


async def deploy_for_ever(service: Service, times: Times) -> None:
    """Let a new version take over at the appointed times."""
    await asyncio.sleep(times.first_s)
    while True:
        service.deploy()
        await asyncio.sleep(times.every_s)
