"""The console notifier: what an on-call engineer sees, and what they are spared."""

from __future__ import annotations

import io
from datetime import UTC
from typing import Any, NamedTuple

import msgspec
import pytest

from streammon.broker import Headers, TopicPartition
from streammon.errors import Reason, Retryable
from streammon.results import Alert, Cause, Evidence
from streammon_sinks.delivery import Item
from streammon_sinks.notify.console import ConsoleChannel, ConsoleNotifier
from tests.sinks.notify.builders import notification

NOW = 1_738_332_202.0  # 2025-01-31 14:03:22 UTC
HOUR_S = 3600.0


class Stored(NamedTuple):
    """A record as a broker returns it."""

    value: bytes | None
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    key: bytes | None = None
    headers: Headers = ()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def item(value: bytes | None, topic: str = "alerts") -> Item:
    return Item(TopicPartition(topic, 0), Stored(value))


def alert(**fields: Any) -> Alert:
    defaults: dict[str, Any] = {
        "id": "a1",
        "rule": "slow",
        "rule_version": "1",
        "state": "firing",
        "severity": "critical",
        "labels": {"service": "shop", "model": "ranker"},
        "value": 0.5,
        "condition": "p99 0.5 s > 0.3 s for 10 s",
        "summary": "shop/ranker is slow",
        "started_unix_s": NOW - 10,
        "updated_unix_s": NOW,
        "transition": 1,
        "contact": "#oncall",
        "runbook_url": "https://runbooks.example.com/slow",
    }
    return Alert(**(defaults | fields))


def resolved(ended: float = NOW, **fields: Any) -> Alert:
    return alert(**{"state": "resolved", "transition": 2, "updated_unix_s": ended, "ended_unix_s": ended} | fields)


def notifier(stream: io.TextIOBase, **options: Any) -> ConsoleNotifier:
    return ConsoleNotifier(stream, clock=lambda: NOW, zone=UTC, **options)  # type: ignore[arg-type]  # a text stream


async def printed(*alerts: Alert, **options: Any) -> list[str]:
    stream = io.StringIO()
    await write(notifier(stream, **options), *alerts)
    return stream.getvalue().splitlines()


async def write(subject: ConsoleNotifier, *alerts: Alert) -> None:
    assert await subject.write([item(msgspec.json.encode(each)) for each in alerts]) == []


async def test_firing_alert_is_one_line_with_all_that_is_needed() -> None:
    assert await printed(alert()) == [
        "2025-01-31 14:03:22 CRITICAL firing    shop/ranker is slow · p99 0.5 s > 0.3 s for 10 s · "
        "service=shop model=ranker · #oncall · https://runbooks.example.com/slow"
    ]


CAUSES = {"causes": [{"what": "deploy of shop 3", "why": "20 s before the onset"}, {"what": "traffic"}]}


def evidence(alert_id: str = "a1", what: str = "deploy of shop 3") -> Evidence:
    cause = Cause(what=what, why="20 s before the onset", kind="deploy", score=0.9, at_unix_s=NOW, lag_s=20.0)
    causes = [cause] if what else []
    return Evidence(alert_id=alert_id, transition=1, onset_unix_s=NOW, made_unix_s=NOW, causes=causes)


async def test_likely_causes_stand_below_an_alert_that_fires() -> None:
    (_, *causes) = await printed(alert(evidence=CAUSES))
    assert causes == [
        "                             perhaps   deploy of shop 3: 20 s before the onset",
        "                             perhaps   traffic",
    ]
    assert len(await printed(resolved(evidence=CAUSES))) == 1


async def test_causes_that_come_later_are_printed_once_and_only_of_what_fires() -> None:
    stream = io.StringIO()
    subject = notifier(stream)
    await write(subject, alert(), alert(id="a2"), resolved(id="a2"))
    for _ in range(2):
        given = [evidence(), evidence("a2"), evidence("a3"), evidence("a1", "")]
        assert await subject.write([item(msgspec.json.encode(each), "evidence") for each in given]) == []
    assert stream.getvalue().splitlines()[3:] == [
        "2025-01-31 14:03:22 CRITICAL why       shop/ranker is slow · service=shop model=ranker",
        "                             perhaps   deploy of shop 3: 20 s before the onset",
    ]


async def test_a_channel_prints_causes_that_come_later_once() -> None:
    stream = io.StringIO()
    channel = ConsoleChannel(notifier(stream))
    explained = notification(alert(evidence=CAUSES), alert(id="unknown", evidence=CAUSES), cause="explained")
    await channel.deliver(notification(alert()), {})
    for _ in range(2):
        await channel.amend(explained, {})
    assert [each[29:39].strip() for each in stream.getvalue().splitlines()] == ["firing", "why", "perhaps", "perhaps"]


async def test_resolved_alert_names_nobody_to_call() -> None:
    assert await printed(resolved()) == [
        "2025-01-31 14:03:22 CRITICAL resolved  shop/ranker is slow · over after 10 s · p99 0.5 s > 0.3 s for 10 s · "
        "service=shop model=ranker"
    ]


