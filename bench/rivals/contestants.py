"""Who runs: each a program as one of its users would write it, in `programs/`, and what it promises."""

from __future__ import annotations

import compileall
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import yaml

import streammon
import streammon_processors
from bench.rivals import environment
from bench.rivals.results import Row, read_row, read_streammon
from bench.rivals.workload import LATENESS_S, WINDOW_S
from streammon.servers import KAFKA_VERSION
from streammon.sketch import SCALE

PREFIX = "rivals."
SOURCE, TARGET = f"{PREFIX}inference", f"{PREFIX}results"


FLINK = (
    "org.apache.flink:flink-streaming-java:2.2.1",
    "org.apache.flink:flink-clients:2.2.1",
    "org.apache.flink:flink-connector-base:2.2.1",
    "org.apache.flink:flink-connector-kafka:5.0.0-2.2",
)
DDSKETCH = 0.01
"""The relative error that Datadog's sketches are made for."""


@dataclass(frozen=True)
class Site:
    """Where one contestant runs. The directory is its own, and survives its being killed."""

    bootstrap: str
    directory: Path


@dataclass(frozen=True)
class Contestant:
    """How to start one, and how to read what it publishes."""

    name: str
    guarantee: str
    command: Callable[[Site], Sequence[str]]
    quantile_error: float = 0.0
    """Of its sketch, relative; 0: it keeps all values."""
    results: str = TARGET
    """Its topic of results."""
    read: Callable[[bytes], Row] = read_row
    interpreted: bool = False
    """Too slow for the long log, and no just-in-time compiler that a longer run would show."""


def _python(program: str, *options: str) -> Callable[[Site], Sequence[str]]:
    def command(site: Site) -> Sequence[str]:
        module = f"bench.rivals.programs.{program}"
        own = [option.format(state=site.directory / "state") for option in options]
        return [environment.python(), "-m", module, site.bootstrap, SOURCE, TARGET, *own]

    return command


def _kafka_streams(guarantee: str) -> Callable[[Site], Sequence[str]]:
    def command(site: Site) -> Sequence[str]:
        java = environment.java("KafkaStreamsWindows", f"org.apache.kafka:kafka-streams:{KAFKA_VERSION}")
        return [*java, site.bootstrap, SOURCE, TARGET, str(site.directory / "state"), guarantee]

    return command


def _flink(guarantee: str) -> Callable[[Site], Sequence[str]]:
    def command(site: Site) -> Sequence[str]:
        java = environment.java("FlinkWindows", *FLINK)
        return [*java, site.bootstrap, SOURCE, TARGET, str(site.directory / "state"), guarantee]

    return command


def _compile(*packages: ModuleType) -> None:
    """To bytecode, as an installer does."""
    for package in packages:
        compileall.compile_dir(Path(package.__file__ or "").parent, quiet=1)


def _streammon(site: Site) -> Sequence[str]:
    _compile(streammon, streammon_processors)
    config = site.directory / "streammon.yaml"
    windows = {
        "size_s": WINDOW_S,
        "lateness_s": LATENESS_S,
        "inference_by": ["model", "endpoint"],
        "inference_distributions": ["duration_s"],
    }
    config.write_text(yaml.safe_dump({"bootstrap": site.bootstrap, "topics": {"prefix": PREFIX}, "windows": windows}))
    program = "from streammon.cli import main; main()"
    return [sys.executable, "-c", program, "process", "windows", "--config", str(config)]


ALL = (
    Contestant("hand-aiokafka", "none", _python("hand_aiokafka")),
    Contestant("hand-confluent", "none", _python("hand_confluent")),
    Contestant(
        "streammon",
        "exactly once",
        _streammon,
        quantile_error=2 ** (2.0**-SCALE) - 1,
        results=f"{PREFIX}windows",
        read=read_streammon,
    ),
    Contestant("bytewax", "none", _python("bytewax_windows"), interpreted=True),
    Contestant("quix", "at least once", _python("quix_windows", "{state}", "at-least-once"), interpreted=True),
    Contestant("quix-eos", "exactly once", _python("quix_windows", "{state}", "exactly-once"), interpreted=True),
    Contestant("faust", "at least once", _python("faust_windows", "{state}"), 0.01, interpreted=True),
    Contestant("kafka-streams", "at least once", _kafka_streams("at_least_once"), DDSKETCH),
    Contestant("kafka-streams-eos", "exactly once", _kafka_streams("exactly_once_v2"), DDSKETCH),
    Contestant("flink", "none", _flink("none"), DDSKETCH),
    Contestant("flink-eos", "exactly once", _flink("exactly-once"), DDSKETCH),
)
