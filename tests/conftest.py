"""Fixtures shared by all tests: real servers, started by the first test that asks, kept for the whole run."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from streammon import servers

# How long an example takes is the machine's affair. What decides about a change tries the same examples every time, so
# that it speaks of the change; new ones are tried wherever else the tests run.
hypothesis.settings.register_profile("ours", deadline=None, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("ours")


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A real Apache Kafka; `kafka.address` is its bootstrap server. Use topics of your own: see `unique`."""
    with _shared("kafka", request.config) as server:
        yield server


@pytest.fixture(scope="session")
def elasticsearch(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A real Elasticsearch; `elasticsearch.address` is its URL. Use index names of your own: see `unique`."""
    with _shared("elasticsearch", request.config) as server:
        yield server


@pytest.fixture(scope="session")
def alertmanager(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A real Alertmanager; `alertmanager.address` is its URL. Use label values of your own: see `unique`."""
    with _shared("alertmanager", request.config) as server:
        yield server


@pytest.fixture(scope="session")
def start_server(request: pytest.FixtureRequest) -> Callable[..., servers.Server]:
    """`servers.start`, for a server of your own; one that cannot be had skips the test, or fails it if required."""

    def start(name: str, directory: Path, **options: Any) -> servers.Server:
        return _start(name, directory, request.config, **options)

    return start


@pytest.fixture
def unique() -> str:
    """A short name no other test uses, valid in topic, group and index names."""
    return f"t{uuid.uuid4().hex[:8]}"


@pytest.fixture
def servers_directory() -> Iterator[Path]:
    """A directory that a server started by root as `nobody` can reach; pytest's own `tmp_path` is closed."""
    with _directory() as directory:
        yield directory


@pytest.fixture
def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def _shared(name: str, config: pytest.Config) -> Iterator[servers.Server]:
    with _directory() as directory, _start(name, directory, config) as server:
        yield server


def _start(name: str, directory: Path, config: pytest.Config, **options: Any) -> servers.Server:
    """A server that cannot be had skips the test, or fails it if required; one that breaks fails it."""
    capture = config.pluginmanager.getplugin("capturemanager")
    try:
        with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
            return servers.start(name, directory, progress=_say, **options)
    except servers.ServerUnavailableError as error:
        if os.environ.get("STREAMMON_REQUIRE_SERVERS") == "1":
            pytest.fail(f"STREAMMON_REQUIRE_SERVERS=1, but: {error}", pytrace=False)
        pytest.skip(str(error))


def _say(message: str) -> None:
    print(f"\n[servers] {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="streammon-test-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)
