"""What a processor says about itself, and how it is found."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint

import pytest

from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.topics import DAY_S, PROCESSORS, TopicSpec
from streammon_processors import builtin, registry
from streammon_processors.registry import GROUP
from streammon_processors.task import Output, Processor, time_field
from streammon_processors.windows import WindowTask


def task(partition: int) -> WindowTask:
    return WindowTask(partition, Settings().windows)


def not_a_processor(settings: Settings) -> object:
    return "a processor"


def offer(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Let these entry points be installed, and no others."""
    found = [EntryPoint(name, value, GROUP) for name, value in points.items()]

    def entry_points(group: str) -> Sequence[EntryPoint]:
        return found if group == GROUP else []

    monkeypatch.setattr(registry, "entry_points", entry_points)


@pytest.mark.parametrize(
    ("value", "plain", "having", "lacking"),
    [
        (b'{"at": 2, "size": 1}', 2.0, 2.0, None),
        (b'{"at": 2.5}', 2.5, None, 2.5),
        (b'{"at": 2, "size": null}', 2.0, None, 2.0),
        (b'{"at": "two", "size": 1}', None, None, None),
        (b'{"size": 1}', None, None, None),
        (b"[2]", None, None, None),
        (b"{", None, None, None),
        (b"", None, None, None),
    ],
)
def test_a_field_tells_the_time_and_another_whose_a_record_is(
    value: bytes, plain: float | None, having: float | None, lacking: float | None
) -> None:
    assert time_field("at")(value) == plain
    assert time_field("at", having="size")(value) == having
    assert time_field("at", lacking="size")(value) == lacking


def test_records_of_windows_and_of_rollups_are_told_apart() -> None:
    base, rollup = b'{"start_unix_s": 2.0}', b'{"start_unix_s": 4.0, "of_s": 2.0}'
    windows, rollups = builtin.windows_processor(Settings()), builtin.rollups_processor(Settings())
    assert [windows.time_of("windows", value) for value in (base, rollup)] == [2.0, None]
    assert [rollups.time_of("windows", value) for value in (base, rollup)] == [None, 4.0]
    assert windows.time_of("alerts", base) is None
    assert windows.time_of("windows", None) is None


def test_a_processor_needs_its_outputs_and_its_state() -> None:
    at = time_field("at")
    outputs = (Output("hours", at, retention_s=7 * DAY_S), Output("states", at, compact=True))
    hours, states, memory = Processor("hourly", ("logs",), task, outputs).topics(4)
    assert hours == TopicSpec("hours", 4, 7 * DAY_S, compact=False, log_append_time=True)
    assert states == TopicSpec("states", 4, None, compact=True, log_append_time=True)
    assert (memory.name, memory.partitions, memory.compact) == ("state.hourly", 4, True)


def test_ours_are_found_as_others_are() -> None:
    made = [registry.processor(name, Settings()) for name in PROCESSORS]
    assert [each.name for each in made] == [*PROCESSORS]
    assert made[0].inputs == builtin.windows_processor(Settings()).inputs


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("tests.nowhere:processor", r"'mine' \(tests.nowhere:processor\) cannot be imported"),
        ("tests.processors.test_processor:nothing", "cannot be imported"),
        ("tests.processors.test_processor:not_a_processor", r"made 'a processor', expected Processor\('mine'"),
        ("streammon_processors.builtin:windows_processor", r"expected Processor\('mine'"),
    ],
)
def test_an_entry_point_that_offers_no_processor_of_its_name_is_refused(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    offer(monkeypatch, mine=value)
    with pytest.raises(ConfigError, match=message):
        registry.processor("mine", Settings())


def test_an_unknown_name_is_refused_with_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, one="a:b", two="a:b")
    with pytest.raises(ConfigError, match="no processor 'three'; installed: one, two"):
        registry.processor("three", Settings())
    offer(monkeypatch)
    with pytest.raises(ConfigError, match="installed: none"):
        registry.processor("three", Settings())
