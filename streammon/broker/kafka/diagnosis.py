"""Why Kafka does not let us in, where TLS or SASL do not fit.

aiokafka says of a wrong password what it says of a broker that is down: "unable to bootstrap". So when connecting
has failed, `refusal` takes the same steps one at a time, transport, mechanism, proof, and names the field to change.
It gives a verdict only where the broker has said so itself; all else may be a broker that is just starting.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from aiokafka import errors as kafka_errors
from aiokafka.conn import create_conn
from aiokafka.protocol.admin import SaslAuthenticateRequest, SaslHandShakeRequest

if TYPE_CHECKING:
    from streammon.broker.kafka.cluster import Cluster
    from streammon.config import SaslSettings, TlsSettings

STEP_S = 3.0
NO_MECHANISM = "NONE"
"""Asking for it makes a broker list those that it has."""
NOT_HERE = (kafka_errors.KafkaError, OSError, EOFError, TimeoutError, AssertionError)
OF_ANOTHER_HOST = (62, 64)
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


async def refusal(cluster: Cluster) -> str | None:
    """Why a broker does not let us in: the first that gives a reason, and the reason. None: nobody gives one."""
    for each in cluster.address.split(","):
        host, _, port = each.strip().rpartition(":")
        if reason := await Visit(cluster, host.strip("[]"), int(port)).reason():
            return f"Kafka {each.strip()} {reason}"
    return None


class Visit:
    """One broker, asked step by step."""

    def __init__(self, cluster: Cluster, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._tls, self._sasl = cluster.settings.tls, cluster.settings.sasl
        self._options = cluster.security

    async def reason(self) -> str | None:
        try:
            async with asyncio.timeout(STEP_S):
                return await self._transport() or await self._mechanism() or await self._proof()
        except NOT_HERE:
            return None

    async def _transport(self) -> str | None:
        """A connection without a proof of who we are: any listener answers at least which requests it knows."""
        try:
            async with self._connection():
                return None
        except NOT_HERE as error:
            if (failure := _tls_failure(error)) and (reason := _tls_reason(failure, self._tls)):
                return reason
            return await self._other_transport()

    async def _other_transport(self) -> str | None:
        if self._tls.enabled:
            async with self._connection(security_protocol="PLAINTEXT"):
                return "does not speak TLS at this port, and kafka.tls.enabled = true: check the port of bootstrap"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        _, writer = await asyncio.open_connection(self._host, self._port, ssl=context)
        writer.close()
        return "speaks TLS at this port, and kafka.tls.enabled = false: set it, and kafka.tls.ca_file"

    async def _mechanism(self) -> str | None:
        wanted = self._sasl.mechanism
        async with self._connection() as connection:
            answer = await connection.send(SaslHandShakeRequest(wanted or NO_MECHANISM))
        if answer.error_code == kafka_errors.IllegalSaslStateError.errno:
            return wanted and f"asks for no SASL at this port, and kafka.sasl.mechanism = {wanted!r}: check the port"
        if wanted in answer.enabled_mechanisms:
            return None
        there = ", ".join(answer.enabled_mechanisms)
        return f"takes {there} at this port, and kafka.sasl.mechanism = {wanted!r}: set it to one of these"

    async def _proof(self) -> str | None:
        if self._sasl.mechanism == "OAUTHBEARER":
            return await self._token()
        try:
            async with self._connection(**self._options):
                return None
        except kafka_errors.SaslAuthenticationFailed as error:
            return f"refuses kafka.sasl.username = {self._sasl.username!r} with this password: {error.args[0]}"

    async def _token(self) -> str | None:
        """By hand, because aiokafka does not read what a broker answers to a token."""
        try:
            token = await self._options["sasl_oauth_token_provider"].token()
        except kafka_errors.KafkaError as error:
            return f"asks for a token: {error.__cause__}"
        async with self._connection() as connection:
            await connection.send(SaslHandShakeRequest(self._sasl.mechanism))
            proof = SaslAuthenticateRequest(f"n,,\x01auth=Bearer {token}\x01\x01".encode())
            refused = (await connection.send(proof)).sasl_auth_bytes
        return f"refuses the token of {_source(self._sasl)}: {refused.decode(errors='replace')}" if refused else None

    @asynccontextmanager
    async def _connection(self, **options: Any) -> AsyncIterator[Any]:
        options = {"security_protocol": "SSL" if self._tls.enabled else "PLAINTEXT", **options}
        if "ssl_context" in self._options:
            options["ssl_context"] = self._options["ssl_context"]
        connection = await create_conn(self._host, self._port, request_timeout_ms=int(STEP_S * 1000), **options)
        try:
            yield connection
        finally:
            connection.close()


def _source(sasl: SaslSettings) -> str:
    if sasl.token_file:
        return f"kafka.sasl.token_file = {str(sasl.token_file)!r}"
    return f"kafka.sasl.token_endpoint = {sasl.token_endpoint!r}"


def _tls_reason(failure: ssl.SSLError, tls: TlsSettings) -> str | None:
    if isinstance(failure, ssl.SSLCertVerificationError):
        if failure.verify_code in OF_ANOTHER_HOST:
            remedy = "check bootstrap, or turn kafka.tls.verify_hostname off"
            return f"shows a certificate of another host ({failure.verify_message}): {remedy}"
        trusted = f"kafka.tls.ca_file = {str(tls.ca_file)!r}" if tls.ca_file else "the system's (no kafka.tls.ca_file)"
        return f"shows a certificate that is not trusted by {trusted}: {failure.verify_message}"
    if "ALERT" not in (failure.reason or ""):
        return None
    shown = f"refuses kafka.tls.certificate_file = {str(tls.certificate_file)!r}"
    asked = "asks for a certificate: set kafka.tls.certificate_file"
    return f"{shown if tls.certificate_file else asked} ({(failure.reason or '').lower().replace('_', ' ')})"


def _tls_failure(error: BaseException | None) -> ssl.SSLError | None:
    """What broke a connection, if that was TLS: aiokafka passes it on as the cause of its own error."""
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__
    return error
