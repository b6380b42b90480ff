"""Sources: probes on their beat."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from streammon_agents.source import Beat, Measured, Probe, until_beat_s


def test_failing_probe_is_left_out_alone_and_logged_once() -> None:
    def broken() -> Any:
        raise PermissionError("no")

    works = Probe("works", lambda: 1, lambda now, before, elapsed: [Measured("host", "h", {"x": now})])
    beat = Beat("h", [Probe("broken", broken, works.measure), works], clock=lambda: 5.0)
    with capture_logs() as logs:
        events = [beat.measure() for _ in range(3)]
    expected = {"time_unix_s": 5.0, "host": "h", "entity": "host", "id": "h", "metrics": {"x": 1}}
    assert events == [[expected]] * 3
    assert [log["name"] for log in logs] == ["broken"]


def test_rate_after_a_failure_is_over_the_whole_gap() -> None:
    readings: list[Any] = [100, OSError("no"), 400]
    moments = iter([10.0, 13.0])

    def read() -> Any:
        reading = readings.pop(0)
        if isinstance(reading, OSError):
            raise reading
        return reading

    def rate(now: int, before: int | None, elapsed_s: float) -> list[Measured]:
        return [] if before is None else [Measured("disk", "sda", {"read_bytes_per_s": (now - before) / elapsed_s})]

    beat = Beat("h", [Probe("disks", read, rate)], monotonic=lambda: next(moments))
    beat.measure()
    beat.measure()
    [event] = beat.measure()
    assert event["metrics"] == {"read_bytes_per_s": 100}


def test_beats_lie_on_a_grid_and_skipped_ones_are_left_out() -> None:
    assert until_beat_s(0.25, 1.0) == 0.75
    assert until_beat_s(3.5, 1.0) == 0.5
    assert until_beat_s(1.0, 1.0) == 1.0
