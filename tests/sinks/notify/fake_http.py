"""A strict fake of a service that is spoken to over HTTP: real sockets, and faults on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from streammon.errors import Backpressure, Rejected, Retryable
from tests.certificates import Authority
from tests.sinks.notify.counterparts import RETRY_AFTER_S, Fault, Verdicts

HTTP_VERDICTS: Verdicts = {
    Fault.BUSY: Backpressure,
    Fault.BROKEN: Retryable,
    Fault.UNAVAILABLE: Retryable,
    Fault.SILENT: Retryable,
    Fault.RESET: Retryable,
    Fault.REFUSING: Rejected,
    Fault.UNTRUSTED: Retryable,
    Fault.SLOW: Retryable,
    Fault.REDIRECTING: Retryable,
}
"""Of every service over HTTP; each adds what becomes of an answer that it cannot read."""

Handler = Callable[[web.Request, bytes], web.Response]


class FakeHttp:
    """``handler`` answers, unless there is a ``fault``."""

    def __init__(self, handler: Handler) -> None:
        self.fault: Fault | None = None
        self.sent_bytes = 0
        self.requests = 0
        self.session: aiohttp.ClientSession
        self._addresses: dict[bool, str] = {}
        self._handler = handler

    @property
    def tls_address(self) -> str:
        """Its certificate is signed by the authority in ``nobody.pem`` of the fake's directory."""
        return self._addresses[True]

    @property
    def address(self) -> str:
        return self._addresses[self.fault is Fault.UNTRUSTED]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests += 1
        if self.fault in (None, Fault.UNTRUSTED):
            return self._handler(request, body)
        return await self._misbehave(request, body)

    async def _misbehave(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if self.fault in (Fault.SLOW, Fault.ENDLESS):
            return await self._drip(request)
        if self.fault is Fault.SILENT:
            await asyncio.Future()
        if self.fault is Fault.RESET and request.transport:
            request.transport.abort()
        return self._answer(request, body)

    def _answer(self, request: web.Request, body: bytes) -> web.Response:
        repeated = f"\x1b[31mno:\n{request.path_qs} {dict(request.headers)} {body.decode()}" + "x" * 10_000
        elsewhere = f"http://127.0.0.1:1{request.path_qs}"
        return {
            Fault.BUSY: web.Response(status=429, headers={"Retry-After": f"{RETRY_AFTER_S:g}"}, text="slow down"),
            Fault.BROKEN: web.Response(status=500, text="<html>oops</html>"),
            Fault.REDIRECTING: web.Response(status=307, headers={"Location": elsewhere}),
            Fault.REFUSING: web.Response(status=400, text=repeated),
            Fault.GARBLED: web.Response(status=202, text='{"ok": tru', content_type="application/json"),
        }.get(self.fault or Fault.UNAVAILABLE, web.Response(status=503))

    async def _drip(self, request: web.Request) -> web.StreamResponse:
        endless = self.fault is Fault.ENDLESS
        response = web.StreamResponse(status=202, headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while True:
            await response.write(b'{"' + b"a" * 65_536 if endless else b" ")
            self.sent_bytes += 65_538 if endless else 1
            await asyncio.sleep(0 if endless else 0.01)  # the pace of the fault itself


@asynccontextmanager
async def fake_http(handler: Handler, directory: Path) -> AsyncIterator[FakeHttp]:
    """The fake, with a session for the channels; its second address has a certificate that nobody trusts."""
    fake = FakeHttp(handler)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", fake.handle)
    runner = web.AppRunner(app, shutdown_timeout=0, handler_cancellation=True)
    await runner.setup()
    try:
        for tls in (False, True):
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_own_certificate(directory) if tls else None)
            await site.start()
            fake._addresses[tls] = f"http{'s' * tls}://127.0.0.1:{runner.addresses[-1][1]}"
        async with aiohttp.ClientSession() as fake.session:
            yield fake
    finally:
        await runner.cleanup()


def _own_certificate(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(directory, "nobody").issue("fake"))
    return context
