"""StatsD and DogStatsD: what lines mean, what a flush gives, and that the real client's numbers arrive exactly."""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from datadog.dogstatsd.base import DogStatsd
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from streammon.config import StatsdSettings
from streammon.events import EventType
from streammon.sketch import Sketch
from streammon_agents.packing import Packer
from streammon_agents.statsd import series, serving
from streammon_agents.statsd.lines import Refusal
from streammon_agents.statsd.series import OTHER, Aggregate
from streammon_agents.statsd.serving import Statsd
from tests.outlets import Kept
from tests.support import eventually

WORST = 0.0055  # of a quantile of a sketch


class Adding:
    """An aggregate with a clock, and what its flushes gave, as a reader of the log has it."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1.7e9
        self.aggregate = Aggregate(StatsdSettings(**settings), "here", lambda: self.now)
        self.refused: Counter[Any] = Counter()

    def flush(self, *packets: bytes) -> list[dict[str, Any]]:
        for packet in packets:
            self.aggregate.packet(packet)
        resources, self.changes, refused = self.aggregate.flush()
        self.refused += refused
        out = Kept()
        if resources:
            out.put(EventType.RESOURCE, resources)
        if self.changes:
            out.put(EventType.CHANGE, self.changes)
        return out.of(EventType.RESOURCE)


def sketch_of(event: dict[str, Any], name: str) -> Sketch:
    found = event["histograms"][name].sketch
    assert isinstance(found, Sketch)
    return found


# --- what lines mean ------------------------------------------------------------------------------------------


def test_lines_with_the_same_service_and_tags_are_one_event() -> None:
    tags = b"|#service:shop,env:prod,beta"
    packet = b"\n".join(
        [b"hits:1|c" + tags, b"hits:2|c" + tags, b"queue:7|g" + tags, b"lat:20|ms" + tags, b"u:a|s" + tags, b""]
    )
    [event] = Adding().flush(packet)
    assert event["labels"] == {"env": "prod", "beta": "true"}
    assert (event["entity"], event["id"], event["host"], event["time_unix_s"]) == ("service", "shop", "here", 1.7e9)
    assert event["counters"] == {"hits": 3.0}
    assert event["metrics"] == {"queue": 7.0, "u": 1.0}
    timing = event["histograms"]["lat"]
    assert (timing.sum, timing.min, timing.max, timing.sketch.count) == (20.0, 20.0, 20.0, 1)


def test_the_service_is_a_tag_or_a_setting_or_what_the_name_begins_with() -> None:
    packet = b"web.hits:1|c|#service:shop\nweb.hits:1|c"
    assert {event["id"] for event in Adding().flush(packet)} == {"shop", "web"}
    assert {event["id"] for event in Adding(service="site").flush(packet)} == {"shop", "site"}


def test_counters_are_divided_by_their_sample_rate_exactly() -> None:
    [event] = Adding().flush(*[b"n:1|c|@0.1"] * 1000, *[b"n:3|c|@0.25"] * 7)
    assert event["counters"] == {"n": 10_000.0 + 84.0}


def test_a_counter_that_is_to_fall_is_refused_and_spoils_no_neighbour() -> None:
    adding = Adding()
    [event] = adding.flush(b"s.sold:5|c\ns.sold:-3|c\ns.sold:2:-1|c\ns.stock:-3|c\ns.queue:4|g")
    assert (event["counters"], event["metrics"]) == ({"s.sold": 5.0}, {"s.queue": 4.0})
    assert adding.refused == {Refusal.NEGATIVE: 3}


def test_many_names_with_the_same_tags_are_several_events_that_a_record_can_hold() -> None:
    lines = [b"shop.t%s%d:%d|ms" % (b"x" * 900, name, value) for name in range(1500) for value in range(1, 40, 6)]
    lines += [b"shop.c%d:1|c" % name for name in range(100)]
    events = Adding().flush(*lines)
    packed = Packer("a").pack(EventType.RESOURCE, [msgspec.to_builtins(event) for event in events])
    assert (sum(batch.events for batch in packed.batches), packed.unreported) == (len(events), 0)
    assert sum(len(event.get("histograms", ())) for event in events) == 1500
    assert sum(sum(event.get("counters", {}).values()) for event in events) == 100.0


def test_sample_rates_of_a_timing_are_bounded() -> None:
    adding = Adding()
    [event] = adding.flush(*[b"s.t:1|ms|@0.%d" % rate for rate in range(500, 600)] * 2)
    assert adding.refused == {Refusal.RATES: 2 * (100 - series.MAX_RATES)}
    assert sketch_of(event, "s.t").count == pytest.approx(2 * sum(1000 / rate for rate in range(500, 516)), abs=16)


def test_long_members_of_a_set_are_told_apart_and_not_kept() -> None:
    adding = Adding()
    [event] = adding.flush(*[b"s.u:%s%d|s" % (b"x" * 50_000, n % 20) for n in range(40)], b"s.u:short|s")
    assert event["metrics"] == {"s.u": 21.0}
    adding.aggregate.packet(b"s.u:%s|s" % (b"x" * 50_000))
    assert {len(member) for series in adding.aggregate._series.values() for member in series.members} == {16}


def test_gauges_are_set_and_changed_and_remembered_over_flushes() -> None:
    adding = Adding()
    assert adding.flush(b"g:10|g", b"g:+5|g", b"g:-2.5|g")[0]["metrics"] == {"g": 12.5}
    assert adding.flush() == [], "what was not touched is not told again"
    assert adding.flush(b"g:-20|g")[0]["metrics"] == {"g": -7.5}
    adding.now += 301  # silent for expire_s
    adding.flush()
    assert adding.flush(b"g:+1|g")[0]["metrics"] == {"g": 1.0}


def test_sets_count_different_values() -> None:
    adding = Adding()
    assert adding.flush(b"u:a|s", b"u:b|s", b"u:a|s", b"u:1:2|s")[0]["metrics"] == {"u": 3.0}
    assert adding.flush(b"u:a|s")[0]["metrics"] == {"u": 1.0}


@pytest.mark.parametrize("kind", ["ms", "h", "d"])
def test_packed_values_are_many_values(kind: str) -> None:
    [event] = Adding().flush(f"s.t:1:2:3.5|{kind}".encode(), b"s.n:1:2:3|c")
    assert (event["histograms"]["s.t"].sum, sketch_of(event, "s.t").count) == (6.5, 3)
    assert event["counters"] == {"s.n": 6.0}


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.1, 0.3, 0.7, 0.001])
def test_sampled_timings_weigh_as_much_as_the_values_they_stand_for(rate: float) -> None:
    adding, values = Adding(), [float(value) for value in range(1, 101)]
    found: list[Sketch] = []
    total = 0.0
    for start in range(0, 100, 5):  # over many flushes: what remains of one is not lost
        [event] = adding.flush(*[f"t:{value}|ms|@{rate}".encode() for value in values[start : start + 5]])
        found.append(sketch_of(event, "t"))
        total += event["histograms"]["t"].sum
    assert abs(sum(sketch.count for sketch in found) - 100 / rate) <= 1
    assert total == pytest.approx(sum(values) / rate, rel=0.06 if 1 / rate % 1 else 1e-12)


def test_a_value_that_comes_alone_is_weighed_right_over_time() -> None:
    adding = Adding()
    counts = [sketch_of(adding.flush(b"t:5|ms|@0.7")[0], "t").count for _ in range(70)]
    assert (sum(counts), set(counts)) == (100, {1, 2})


def test_values_with_a_time_are_events_of_that_time() -> None:
    events = Adding().flush(b"n:3|c|#service:s|T1656581400", b"n:4|c|#service:s", b"n:5|c|#service:s|T1656581400")
    assert {event["time_unix_s"]: event["counters"]["n"] for event in events} == {1656581400.0: 8.0, 1.7e9: 4.0}


def test_a_container_id_is_a_label_and_an_inode_is_not() -> None:
    events = Adding().flush(b"s.n:1|c|c:ci-83c0a99c", b"s.n:1|c|c:in-4026", b"s.n:1|c|e:x|card:low")
    assert [event.get("labels") for event in events] == [{"container": "83c0a99c"}, None]


def test_service_checks_are_gauges() -> None:
    line = b"_sc|redis.up|2|d:1656581400|h:web1|#service:cache,env:prod|m:" + b"Connection: refused " * 100
    [event] = Adding().flush(line)
    assert (event["id"], event["metrics"], event["labels"]) == ("cache", {"redis.up": 2.0}, {"env": "prod"})


def test_events_tagged_as_a_change_are_changes_and_others_are_counted() -> None:
    adding = Adding()
    adding.flush(
        b"_e{9,4}:v2 is out|text|d:1656581400|#service:shop,change:deploy,model:ranker,version:v2",
        b"_e{5,4}:hello|text|#service:shop",
    )
    assert adding.changes == [
        {
            "time_unix_s": 1656581400.0,
            "service": "shop",
            "kind": "deploy",
            "model": "ranker",
            "model_version": "v2",
            "ref": "v2 is out",
        }
    ]
    assert adding.refused == {Refusal.IGNORED: 1}


# --- garbage and bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "line",
    [
        b"n", b"n:1", b"n:1|", b"n:1|x", b":1|c", b"n:|c", b"n:one|c", b"n:nan|c", b"n:inf|ms", b"n:1_0|c", b"n:1:x|c",
        b"n:1|c|@0", b"n:1|c|@2", b"n:1|c|@x", b"n:1|c|@nan", b"n:1|g|T-1", b"n:1|g|Tx", b"\xff:1|c", b"n:1|c|#\xff",
        b"_sc|up|7", b"_sc|up", b"_e{1,2", b"_e{9,9}:short|x", b"_e{-1,0}:a|b", b"_e{1,1}:a|b|d:x",
    ],
)  # fmt: skip
def test_a_line_that_is_garbage_is_counted_and_spoils_no_other(line: bytes) -> None:
    adding = Adding()
    [event] = adding.flush(b"ok.n:1|c\n" + line + b"\nok.n:1|c")
    assert event["counters"] == {"ok.n": 2.0}
    assert adding.refused == {Refusal.GARBAGE: 1}


def test_a_key_that_is_too_long_is_refused() -> None:
    adding = Adding()
    assert adding.flush(b"n:1|c|#" + b"x" * 2000) == []
    assert adding.refused == {Refusal.TOO_LONG: 1}


def test_an_explosion_of_tags_is_bounded_and_no_count_is_lost() -> None:
    adding = Adding(max_series=100)
    lines = [b"s.n:1|c|@0.5|#user:%d" % n for n in range(5000)] + [b"s.t:3|ms|#user:%d" % n for n in range(1000)]
    events = adding.flush(*lines, *lines)
    assert len(events) == 101
    assert sum(event.get("counters", {}).get("s.n", 0) for event in events) == 20_000
    [other] = [event for event in events if event["id"] == OTHER]
    assert (other["counters"], sketch_of(other, "s.t").count) == ({"s.n": 19_600.0}, 2000)
    assert adding.refused == {Refusal.SERIES: 2 * 4900 + 2000}
    assert len(adding.aggregate._series) == 102
    assert len(adding.aggregate._adds) <= 200


def test_series_that_are_silent_or_never_had_a_value_make_room_again() -> None:
    adding = Adding(max_series=2, max_names=1, expire_s=10)
    adding.flush(b"a:1|c", b"b:x|c", b"c:1|c", b"d:1|c")
    assert adding.refused == {Refusal.GARBAGE: 1, Refusal.SERIES: 1, Refusal.NAMES: 1}
    for _ in range(12):
        adding.now += 1
        adding.flush(b"a:1|c")
    assert [event["counters"] for event in adding.flush(b"d:1|c", b"a:1|c")] == [{"d": 1.0}, {"a": 1.0}]
    assert len(adding.aggregate._series) == 2


def test_names_gauges_and_members_beyond_their_bounds_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_MEMBERS", 3)
    adding = Adding(max_series=1, max_names=2)
    adding.flush(*[b"u:%d|s" % n for n in (0, 1, 2, 3, 4, 0)], b"g:1|g", *[b"n%d:1|c" % n for n in range(5)])
    assert adding.refused == {Refusal.MEMBERS: 2, Refusal.SERIES: 1 + 2, Refusal.NAMES: 3}


def test_sums_that_are_too_large_are_left_out_and_counted() -> None:
    adding = Adding()
    [event] = adding.flush(b"s.n:1e308|c|@0.000001", b"s.t:1e308|ms", b"s.t:1e308|ms", b"s.g:1|g")
    assert (event["metrics"], event.get("counters"), event.get("histograms")) == ({"s.g": 1.0}, None, None)
    assert adding.refused == {Refusal.NON_FINITE: 2}


def test_more_values_than_are_kept_as_they_are_become_sketches_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MAX_VALUES", 100)
    adding, values = Adding(), [random.Random(7).lognormvariate(0, 3) for _ in range(5050)]
    [event] = adding.flush(*[b"t:%r|ms" % value for value in values])
    assert sketch_of(event, "t") == Sketch.of(np.array(values))
    assert event["histograms"]["t"].sum == pytest.approx(sum(values))
    assert (event["histograms"]["t"].min, event["histograms"]["t"].max) == (min(values), max(values))


PARTS = st.sampled_from(
    [b"n", b":", b"1", b"-1", b"+2", b"|", b"c", b"g", b"ms", b"h", b"d", b"s", b"@0.5", b"@", b"#a:b", b"#service:x",
     b"T5", b"c:ci-1", b"_sc|", b"_e{", b"1,1", b"}:", b"d:1", b",", b"\n", b"1e308", b"\xff", b"", b"0.1", b"1e-320"]
)  # fmt: skip


@examples(max_examples=300)
@given(st.lists(st.lists(PARTS, max_size=12).map(b"".join) | st.binary(max_size=20), max_size=6))
def test_whatever_comes_the_events_are_valid(packets: Sequence[bytes]) -> None:
    Adding(max_series=3, max_names=2).flush(*packets, b"a:1|c|#b:c", b"a:2|ms|@0.3")


# --- over sockets ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def listening(out: Kept, **settings: Any) -> AsyncIterator[int]:
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    source = Statsd(StatsdSettings(**{"port": 0, "flush_s": 0.05, **settings}), "here", listening=port.set_result)
    running = asyncio.create_task(source.run(out))
    try:
        yield await asyncio.wait_for(port, 5)
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=5)
        assert running.cancelled()


def counted(out: Kept, name: str) -> float:
    return sum(float(event.get("counters", {}).get(name, 0)) for event in out.of(EventType.RESOURCE))


@pytest.mark.parametrize("over", ["udp", "unix"])
async def test_the_real_clients_numbers_arrive_exactly(over: str, tmp_path: Path) -> None:
    out, path = Kept(), tmp_path / "dogstatsd.sock"
    values = [random.Random(11).lognormvariate(3, 1) for _ in range(500)]  # few enough for any buffer
    async with listening(out, socket_path=path, receive_buffer_bytes=16 * 1024**2) as port:
        where: dict[str, Any] = {"socket_path": str(path)} if over == "unix" else {"port": port}
        await asyncio.to_thread(send_with_client, where, values)
        await eventually(lambda: counted(out, "shop.sent") == 1)
    assert counted(out, "shop.hits") == 500 * 3
    assert counted(out, "shop.sampled") == pytest.approx(1000, rel=0.3)
    assert counted(out, "shop.sampled") % 2 == 0
    events = out.of(EventType.RESOURCE)
    assert {event["id"] for event in events} == {"shop"}
    sketches = [sketch_of(event, "shop.latency") for event in events if "histograms" in event]
    found = sketches[0]
    for more in sketches[1:]:
        found = found.merge(more)
    assert found.count == 500
    assert sum(event["histograms"]["shop.latency"].sum for event in events if "histograms" in event) == pytest.approx(
        sum(values)
    )
    for q in (0.5, 0.9, 0.99):
        exact = float(np.quantile(values, q, method="inverted_cdf"))
        assert abs(found.quantile(q) - exact) <= WORST * exact
    gauges = [event["metrics"] for event in events if "shop.queue" in event["metrics"]]
    assert gauges[-1]["shop.queue"] == 42.0
    assert not out.refused


def send_with_client(where: dict[str, Any], values: Sequence[float]) -> None:
    client = DogStatsd(**where, constant_tags=["service:shop"], disable_telemetry=True, socket_timeout=5)
    for at, value in enumerate(values):
        client.increment("shop.hits", 3)
        client.increment("shop.sampled", 2, sample_rate=0.5)
        client.distribution("shop.latency", value)
        client.gauge("shop.queue", at)
    client.gauge("shop.queue", 42)
    client.flush()
    client.increment("shop.sent")
    client.flush()
    client.close_socket()


async def test_what_the_kernel_drops_is_counted_and_a_degraded_state() -> None:
    out = Kept()
    async with listening(out, receive_buffer_bytes=4096) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(500):  # nobody reads meanwhile
                sender.sendto(b"s.n:1|c", ("127.0.0.1", port))
        await eventually(lambda: counted(out, "s.n") + out.refused[Refusal.KERNEL] == 500)
        await eventually(lambda: "the kernel dropped" in (out.states[-1] or ""))
    assert out.refused[Refusal.KERNEL] > 0


async def test_a_taken_port_is_degraded_and_the_socket_works_meanwhile(tmp_path: Path) -> None:
    out, path = Kept(), tmp_path / "statsd.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stale:
        stale.bind(str(path))  # left behind
    other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    other.bind(("127.0.0.1", 0))
    port = other.getsockname()[1]
    source = Statsd(StatsdSettings(port=port, socket_path=path, flush_s=0.05), "here")
    findings = {finding.what.split()[0]: finding.seen for finding in source.check()}
    assert findings == {"udp": False, "unix": True}
    running = asyncio.create_task(source.run(out))
    try:
        await eventually(lambda: out.states and "Address already in use" in (out.states[-1] or ""))
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.connect(str(path))
            sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 400_000)
            sender.send(b"s.n:1|c\n" * 9000)  # more than a packet may be: cut, and counted
        await eventually(lambda: out.refused[Refusal.OVERSIZED])
        await eventually(lambda: counted(out, "s.n") == 65_536 // 8)
        assert not next(iter(Statsd(StatsdSettings(port=None, socket_path=path), "here").check())).seen
        assert path.exists(), "who only checks leaves it alone"
        other.close()
        await eventually(lambda: out.states[-1] is None)
    finally:
        running.cancel()
        await asyncio.wait({running})
    assert not path.exists()


async def test_lines_over_tcp_are_cut_anywhere_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_CLIENTS", 2)
    out = Kept()
    async with listening(out, port=None, tcp_port=0) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"s.n:1|c\ns.n:2")
        await eventually(lambda: counted(out, "s.n") == 1)
        endless, other = await asyncio.open_connection("127.0.0.1", port)
        third, _ = await asyncio.open_connection("127.0.0.1", port)
        assert await asyncio.wait_for(third.read(), 5) == b""
        other.write(b"x" * 200_000)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(endless.read(), 5) == b""
        writer.write(b"0|c\n\ns.n:300|c")
        writer.close()
        await eventually(lambda: counted(out, "s.n") == 321)
    assert out.refused == {Refusal.CONNECTIONS: 1, Refusal.OVERSIZED: 1}


async def test_what_came_before_the_end_is_published(tmp_path: Path) -> None:
    out = Kept()
    async with listening(out, flush_s=60.0) as port:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"s.n:5|c", ("127.0.0.1", port))
    assert counted(out, "s.n") == 5
