"""Fetching pages: one GET, whose end comes within its timeout, and whose body within its bound.

The body is unpacked here and piece by piece, so that a few kilobytes that unpack to gigabytes are given up at the
bound. All bodies under way share `BODIES_BYTES`: one that would need more is given up, and tried again at its next
turn. Secrets are read anew at each fetch, so a rotated file needs no restart; they are not sent along when a redirect
leads to another host.
"""

from __future__ import annotations

import asyncio
import ssl
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
from pydantic import SecretStr
from yarl import URL

from streammon import __version__
from streammon.errors import ConfigError
from streammon.secret_files import read_secret
from streammon_agents.scrape.jobs import Job, Protocol, TlsConfig
from streammon_agents.scrape.targets import Target

BODIES_BYTES: Final = 64 * 1024**2
MAX_REDIRECTS: Final = 5
MAX_CONNECTIONS: Final = 500
_CHUNK: Final = 64 * 1024
_ACCEPT: Final[dict[Protocol, str]] = {
    "PrometheusProto": "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
    "OpenMetricsText1.0.0": "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8",
    "OpenMetricsText0.0.1": "application/openmetrics-text;version=0.0.1",
    "PrometheusText1.0.0": "text/plain;version=1.0.0;escaping=allow-utf-8",
    "PrometheusText0.0.4": "text/plain;version=0.0.4",
}


class Down(StrEnum):
    """Why a page was not had. The values are labels: add, never rename."""

    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    TLS = "tls"
    CREDENTIALS = "no_credentials"
    STATUS = "http_status"
    REDIRECT = "too_many_redirects"
    NOT_HTTP = "not_http"
    TOO_LARGE = "too_large"
    BUSY = "too_much_at_once"
    BAD_ENCODING = "bad_encoding"
    CONTENT_TYPE = "content_type"


class FetchError(Exception):
    """A page that was not had. ``fault`` is for machines, the text for people; it holds no secret."""

    def __init__(self, fault: Down, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault


class Format(StrEnum):
    TEXT = "text"
    OPENMETRICS = "openmetrics"
    PROTOBUF = "protobuf"


class Fetched(NamedTuple):
    body: bytes
    format: Format


class Room:
    """What the bodies under way may hold together."""

    def __init__(self, bytes_: int = BODIES_BYTES) -> None:
        self._left = bytes_

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A part that grows, and is given back as a whole."""
        share = Share(self)
        try:
            yield share
        finally:
            self._left += share.taken

    def take(self, bytes_: int) -> None:
        if bytes_ > self._left:
            raise FetchError(Down.BUSY, "other pages take up all the room; it is tried again")
        self._left -= bytes_


class Share:
    def __init__(self, room: Room) -> None:
        self._room, self.taken = room, 0

    def grow(self, bytes_: int) -> None:
        self._room.take(bytes_)
        self.taken += bytes_


def open_session() -> aiohttp.ClientSession:
    """For all targets; of a cookie nobody keeps anything."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"User-Agent": f"streammon/{__version__}"},
    )


class Fetcher:
    """Fetches the pages of one job."""

    def __init__(self, job: Job, session: aiohttp.ClientSession) -> None:
        self._job, self._session = job, session
        self._accept = accept_header(job)
        self._context = TlsContext(job.tls_config)

    async def fetch(self, target: Target, share: Share) -> Fetched:
        """The page as it is now; ``share`` holds room for it. Raises FetchError."""
        try:
            async with asyncio.timeout(target.timeout_s), self._response(target) as response:
                return await self._page(response, share)
        except TimeoutError:
            raise FetchError(Down.TIMEOUT, f"not all had come within {target.timeout_s:g} s") from None
        except aiohttp.TooManyRedirects:
            raise FetchError(Down.REDIRECT, f"more than {MAX_REDIRECTS} redirects") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise _told(error) from None

    def _response(self, target: Target) -> aiohttp.client._RequestContextManager:
        headers = {
            "Accept": self._accept,
            "Accept-Encoding": "gzip" if self._job.enable_compression else "identity",
            "X-Prometheus-Scrape-Timeout-Seconds": f"{target.timeout_s:g}",
            **authorization(self._job),
        }
        return self._session.get(
            URL(target.url),
            headers=headers,
            ssl=self._context.current() if target.url.startswith("https:") else True,
            server_hostname=self._job.tls_config.server_name,
            allow_redirects=self._job.follow_redirects,
            max_redirects=MAX_REDIRECTS,
        )

    async def _page(self, response: aiohttp.ClientResponse, share: Share) -> Fetched:
        if response.status != 200:
            raise FetchError(Down.STATUS, f"it answered {response.status}")
        format_ = _format(response, self._job.fallback_scrape_protocol)
        most, parts, size = self._job.max_body_bytes, list[bytes](), 0
        async for part in _unpacked(response, most + 1):
            share.grow(len(part))
            parts.append(part)
            size += len(part)
            if size > most:
                raise FetchError(Down.TOO_LARGE, f"the page has more than {most} bytes")
        return Fetched(b"".join(parts), format_)


