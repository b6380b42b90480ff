"""Who we are to Kafka, and how we know that it is Kafka: `KafkaSettings` in the words of both client libraries.

Secrets are read when the options are made, so a password or certificate that was renewed counts from the next
start of the process; a token is fetched or read again before it expires. Whoever holds a connection open with
an expired token keeps it, unless the broker sets ``connections.max.reauth.ms``: it then closes the connections
of aiokafka, which opens them again with the new token, and librdkafka proves itself anew within the connection.

Raises `ConfigError`, naming the field and the file, for files that cannot be read or do not fit together.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaConnectionError

from streammon.errors import ConfigError
from streammon.secret_files import read_secret, secret

if TYPE_CHECKING:
    from streammon.config import KafkaSettings, SaslSettings, TlsSettings

RENEW_AT = 0.8
"""A token is renewed when this much of its life is over."""
RETRY_S = 2.0
"""How soon after a failure it is tried again, however many connections wait for a token."""
UNKNOWN_LIFE_S = 60.0
"""How soon a token file is read again whose token does not say when it expires."""
TOKEN_REQUEST_S = 5.0
LARGEST_ANSWER_BYTES = 1024 * 1024


def aiokafka_options(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments of every aiokafka client: producer, consumer, admin."""
    tls, sasl = settings.tls, settings.sasl
    options: dict[str, Any] = {"security_protocol": _protocol(settings)}
    if tls.enabled:
        options["ssl_context"] = _ssl_context(tls)
    if sasl.mechanism == "OAUTHBEARER":
        options |= {"sasl_mechanism": sasl.mechanism, "sasl_oauth_token_provider": _TokenProvider(Tokens(sasl))}
    elif sasl.mechanism:
        user = {"sasl_plain_username": sasl.username, "sasl_plain_password": _password(sasl)}
        options |= {"sasl_mechanism": sasl.mechanism, **user}
    return options


def librdkafka_options(settings: KafkaSettings) -> dict[str, Any]:
    """Configuration of every confluent-kafka client. Its ``oauth_cb`` is called within poll and consume."""
    tls, sasl = settings.tls, settings.sasl
    options: dict[str, Any] = {"security.protocol": _protocol(settings)}
    if tls.enabled:
        options |= _librdkafka_tls(tls)
    if sasl.mechanism == "OAUTHBEARER":
        tokens = Tokens(sasl)
        options |= {"sasl.mechanisms": sasl.mechanism, "oauth_cb": lambda _: tokens.get()}
    elif sasl.mechanism:
        user = {"sasl.username": sasl.username, "sasl.password": _password(sasl)}
        options |= {"sasl.mechanisms": sasl.mechanism, **user}
    return options


def _protocol(settings: KafkaSettings) -> str:
    transport = "SSL" if settings.tls.enabled else "PLAINTEXT"
    return f"SASL_{transport}" if settings.sasl.mechanism else transport


# ---------------------------------------------------------------- TLS


def _ssl_context(tls: TlsSettings) -> ssl.SSLContext:
    """As librdkafka is told, but made by Python; also what finds out whether the files fit together."""
    context = _trusting("kafka.tls.ca_file", tls.ca_file)
    context.check_hostname = tls.verify_hostname
    if tls.certificate_file is not None:
        # Without a password of some kind OpenSSL would ask for it on the terminal.
        password = secret("kafka.tls.key_password", tls.key_password, tls.key_password_file) or ""
        try:
            context.load_cert_chain(tls.certificate_file, tls.key_file, password)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise ConfigError(
                f"{_certificate(tls)}: {_reason(error)}; expected PEM, and its key and password"
            ) from None
    return context


def _certificate(tls: TlsSettings) -> str:
    key = f", kafka.tls.key_file = {str(tls.key_file)!r}" if tls.key_file else ""
    return f"kafka.tls.certificate_file = {str(tls.certificate_file)!r}{key}"


def _trusting(field: str, ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"{field} = {str(ca_file)!r}: {_reason(error)}; expected certificates in PEM") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error)


def _librdkafka_tls(tls: TlsSettings) -> dict[str, Any]:
    _ssl_context(tls)  # librdkafka's own words for a wrong file are few
    options = {
        "ssl.endpoint.identification.algorithm": "https" if tls.verify_hostname else "none",
        "ssl.ca.location": tls.ca_file,
        "ssl.certificate.location": tls.certificate_file,
        "ssl.key.location": tls.key_file or tls.certificate_file,
        "ssl.key.password": secret("kafka.tls.key_password", tls.key_password, tls.key_password_file),
    }
    return {name: str(value) for name, value in options.items() if value is not None}


