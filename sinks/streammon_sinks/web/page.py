"""The routes of the page: the page itself, its data, and a stream that says when there is more.

==========================  ==========================================================================
``GET /``                   the page
``GET /static/NAME``        its style, script, and plotly.js as the installed plotly wheel carries it
``GET /api/overview``       an `Overview` as JSON; ``?range_s=`` one of `RANGES_S`, 900 if not given
``GET /api/stream``         server-sent events: ``changed`` when windows or alerts were written
==========================  ==========================================================================

Nothing is loaded from elsewhere, and the Content-Security-Policy holds browsers to it. There is no
authentication: serve it locally, or behind a proxy that has one.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from contextlib import suppress
from functools import cache
from importlib import metadata, resources
from typing import Final, NamedTuple

from aiohttp import web

from streammon.alert_log import AlertLog
from streammon.clock import Clock, system_clock
from streammon.errors import ConfigError, Retryable
from streammon.telemetry import log
from streammon_sinks.sqlite import ResultStore
from streammon_sinks.web.live import POLL_S, Live, StatusOf
from streammon_sinks.web.overview import RANGES_S

MAX_STREAMS: Final = 64
"""Streams open at the same time; a further one is answered 503, and its page asks every few seconds instead."""
HEARTBEAT_S: Final = 10.0
"""A stream is never silent for longer: proxies keep it, and a reader who left is noticed."""

_HEADERS: Final = {
    # Plotly puts styles into the page, and its pictures are data.
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_FOR_EVER: Final = _HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH: Final = _HEADERS | {"Cache-Control": "no-store"}


def page_routes(
    store: ResultStore,
    status: StatusOf,
    *,
    stop: asyncio.Event,
    clock: Clock = system_clock,
    people: AlertLog | None = None,
) -> list[web.RouteDef]:
    """The routes to mount. ``stop`` ends the streams, which would otherwise hold up the server's end.

    ``people``: what they do; without it the page has no buttons. `streammon_sinks.web.commands` takes what they send.

    Raises:
        ConfigError: plotly is not installed.
    """
    _plotly_version()
    live, streams = Live(store, status, clock, people=people), _Streams()

    async def page(_: web.Request) -> web.Response:
        return web.Response(text=_page(), content_type="text/html", headers=_FRESH)

    async def static(request: web.Request) -> web.Response:
        asset = await asyncio.to_thread(_asset, request.match_info["name"])
        if asset is None:
            raise web.HTTPNotFound
        return asset.response(request)

    async def overview(request: web.Request) -> web.Response:
        try:
            body = await live.overview(_range_s(request.query.get("range_s", "900")))
        except Retryable as error:
            raise web.HTTPServiceUnavailable(text=str(error), headers={"Retry-After": "1"}) from error
        return web.Response(body=body, content_type="application/json", headers=_FRESH)

    async def stream(request: web.Request) -> web.StreamResponse:
        with streams:
            return await _stream(request, live, stop)

    return [
        web.get("/", page),
        web.get("/static/{name}", static),
        web.get("/api/overview", overview),
        web.get("/api/stream", stream),
    ]


def _range_s(text: str) -> int:
    if text not in map(str, RANGES_S):
        choices = ", ".join(map(str, RANGES_S))
        raise web.HTTPBadRequest(text=f"range_s is {text!r}; it must be one of {choices}")
    return int(text)


# -- the stream ----------------------------------------------------------------------------------------


class _Streams:
    """Lets at most `MAX_STREAMS` in at a time."""

    def __init__(self) -> None:
        self._open = 0

    def __enter__(self) -> None:
        if self._open >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_STREAMS} streams are open already", headers={"Retry-After": "10"}
            )
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1


async def _stream(request: web.Request, live: Live, stop: asyncio.Event) -> web.StreamResponse:
    """Say ``changed`` at once and after every change, until the reader leaves or ``stop`` is set."""
    response = web.StreamResponse(headers=_FRESH | {"Content-Type": "text/event-stream"})
    await response.prepare(request)
    now = asyncio.get_running_loop().time
    told, told_at = None, now()
    while not stop.is_set():
        version = await _version(live)
        message = f"event: changed\ndata: {version}\n\n" if version not in (told, None) else ": alive\n\n"
        if version not in (told, None) or now() - told_at > HEARTBEAT_S:
            try:
                await response.write(message.encode())
            except ConnectionResetError:
                break
            told, told_at = version, now()
        await _pause(stop, POLL_S)
    return response


async def _version(live: Live) -> int | None:
    try:
        return await live.version()
    except Retryable as error:
        log.warning("the page waits for the results store", error=str(error))
        return None


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


# -- files ---------------------------------------------------------------------------------------------


class _Asset(NamedTuple):
    """A file that never changes under its URL."""

    body: bytes
    packed: bytes
    content_type: str

    def response(self, request: web.Request) -> web.Response:
        if "gzip" in request.headers.get("Accept-Encoding", ""):
            headers = _FOR_EVER | {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            return web.Response(body=self.packed, content_type=self.content_type, headers=headers)
        return web.Response(body=self.body, content_type=self.content_type, headers=_FOR_EVER)


_TYPES: Final = {"page.css": "text/css", "page.js": "text/javascript", "plotly.js": "text/javascript"}


@cache
def _asset(name: str) -> _Asset | None:
    if name not in _TYPES:
        return None
    body = _read(name)
    return _Asset(body, gzip.compress(body, 6), _TYPES[name])


def _read(name: str) -> bytes:
    if name == "plotly.js":
        return (resources.files("plotly") / "package_data" / "plotly.min.js").read_bytes()
    return (resources.files(__package__) / name).read_bytes()


@cache
def _page() -> str:
    """``index.html``, with a version in the URL of every asset."""
    versions = {name: hashlib.sha256(_read(name)).hexdigest()[:12] for name in ("page.css", "page.js")}
    page = _read("index.html").decode()
    for name, version in (versions | {"plotly.js": _plotly_version()}).items():
        page = page.replace(f"/static/{name}", f"/static/{name}?v={version}")
    return page


def _plotly_version() -> str:
    try:
        return metadata.version("plotly")
    except metadata.PackageNotFoundError as error:
        raise ConfigError("the page needs plotly: pip install 'streammon[web]'") from error
