"""The settings of Kafka's security in the words of both clients, their secrets, and the tokens."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streammon.broker.kafka.security import (
    RENEW_AT,
    RETRY_S,
    UNKNOWN_LIFE_S,
    Tokens,
    aiokafka_options,
    librdkafka_options,
)
from streammon.config import KafkaSettings, SaslSettings
from streammon.errors import ConfigError
from tests.certificates import Authority

SECRET = "hunter2-hunter2"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def settings(**sections: dict[str, Any]) -> KafkaSettings:
    return KafkaSettings.model_validate(sections)


def user(**secret: Any) -> dict[str, Any]:
    return {"mechanism": "SCRAM-SHA-512", "username": "me", **secret}


def told(made: KafkaSettings) -> tuple[str, str]:
    """What a person is told by either function, who has to change something."""
    messages = []
    for options in (aiokafka_options, librdkafka_options):
        with pytest.raises(ConfigError) as error:
            options(made)
        messages.append(str(error.value))
    return messages[0], messages[1]


# ---------------------------------------------------------------- both clients are told the same


def test_without_settings_nothing_is_secured() -> None:
    assert aiokafka_options(KafkaSettings()) == {"security_protocol": "PLAINTEXT"}
    assert librdkafka_options(KafkaSettings()) == {"security.protocol": "PLAINTEXT"}


def test_a_user_and_a_password(tmp_path: Path) -> None:
    (tmp_path / "password").write_text(f"{SECRET}\n")
    made = settings(sasl=user(password_file=tmp_path / "password"))
    assert aiokafka_options(made) == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": SECRET,
    }
    assert librdkafka_options(made) == {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": "me",
        "sasl.password": SECRET,
    }


def test_tls_with_a_certificate(authority: Authority) -> None:
    certificate = authority.issue("me", password=SECRET)
    tls = {"enabled": True, "ca_file": authority.file, "certificate_file": certificate, "key_password": SECRET}
    made = settings(tls=tls)
    options = aiokafka_options(made)
    context = options.pop("ssl_context")
    assert options == {"security_protocol": "SSL"}
    assert (context.verify_mode, context.check_hostname, context.cert_store_stats()["x509_ca"]) == (
        ssl.CERT_REQUIRED,
        True,
        1,
    )
    assert librdkafka_options(made) == {
        "security.protocol": "SSL",
        "ssl.endpoint.identification.algorithm": "https",
        "ssl.ca.location": str(authority.file),
        "ssl.certificate.location": str(certificate),
        "ssl.key.location": str(certificate),
        "ssl.key.password": SECRET,
    }


def test_the_name_of_the_host_may_be_left_unverified_but_not_the_certificate() -> None:
    made = settings(tls={"enabled": True, "verify_hostname": False})
    context = aiokafka_options(made)["ssl_context"]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert librdkafka_options(made) == {
        "security.protocol": "SSL",
        "ssl.endpoint.identification.algorithm": "none",
    }


# ---------------------------------------------------------------- files that are not as they should be


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"", "is empty"), (b"\xff", "not UTF-8")])
def test_a_password_file_that_cannot_be_read_is_named(content: bytes | None, why: str, tmp_path: Path) -> None:
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    for message in told(settings(sasl=user(password_file=file))):
        assert message.startswith(f"kafka.sasl.password_file = '{file}'")
        assert why in message


def test_tls_files_that_do_not_fit_are_named(authority: Authority, tmp_path: Path) -> None:
    (nonsense := tmp_path / "nonsense.pem").write_text("nonsense")
    mine, encrypted = authority.issue("mine"), authority.issue("encrypted", password=SECRET)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": nonsense}, f"kafka.tls.ca_file = '{nonsense}': no certificate"),
        ({"ca_file": tmp_path / "none"}, "none': No such file or directory"),
        ({"certificate_file": authority.file}, f"kafka.tls.certificate_file = '{authority.file}'"),
        ({"certificate_file": mine, "key_file": encrypted}, f"kafka.tls.key_file = '{encrypted}'"),
        ({"certificate_file": encrypted, "key_password": "hunter3"}, "encrypted.pem"),
        ({"certificate_file": mine, "key_password_file": nonsense.with_name("gone")}, "kafka.tls.key_password_file"),
    ]
    for fields, expected in wrong:
        for message in told(settings(tls={"enabled": True, **fields})):
            assert expected in message
            assert "hunter" not in message


# ---------------------------------------------------------------- tokens


class Clock:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


def token(**claims: float) -> str:
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in ({}, claims)]
    return ".".join([*parts, "signature"])


def from_file(file: Path) -> SaslSettings:
    return SaslSettings(mechanism="OAUTHBEARER", token_file=file)


def from_endpoint(url: str, secret: str = SECRET) -> SaslSettings:
    asking = {"token_endpoint": url, "client_id": "me", "client_secret": secret}
    return SaslSettings.model_validate({"mechanism": "OAUTHBEARER", **asking})


def test_a_token_file_is_read_again_before_the_token_expires(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "token"
    tokens = Tokens(from_file(file), clock)
    file.write_text(first := token(exp=clock.now + 100))
    assert tokens.get() == (first, clock.now + 100)
    file.write_text(second := token(exp=clock.now + 1000))
    clock.now += 100 * RENEW_AT - 1
    assert tokens.get().value == first
    clock.now += 1
    assert tokens.get().value == second


@pytest.mark.parametrize("value", ["opaque", "a.b.c", "a.bnVsbA.c", "a.e30.c"])
def test_a_token_that_does_not_say_when_it_expires_is_read_again_soon(value: str, tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "token"
    file.write_text(value)
    assert Tokens(from_file(file), clock).get() == (value, clock.now + UNKNOWN_LIFE_S)


def test_a_token_serves_to_its_end_while_there_is_no_new_one(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "token"
    tokens = Tokens(from_file(file), clock)
    file.write_text(only := token(exp=clock.now + 100))
    tokens.get()
    file.unlink()
    clock.now += 99
    assert tokens.get().value == only
    clock.now += 1
    with pytest.raises(ConfigError, match="No such file"):
        tokens.get()


def test_after_a_failure_there_is_a_pause_before_the_next_try(tmp_path: Path) -> None:
    clock, file = Clock(), tmp_path / "token"
    tokens = Tokens(from_file(file), clock)
    for _ in range(2):
        with pytest.raises(ConfigError, match="No such file"):
            tokens.get()
        file.write_text("there now")
    clock.now += RETRY_S
    assert tokens.get().value == "there now"


@contextlib.contextmanager
def endpoint(status: int, answer: bytes) -> Iterator[str]:
    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/token"
        server.shutdown()


def test_a_token_from_the_endpoint_lives_as_long_as_it_says() -> None:
    clock = Clock()
    with endpoint(200, b'{"access_token": "t", "expires_in": 300}') as url:
        assert Tokens(from_endpoint(url), clock).get() == ("t", clock.now + 300)


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"access_token": "t", "expires_in": "soon"}'])
def test_an_answer_without_a_token_is_a_configuration_error(answer: bytes) -> None:
    with endpoint(200, answer) as url, pytest.raises(ConfigError, match=f"token_endpoint = '{url}'"):
        Tokens(from_endpoint(url)).get()


def test_an_endpoint_that_refuses_is_a_configuration_error_without_the_secret() -> None:
    refused = pytest.raises(ConfigError, match=r"answers 401.*invalid_client.*client_id")
    with endpoint(401, b'{"error": "invalid_client"}') as url, refused as error:
        Tokens(from_endpoint(url)).get()
    assert SECRET not in str(error.value)


def test_an_endpoint_that_is_away_or_broken_may_come_back(free_port: int) -> None:
    with pytest.raises(OSError, match="refused"):
        Tokens(from_endpoint(f"http://127.0.0.1:{free_port}/token")).get()
    with endpoint(503, b"") as url, pytest.raises(OSError, match="503"):
        Tokens(from_endpoint(url)).get()