async def test_pending_is_not_printed() -> None:
    assert await printed(alert(state="pending")) == []


async def test_record_delivered_again_is_printed_once_in_one_write_or_in_two() -> None:
    stream = io.StringIO()
    subject = notifier(stream)
    await write(subject, alert(), alert())
    await write(subject, alert(), resolved())
    assert [line.split()[3] for line in stream.getvalue().splitlines()] == ["firing", "resolved"]


async def test_memory_of_what_was_printed_is_bounded() -> None:
    stream = io.StringIO()
    subject = notifier(stream, remember=2)
    await write(subject, *(alert(id=name) for name in "abc"))
    await write(subject, alert(id="c"))
    assert len(stream.getvalue().splitlines()) == 3
    await write(subject, alert(id="a"))
    assert len(stream.getvalue().splitlines()) == 4


async def test_a_breach_that_ended_before_it_could_fire_is_not_printed() -> None:
    assert await printed(alert(state="pending", transition=0), resolved(transition=1)) == []
    assert await printed(resolved(ended=NOW - 72 * HOUR_S, transition=1)) == []


async def test_a_group_that_has_changed_is_told_by_what_is_new() -> None:
    stream = io.StringIO()
    channel = ConsoleChannel(notifier(stream))
    one, two, over = alert(id="a1"), alert(id="a2"), resolved(id="a1")
    for told in (
        notification(one),
        notification(two, one, cause="changed"),
        notification(two, over, cause="changed"),
        notification(two, cause="repeat"),
    ):
        await channel.deliver(told, {})
    assert [line[20:38] for line in stream.getvalue().splitlines()] == [
        "CRITICAL firing   ",
        "CRITICAL firing   ",
        "CRITICAL resolved ",
        "CRITICAL firing   ",
    ]


async def test_old_alert_that_is_still_firing_is_printed_with_its_age() -> None:
    (line,) = await printed(alert(updated_unix_s=NOW - 72 * HOUR_S))
    assert line.startswith("2025-01-28 14:03:22 (3 d ago) CRITICAL firing ")


async def test_alerts_long_over_are_counted_not_printed() -> None:
    long_ago = NOW - 5 * HOUR_S
    lines = await printed(
        alert(updated_unix_s=long_ago - 60), resolved(long_ago), resolved(long_ago, id="a2"), alert(id="a3")
    )
    assert lines[0] == "2 alerts that ended more than 1 h ago are not shown"
    assert [" firing " in line for line in lines[1:]] == [True]


async def test_late_end_of_an_alert_that_was_printed_is_printed() -> None:
    stream = io.StringIO()
    subject = notifier(stream)
    long_ago = NOW - 5 * HOUR_S
    await write(subject, alert(updated_unix_s=long_ago))
    await write(subject, resolved(long_ago))
    assert "(5 h ago) CRITICAL resolved" in stream.getvalue().splitlines()[-1]


async def test_terminal_gets_colour_and_a_file_or_no_color_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal, file, plain = Terminal(), io.StringIO(), Terminal()
    await write(notifier(terminal), alert(), resolved())
    await write(notifier(file), alert())
    monkeypatch.setenv("NO_COLOR", "1")
    await write(notifier(plain), alert())
    firing, ended = terminal.getvalue().splitlines()
    assert "\x1b[1;31mCRITICAL firing  \x1b[0m" in firing
    assert "\x1b[1;32m" in ended
    assert "\x1b" not in file.getvalue() + plain.getvalue()


async def test_control_characters_are_shown_not_obeyed() -> None:
    (line,) = await printed(alert(summary="a\x1b[2Jb\r\nc", labels={"host": "x\x00"}))
    assert r"a\x1b[2Jb\r\nc" in line
    assert r"host=x\x00" in line


async def test_terminal_that_cannot_write_a_character_gets_its_code() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    await write(notifier(stream), alert(condition="0.1 ≤ 0.2"))
    stream.seek(0)
    assert r"0.1 \u2264 0.2" in stream.read()


async def test_time_that_no_calendar_has_does_not_keep_an_alert_back() -> None:
    (line,) = await printed(alert(updated_unix_s=1e300))
    assert line.startswith("1e+300 s CRITICAL firing ")


async def test_closed_stream_is_retried_and_the_alert_is_not_taken_for_printed() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    subject = notifier(stream)
    stream.close()
    for _ in range(2):
        with pytest.raises(Retryable, match="closed file"):
            await write(subject, alert())


async def test_record_that_is_no_alert_is_refused_and_the_others_are_printed() -> None:
    stream = io.StringIO()
    bad = item(b"{")
    good, tombstone = item(msgspec.json.encode(alert())), item(None)
    (refused,) = await notifier(stream).write([bad, good, tombstone])
    assert (refused.item, refused.reason) == (bad, Reason.INVALID_JSON)
    assert len(stream.getvalue().splitlines()) == 1