def _password(sasl: SaslSettings) -> str | None:
    return secret("kafka.sasl.password", sasl.password, sasl.password_file)


# ---------------------------------------------------------------- tokens


class Token(NamedTuple):
    """A bearer token and when it expires, in Unix seconds."""

    value: str
    expires_unix_s: float


class Tokens:
    """The token that is good now, for all connections and threads of a client; renewed as it grows old."""

    def __init__(self, sasl: SaslSettings, clock: Callable[[], float] = time.time) -> None:
        self._sasl = sasl
        self._clock = clock
        self._lock = threading.Lock()
        self._token = Token("", 0.0)
        self._failure: Exception | None = None
        self._renew_unix_s = 0.0

    def get(self) -> Token:
        """May take TOKEN_REQUEST_S. Raises `ConfigError` if the file or the endpoint refuses, OSError if it is away;
        not as long as the last token is good."""
        with self._lock:
            now = self._clock()
            if now >= self._renew_unix_s:
                self._renew(now)
            if self._failure is not None and now >= self._token.expires_unix_s:
                raise self._failure.with_traceback(None)
            return self._token

    def _renew(self, now: float) -> None:
        try:
            self._token = _from_file(self._sasl, now) if self._sasl.token_file else _from_endpoint(self._sasl, now)
        except (ConfigError, OSError) as error:
            self._failure, self._renew_unix_s = error, now + RETRY_S
        else:
            life_s = max(self._token.expires_unix_s - now, RETRY_S)
            self._failure, self._renew_unix_s = None, now + RENEW_AT * life_s


class _TokenProvider(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka is untyped
    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    async def token(self) -> str:
        try:
            return (await asyncio.to_thread(self._tokens.get)).value
        except ConfigError as error:  # aiokafka goes on to the next broker only from errors it knows
            raise KafkaConnectionError(str(error)) from error


def _from_file(sasl: SaslSettings, now: float) -> Token:
    assert sasl.token_file is not None
    value = read_secret("kafka.sasl.token_file", sasl.token_file)
    return Token(value, _expiry(value) or now + UNKNOWN_LIFE_S)


def _expiry(token: str) -> float | None:
    """The claim ``exp`` of a JSON web token; whether it is true, the broker decides."""
    try:
        payload = token.split(".")[1]
        return float(json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["exp"])
    except (LookupError, TypeError, ValueError):
        return None


def _from_endpoint(sasl: SaslSettings, now: float) -> Token:
    """Client credentials, RFC 6749 section 4.4."""
    assert sasl.token_endpoint is not None  # and its scheme is http or https
    where = f"kafka.sasl.token_endpoint = {sasl.token_endpoint!r}"
    context = _trusting("kafka.sasl.token_ca_file", sasl.token_ca_file)
    try:
        with urllib.request.urlopen(_request(sasl), timeout=TOKEN_REQUEST_S, context=context) as reply:  # noqa: S310 - http(s)
            answer = json.loads(reply.read(LARGEST_ANSWER_BYTES))
        return Token(str(answer["access_token"]), now + float(answer.get("expires_in", UNKNOWN_LIFE_S)))
    except urllib.error.HTTPError as error:
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise  # an OSError: it may recover
        said = error.read(200).decode(errors="replace")
        raise ConfigError(f"{where}: answers {error.code} {said}; check kafka.sasl.client_id and its secret") from None
    except http.client.HTTPException as error:
        raise OSError(f"{where}: {error!r}") from None
    except (LookupError, TypeError, ValueError):
        raise ConfigError(f"{where}: its answer holds no access_token") from None


def _request(sasl: SaslSettings) -> urllib.request.Request:
    assert sasl.token_endpoint is not None
    client_secret = secret("kafka.sasl.client_secret", sasl.client_secret, sasl.client_secret_file)
    credentials = ":".join(urllib.parse.quote(part or "", safe="") for part in (sasl.client_id, client_secret))
    form = {"grant_type": "client_credentials"} | ({"scope": sasl.scope} if sasl.scope else {})
    return urllib.request.Request(  # noqa: S310 - http(s)
        sasl.token_endpoint,
        data=urllib.parse.urlencode(form).encode(),
        headers={"Authorization": f"Basic {base64.b64encode(credentials.encode()).decode()}"},
    )
