"""A Kafka for faults, killed at will; shared by all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streammon.servers import Server
from tests.faults.stage import Grounds


@pytest.fixture(scope="session")
def grounds(start_server: Callable[..., Server]) -> Iterator[Grounds]:
    with tempfile.TemporaryDirectory(prefix="streammon-faults-", ignore_cleanup_errors=True) as directory:
        grounds = Grounds.open(start_server, Path(directory))
        with grounds.kafka:
            yield grounds
