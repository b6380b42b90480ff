"""Typed topics for Faust: what their records become, and how Faust is told who we are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from faust.auth import OAuthCredentials, SASLCredentials

from streammon.commands import Unsilence
from streammon.config import KafkaSettings, Settings
from streammon.errors import ConfigError, Reason, Rejected
from streammon.events import Inference
from streammon.wire import Density
from streammon_processors.faust_app import create_app, credentials, decoder, topic
from tests.logs import NAN, inference, packed
from tests.sinks.builders import window


@pytest.mark.parametrize("density", Density)
def test_a_record_of_an_input_topic_is_its_events_in_any_density(density: Density) -> None:
    events = [inference(0.0), inference(1.0, 0.5)][: 1 if density is Density.OBJECT else 2]
    found = decoder("inference")(packed(*events, density=density))
    assert [type(event) for event in found] == [Inference] * len(events)
    assert [event.time_unix_s for event in found] == [event["time_unix_s"] for event in events]


def test_an_event_that_is_refused_for_its_values_is_left_out() -> None:
    value = packed(inference(0.0, NAN), inference(1.0), density=Density.COLUMNS)
    assert [event.duration_s for event in decoder("inference")(value)] == [0.1]


def test_results_and_commands_are_their_structs() -> None:
    assert decoder("windows")(msgspec.json.encode(window())) == window()
    command = Unsilence(id="1", time_unix_s=1.0, by="ann", silence_id="s")
    assert decoder("commands")(msgspec.json.encode(command)) == command


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", Reason.INVALID_JSON),
        (b'{"type":"window"}', Reason.INVALID_EVENT),
        (msgspec.json.encode(msgspec.structs.replace(window(), schema=2)), Reason.UNKNOWN_SCHEMA),
    ],
)
def test_what_is_none_says_why(value: bytes, reason: Reason) -> None:
    with pytest.raises(Rejected) as caught:
        decoder("windows")(value)
    assert caught.value.reason is reason


def test_a_topic_that_we_do_not_have_is_named_with_those_we_have() -> None:
    app = create_app("x", Settings(bootstrap="k:9092"))
    with pytest.raises(ConfigError, match=r"'window'.*windows"):
        topic(app, "window")


def test_the_settings_that_were_measured_are_those_of_the_app() -> None:
    app = create_app("x", Settings(bootstrap="k:9092,l:9092", topics={"prefix": "p."}))
    conf: Any = app.conf
    assert (conf.id, [str(url) for url in conf.broker]) == ("p.x", ["kafka://k:9092", "kafka://l:9092"])
    assert (conf.broker_session_timeout, conf.broker_heartbeat_interval, conf.broker_commit_interval) == (6, 1, 1)
    assert (conf.table_standby_replicas, conf.web_enabled, conf.producer_linger) == (0, False, 0.02)


def test_faust_needs_kafka() -> None:
    with pytest.raises(ConfigError, match="--bootstrap"):
        create_app("x", Settings())


def test_users_and_tls_are_told_to_faust() -> None:
    sasl = {"mechanism": "SCRAM-SHA-512", "username": "u", "password": "p"}
    found = credentials(KafkaSettings.model_validate({"sasl": sasl, "tls": {"enabled": True}}))
    assert isinstance(found, SASLCredentials)
    assert (found.mechanism.value, found.username, found.password) == ("SCRAM-SHA-512", "u", "p")
    assert found.ssl_context is not None
    assert found.protocol.value == "SASL_SSL"


def test_tokens_are_told_to_faust_and_nothing_where_nothing_is_asked_for(tmp_path: Path) -> None:
    (token := tmp_path / "token").write_text("t")
    sasl = {"mechanism": "OAUTHBEARER", "token_file": token}
    assert isinstance(credentials(KafkaSettings.model_validate({"sasl": sasl})), OAuthCredentials)
    assert credentials(KafkaSettings()) is None