async def _unpacked(response: aiohttp.ClientResponse, most: int) -> AsyncIterator[bytes]:
    """The body, none of its pieces larger than ``most``."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        async for chunk in response.content.iter_chunked(_CHUNK):
            yield chunk
        return
    if encoding not in ("gzip", "x-gzip"):
        raise FetchError(Down.BAD_ENCODING, f"its Content-Encoding is {encoding[:40]!r}, which was not asked for")
    unpacking = zlib.decompressobj(wbits=31)
    try:
        async for chunk in response.content.iter_chunked(_CHUNK):
            yield unpacking.decompress(chunk, most)
            if unpacking.unconsumed_tail:
                raise FetchError(Down.TOO_LARGE, f"the page unpacks to more than {most - 1} bytes")
        yield unpacking.flush()
    except zlib.error as error:
        raise FetchError(Down.BAD_ENCODING, f"it is no gzip: {error}") from None
    if not unpacking.eof or unpacking.unused_data:
        raise FetchError(Down.BAD_ENCODING, "the gzip is cut off, or goes on behind its end")


def _format(response: aiohttp.ClientResponse, fallback: Protocol | None) -> Format:
    """What the page is written in. Who does not say is taken for plain text, as most that do not say are."""
    given = response.headers.get("Content-Type", "")
    kind, _, parameters = given.lower().partition(";")
    kind, parameters = kind.strip(), parameters.replace(" ", "")
    if kind == "application/openmetrics-text":
        return Format.OPENMETRICS
    if kind == "application/vnd.google.protobuf" and "encoding=delimited" in parameters:
        return Format.PROTOBUF
    if kind in ("", "text/plain"):
        return Format.TEXT
    if fallback is None:
        raise FetchError(Down.CONTENT_TYPE, f"its Content-Type is {given[:80]!r}; fallback_scrape_protocol may help")
    if fallback == "PrometheusProto":
        return Format.PROTOBUF
    return Format.OPENMETRICS if fallback.startswith("OpenMetrics") else Format.TEXT


def accept_header(job: Job) -> str:
    """What we read, as Prometheus says it: the first is wanted most."""
    weights = range(len(_ACCEPT) + 1, 0, -1)
    formats = [_ACCEPT[protocol] for protocol in job.protocols]
    return ",".join(f"{each};q=0.{weight}" for each, weight in zip([*formats, "*/*"], weights, strict=False))


def authorization(job: Job) -> dict[str, str]:
    """The header by which we prove who we are, as the files say now. Raises FetchError."""
    try:
        if (basic := job.basic_auth) is not None:
            user = basic.username or _secret("username", None, basic.username_file)
            password = _secret("password", basic.password, basic.password_file)
            return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
        if (given := job.authorization) is not None:
            return {
                "Authorization": f"{given.type} {_secret('credentials', given.credentials, given.credentials_file)}"
            }
        token = _secret("bearer_token", job.bearer_token, job.bearer_token_file)
    except ConfigError as error:
        raise FetchError(Down.CREDENTIALS, str(error)) from None
    return {"Authorization": f"Bearer {token}"} if token else {}


def _secret(field: str, given: SecretStr | None, file: str | None) -> str:
    if given is not None:
        return given.get_secret_value()
    return read_secret(f"{field}_file", Path(file)) if file else ""


class TlsContext:
    """Of a TLS configuration; made anew when one of its files is another one."""

    def __init__(self, config: TlsConfig) -> None:
        self._config = config
        self._of: list[tuple[int, int] | None] = []
        self._context: ssl.SSLContext | None = None

    def current(self) -> ssl.SSLContext:
        """Raises FetchError where a file cannot be read."""
        try:
            files = [_identity(file) for file in (self._config.ca_file, self._config.cert_file, self._config.key_file)]
            if self._context is None or files != self._of:
                self._context, self._of = self._made(), files
        except (OSError, ssl.SSLError) as error:
            raise FetchError(Down.TLS, f"a file of tls_config cannot be used: {error}") from None
        return self._context

    def _made(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self._config.ca_file)
        if self._config.cert_file is not None:
            context.load_cert_chain(self._config.cert_file, self._config.key_file)
        if self._config.insecure_skip_verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context


def _identity(file: str | None) -> tuple[int, int] | None:
    if file is None:
        return None
    status = Path(file).stat()
    return status.st_mtime_ns, status.st_ino


def _told(error: Exception) -> FetchError:
    """What went wrong, without the URL."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientSSLError | ssl.SSLError):
        return FetchError(Down.TLS, f"TLS failed: {getattr(error, 'certificate_error', error)}")
    if isinstance(error, aiohttp.ClientConnectorError):
        return FetchError(Down.UNREACHABLE, error.os_error.strerror or type(error.os_error).__name__)
    if isinstance(error, OSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return FetchError(Down.UNREACHABLE, "it closed the connection before all had come")
    return FetchError(Down.NOT_HTTP, f"it did not answer as HTTP: {type(error).__name__}")
