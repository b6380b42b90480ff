"""A proxy before a real HTTP server that misbehaves on demand: the client under test runs unpatched."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

Answer = Callable[[web.Request, bytes], web.StreamResponse | None]
"""What to answer instead of passing the request on; None passes it on."""


class FaultProxy:
    """Passes everything on, but what its ``faults`` answer: each is asked once, in order."""

    def __init__(self, target: str) -> None:
        self.address = ""
        self.faults: list[Answer] = []
        self.always: Answer | None = None
        self.requests: list[tuple[str, bytes]] = []
        self.authorizations: set[str | None] = set()
        self._target = target

    @property
    def bulks(self) -> list[bytes]:
        return [body for path, body in self.requests if path == "/_bulk"]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request.path, body))
        self.authorizations.add(request.headers.get("authorization"))
        if self.always and (answer := self.always(request, body)):
            return answer
        if request.path == "/_bulk" and self.faults and (answer := self.faults.pop(0)(request, body)):
            return answer
        return await self._pass_on(request, body)

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() in {"content-type", "accept"}}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, self._target + request.path_qs, data=body, headers=headers) as reply,
        ):
            kept = {
                name: value
                for name, value in reply.headers.items()
                if name.lower() in {"content-type", "x-elastic-product"}
            }
            return web.Response(status=reply.status, body=await reply.read(), headers=kept)


def answer(status: int, text: str = "", content_type: str = "text/plain", **headers: str) -> Answer:
    return lambda _request, _body: web.Response(status=status, text=text, content_type=content_type, headers=headers)


@asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    proxy = FaultProxy(target)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", proxy.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        proxy.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield proxy
    finally:
        await runner.cleanup()
