"""The page's data: what is shown is the sum of what is stored, to the last event, whenever it arrives."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from streammon.errors import Retryable
from streammon.results import OTHER, Alert, Completeness, Gauge, Window
from streammon.sketch import merge
from streammon_sinks import sqlite as sqlite_module
from streammon_sinks.sqlite import ResultStore
from streammon_sinks.web import live as live_module
from streammon_sinks.web import overview as overview_module
from streammon_sinks.web import page as page_module
from streammon_sinks.web.live import FRESH_S, IDLE_S, Live
from streammon_sinks.web.overview import (
    MAX_POINTS,
    RANGES_S,
    Board,
    HostView,
    Indicator,
    ModelView,
    Overview,
    Status,
    indicators,
    shown_alerts,
)
from streammon_sinks.web.page import page_routes
from tests.sinks.builders import START, alert, distribution, window
from tests.support import eventually

STATUS = Status(consumer_lag=0, watermark_lag_s=1.0, components={"windows": "running"})
NOW = START + 200
RNG = np.random.default_rng(5)


def requests(number: int = 0, count: int = 4, errors: int = 0, **changes: Any) -> Window:
    values = distribution(*(0.1 + 0.001 * n + 0.01 * number for n in range(max(1, count))))
    fields = {"count": count, "error_count": errors, "duration_s": values, "completeness": Completeness()}
    return window(number, **(fields | changes))


def resource(number: int, entity: str, thing: str, count: int = 2, **metrics: float) -> Window:
    gauges = {name: Gauge(min=value, max=value, mean=value, last=value) for name, value in metrics.items()}
    series = {"host": "web-1", "entity": entity, "id": thing}
    plain = Window(
        source="resource", part="main", revision=0, series=series, start_unix_s=0, end_unix_s=0, size_s=2,
        partition=0, count=count, throughput_per_s=1.0, completeness=Completeness(), gauges=gauges,
    )  # fmt: skip
    start = START + 2 * number
    return msgspec.structs.replace(plain, start_unix_s=start, end_unix_s=start + 2)


def board(*windows: Window, range_s: int = 900, size_s: float = 2.0) -> Board:
    made = Board(range_s, size_s)
    for each in windows:
        made.add(each)
    return made


def shown(*windows: Window, now: float = NOW, **options: Any) -> Overview:
    return board(*windows, **options).overview(now, STATUS, [])


def only_model(overview: Overview) -> ModelView:
    (model,) = overview.models
    return model


def only_host(*windows: Window) -> HostView:
    (host,) = shown(*windows).hosts
    return host


def points(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def indicator(found: list[Indicator], name: str) -> Indicator:
    return next(each for each in found if each.name == name)


# -- models ----------------------------------------------------------------------------------------------


def test_endpoints_and_versions_of_a_model_are_one_distribution() -> None:
    slow = requests(series={"service": "shop", "model": "ranker", "endpoint": "/slow"}, count=10)
    slow.duration_s = distribution(*RNG.lognormal(1, 1, 50))
    fast = requests(series={"service": "shop", "model": "ranker", "endpoint": "/fast"}, count=30)
    fast.duration_s = distribution(*RNG.lognormal(-3, 1, 300))
    model = only_model(shown(slow, fast))
    both = merge([slow.duration_s.sketch, fast.duration_s.sketch])
    extremes = min(slow.duration_s.min, fast.duration_s.min), max(slow.duration_s.max, fast.duration_s.max)
    expected = both.quantiles((0.5, 0.9, 0.99), *extremes)
    assert [model.newest.p50_s, model.newest.p90_s, model.newest.p99_s] == expected
    assert [points(model.p50_s), points(model.p90_s), points(model.p99_s)] == [[q] for q in expected]
    assert model.newest.count == 40


def test_models_of_the_same_name_in_different_services_stay_apart() -> None:
    other = requests(series={"service": "support", "model": "ranker"}, count=3)
    found = shown(requests(count=5), other).models
    assert [(each.service, each.model, each.total.count) for each in found] == [
        ("shop", "ranker", 5),
        ("support", "ranker", 3),
    ]


def test_error_rate_is_errors_by_requests_not_a_mean_of_rates() -> None:
    model = only_model(shown(requests(0, count=10, errors=10), requests(0, count=90, errors=0, revision=9)))
    assert model.newest.error_rate == 0.1


def test_late_supplement_adds_to_the_bucket_it_belongs_to() -> None:
    on_time, late = requests(5, count=6), requests(5, count=2, part="late", revision=1)
    model = only_model(shown(on_time, requests(6, count=1), late, range_s=300))
    assert points(model.throughput_per_s) == [4.0, 0.5]


def test_bucket_without_windows_is_a_gap() -> None:
    model = only_model(shown(requests(0), requests(3), range_s=300, now=START + 7))
    assert model.p99_s[-4:] == [model.p99_s[-4], None, None, model.p99_s[-1]]
    assert model.throughput_per_s[-3:-1] == model.error_rate[-3:-1] == [None, None]
    assert None not in (model.p99_s[-4], model.p99_s[-1])


def test_window_without_successes_has_an_error_rate_and_no_latency() -> None:
    model = only_model(shown(requests(count=3, errors=3, duration_s=None)))
    assert (model.newest.error_rate, model.newest.p99_s) == (1.0, None)


def test_throughput_of_the_newest_bucket_counts_only_the_time_that_is_over() -> None:
    overview = shown(*(requests(n, count=8) for n in range(5)), range_s=900, now=START + 10)
    assert overview.step_s == 4
    assert points(only_model(overview).throughput_per_s) == [4.0, 4.0, 4.0]
    assert only_model(overview).total.throughput_per_s == 4.0


def test_what_is_beyond_the_cap_of_series_is_a_model_of_its_own() -> None:
    rest = requests(series=dict.fromkeys(("service", "model", "model_version", "endpoint"), OTHER))
    assert (only_model(shown(rest)).service, only_model(shown(rest)).model) == (OTHER, OTHER)


def test_models_beyond_the_limit_are_counted_and_the_busiest_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview_module, "MAX_MODELS", 2)
    many = [requests(series={"service": "s", "model": f"m{n}"}, count=n) for n in (1, 3, 2)]
    overview = shown(*many)
    assert [each.model for each in overview.models] == ["m3", "m2"]
    assert overview.models_left_out == 1


# -- machines --------------------------------------------------------------------------------------------


def test_a_host_of_which_only_services_tell_is_no_machine_to_draw() -> None:
    others = [resource(0, entity, "ranker", utilization=0.5) for entity in ("service", "container", "gpu", "process")]
    assert shown(*others).hosts == []
    assert points(only_host(*others, resource(0, "cpu", "total", utilization=0.1)).cpu_utilization) == [0.1]


def test_host_metrics_are_means_over_samples() -> None:
    host = only_host(
        resource(0, "cpu", "total", count=3, utilization=0.2),
        resource(0, "cpu", "total", count=1, utilization=0.6),
        resource(0, "memory", "ram", utilization=0.5),
        resource(0, "memory", "swap", utilization=0.9),
        resource(0, "filesystem", "/", utilization=0.25),
        resource(0, "filesystem", "/boot", utilization=0.99),
    )
    assert points(host.cpu_utilization) == [pytest.approx(0.3)]
    assert points(host.memory_utilization) == [0.5]
    assert points(host.filesystem_utilization) == [0.25]


def test_disks_and_interfaces_are_summed_and_nothing_is_counted_twice() -> None:
    disks = [
        resource(0, "disk", disk, read_bytes_per_s=100.0, write_bytes_per_s=10.0)
        for disk in ("sda", "nvme0n1", "mdisk", "dm-0", "md127", "loop3", "zram0")
    ]
    interfaces = [
        resource(0, "network", name, receive_bytes_per_s=7.0, transmit_bytes_per_s=5.0)
        for name in ("eth0", "wlan0", "long0", "lo", "lo0", "veth12ab", "docker0", "br-77")
    ]
    host = only_host(*disks, *interfaces)
    assert (points(host.disk_read_bytes_per_s), points(host.disk_write_bytes_per_s)) == ([300.0], [30.0])
    assert points(host.network_receive_bytes_per_s) == [21.0]
    assert points(host.network_transmit_bytes_per_s) == [15.0]


def test_metric_that_a_machine_lacks_is_a_gap_not_zero() -> None:
    host = only_host(resource(0, "disk", "sda", read_bytes_per_s=1.0))
    assert (points(host.disk_read_bytes_per_s), points(host.disk_write_bytes_per_s)) == ([1.0], [])


# -- time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("range_s", RANGES_S)
@pytest.mark.parametrize("size_s", [0.25, 1.0, 2.0, 7.0, 60.0])
def test_every_range_has_few_points_of_whole_windows(range_s: int, size_s: float) -> None:
    overview = shown(range_s=range_s, size_s=size_s)
    assert len(overview.times_unix_s) <= MAX_POINTS
    assert overview.step_s % size_s == 0
    assert overview.times_unix_s[0] <= NOW - range_s + overview.step_s
    assert overview.times_unix_s[-1] <= NOW < overview.times_unix_s[-1] + overview.step_s


def test_windows_that_left_the_range_are_forgotten() -> None:
    made = board(requests(0, completeness=Completeness(late=3)), range_s=300)
    before = made.overview(START + 100, STATUS, [])
    after = made.overview(START + 400, STATUS, [])
    assert (len(before.models), indicator(before.indicators, "Late").value) == (1, 3)
    assert (after.models, indicator(after.indicators, "Late").value) == ([], 0)
    assert after.latest_unix_s == START + 2
    made.add(requests(1, part="late", revision=1))
    assert made.overview(START + 400, STATUS, []).models == []


def test_board_that_could_not_read_all_says_from_when_it_is_complete() -> None:
    made = board(*(requests(n) for n in range(10)), range_s=300)
    made.cut(START + 6)
    overview = made.overview(START + 20, STATUS, [])
    assert overview.complete_since_unix_s == START + 8
    assert only_model(overview).total.count == 6 * 4
    assert made.overview(START + 1000, STATUS, []).complete_since_unix_s is None


# -- health ----------------------------------------------------------------------------------------------


def test_completeness_is_summed_over_all_that_is_shown() -> None:
    nothing_but_counters = requests(
        count=0, series={}, part="late", revision=1, duration_s=None,
        completeness=Completeness(rejected=5, missing=1),
    )  # fmt: skip
    of_the_host = resource(0, "cpu", "total", utilization=0.1)
    of_the_host.completeness = Completeness(dropped=2, duplicate=1)
    overview = shown(requests(completeness=Completeness(late=1)), nothing_but_counters, of_the_host)
    assert {each.name: each.value for each in overview.indicators} == {
        "Watermark lag": 1.0, "Consumer lag": 0, "Late": 1, "Rejected": 5, "Duplicate": 1,
        "Dropped": 2, "Missing": 1, "Firing alerts": 0,
    }  # fmt: skip
    assert len(overview.models) == 1


def test_watermark_lag_that_nobody_reports_is_read_from_the_windows() -> None:
    made = board(
        requests(1, completeness=Completeness(watermark_unix_s=START + 5)),
        requests(0, completeness=Completeness(watermark_unix_s=START + 3)),
    )
    unknown = Status(consumer_lag=0)
    assert indicator(made.overview(START + 9, unknown, []).indicators, "Watermark lag").value == 4
    assert indicator(made.overview(START + 9, STATUS, []).indicators, "Watermark lag").value == 1
    assert indicator(board().overview(START + 9, unknown, []).indicators, "Watermark lag").level == "unknown"


def test_batch_that_turned_up_after_all_is_not_missing() -> None:
    found_again = requests(0, completeness=Completeness(missing=-1))
    lost = [requests(number, completeness=Completeness(missing=1)) for number in (1, 2)]
    assert indicator(shown(found_again, *lost, range_s=300).indicators, "Missing").value == 1
    assert indicator(shown(found_again).indicators, "Missing").value == 0


@pytest.mark.parametrize(
    ("name", "counts", "status", "level"),
    [
        ("Watermark lag", {}, {"watermark_lag_s": 10.0}, "good"),
        ("Watermark lag", {}, {"watermark_lag_s": 10.1}, "warn"),
        ("Watermark lag", {}, {"watermark_lag_s": 60.1}, "bad"),
        ("Watermark lag", {}, {"watermark_lag_s": None}, "unknown"),
        ("Consumer lag", {}, {"consumer_lag": 1000}, "good"),
        ("Consumer lag", {}, {"consumer_lag": 1001}, "warn"),
        ("Consumer lag", {}, {"consumer_lag": 100_001}, "bad"),
        ("Late", {"late": 1, "counted": 99}, {}, "good"),
        ("Late", {"late": 2, "counted": 98}, {}, "warn"),
        ("Late", {"late": 11, "counted": 89}, {}, "bad"),
        ("Rejected", {"rejected": 0, "counted": 100}, {}, "good"),
        ("Rejected", {"rejected": 1, "counted": 99}, {}, "warn"),
        ("Rejected", {"rejected": 2, "counted": 98}, {}, "bad"),
        ("Rejected", {"rejected": 1}, {}, "bad"),
        ("Missing", {"missing": 1}, {}, "bad"),
    ],
)
def test_health_is_judged_by_its_stated_rule(
    name: str, counts: dict[str, int], status: dict[str, Any], level: str
) -> None:
    found = indicators(counts, Status(**({"consumer_lag": 0} | status)), [])
    assert indicator(found, name).level == level
    assert "good" in indicator(found, name).rule


@pytest.mark.parametrize(
    ("alerts", "value", "level"),
    [
        ([], 0, "good"),
        ([alert(state="resolved"), alert(state="pending")], 0, "good"),
        ([alert(severity="warning")], 1, "warn"),
        ([alert(severity="warning"), alert(state="acknowledged")], 2, "bad"),
    ],
)
def test_firing_alerts_are_counted(alerts: list[Alert], value: int, level: str) -> None:
    firing = indicator(indicators({}, STATUS, alerts), "Firing alerts")
    assert (firing.value, firing.level) == (value, level)


def test_alerts_that_need_somebody_come_first_and_without_their_evidence() -> None:
    given = [
        alert(9, "old", state="resolved"),
        alert(20, "just ended", state="resolved", severity="info"),
        alert(1, "small", severity="info"),
        alert(2, "pending", state="pending"),
        alert(3, "seen", state="acknowledged"),
        alert(4, "grave", severity="critical"),
    ]
    found = shown_alerts(given)
    assert [each.id for each in found] == ["grave", "small", "seen", "pending", "just ended", "old"]
    assert all(each.evidence == {} for each in found)


def test_alerts_that_ended_do_not_bury_the_charts() -> None:
    ended = [alert(n + 2, f"r{n}", state="resolved") for n in range(8)]
    never_fired = alert(1, "n1", state="resolved")
    overview = Board(900, 2.0).overview(NOW, STATUS, [alert(0, "a1"), *ended, never_fired])
    assert [each.id for each in overview.alerts] == ["a1", "r7", "r6", "r5", "r4", "r3"]
    assert overview.alerts_left_out == 3


# -- live ------------------------------------------------------------------------------------------------


class Time:
    """A clock, wall and monotonic, that stands still until told."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ResultStore]:
    store = ResultStore.open(tmp_path / "results.sqlite")
    yield store
    store.close()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def live(store: ResultStore, time: Time) -> Live:
    return Live(store, lambda: STATUS, clock=time, monotonic=time)


async def seen(live: Live, range_s: int = 900) -> Overview:
    return msgspec.json.decode(await live.overview(range_s), type=Overview)


async def test_page_that_was_kept_up_to_date_equals_one_that_was_just_opened(
    store: ResultStore, live: Live, time: Time
) -> None:
    time.now = START + 600
    await asyncio.gather(*(seen(live, range_s) for range_s in RANGES_S))
    for n in range(0, 250, 10):
        store.write_windows(requests(n + i, count=1 + i) for i in range(10))
        store.write_windows([resource(n, "cpu", "total", utilization=n / 256)])
        store.write_windows([requests(n // 2, count=3, part="late", revision=n + 1)])
        await seen(live)
    time.now += FRESH_S
    for range_s in RANGES_S:
        fresh = Live(store, lambda: STATUS, clock=time)
        assert await seen(live, range_s) == await seen(fresh, range_s)
    assert only_model(await seen(live)).total.count == 25 * (sum(range(1, 11)) + 3)


async def test_repeated_delivery_changes_nothing_that_is_shown(store: ResultStore, live: Live) -> None:
    store.write_windows([requests(1)])
    before = await seen(live)
    store.write_windows([requests(1)])
    assert await seen(live) == before


async def test_rollups_are_not_shown_beside_the_windows_they_are_made_of(store: ResultStore, live: Live) -> None:
    store.write_windows([requests(1)])
    before = only_model(await seen(live)).total
    store.write_windows([requests(1, size_s=60.0, of_s=2.0)])
    assert only_model(await seen(live)).total == before
    assert only_model(await seen(live, 300)).total.count == before.count


async def test_new_state_of_an_alert_is_shown_at_once(store: ResultStore, live: Live) -> None:
    store.write_alerts([alert(1)])
    assert [each.state for each in (await seen(live)).alerts] == ["firing"]
    store.write_alerts([alert(2, state="resolved")])
    assert [each.state for each in (await seen(live)).alerts] == ["resolved"]
    store.write(ended=["a1"])
    assert (await seen(live)).alerts == []


async def test_larger_windows_after_a_change_of_configuration_make_wider_buckets(
    store: ResultStore, live: Live
) -> None:
    store.write_windows([requests(0)])
    assert (await seen(live, 300)).step_s == 2
    long = requests(start_unix_s=START + 10, end_unix_s=START + 20, size_s=10.0)
    store.write_windows([long])
    overview = await seen(live, 300)
    assert overview.step_s == 10
    assert only_model(await seen(live)).total.count == 8


async def test_more_windows_than_can_be_read_are_cut_and_the_page_says_so(
    store: ResultStore, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "MAX_ROWS", 10)
    store.write_windows(requests(n) for n in range(60, 90))
    overview = await seen(live, 900)
    assert overview.complete_since_unix_s == START + 164
    assert points(only_model(overview).throughput_per_s) == [2.0] * 4


async def test_range_that_nobody_asks_for_is_forgotten_and_read_again(
    store: ResultStore, live: Live, time: Time
) -> None:
    store.write_windows([requests(0)])
    await seen(live)
    time.now += IDLE_S + 1
    store.write_windows([requests(1)])
    await live.version()
    assert not live._boards
    assert only_model(await seen(live)).total.count == 8


async def test_emptied_store_is_read_again(store: ResultStore, live: Live, time: Time) -> None:
    store.write_windows([requests(n) for n in range(5)])
    assert len((await seen(live)).models) == 1
    store._clock = lambda: NOW + 10**9
    assert store.prune(1.0, 1000) == 5
    assert (await seen(live)).models == []


async def test_windows_are_not_added_twice_when_reading_breaks_off(
    store: ResultStore, live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_windows([requests(0)])
    await seen(live)
    store.write_windows([requests(n) for n in range(1, 5)])

    class BreaksOff:
        def decode(self, body: str) -> Window:
            self.decode = self.fail  # type: ignore[method-assign]  # from the second window on
            return msgspec.json.decode(body, type=Window)

        def fail(self, body: str) -> Window:
            raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_module, "_WINDOW", BreaksOff())
        with pytest.raises(Retryable):
            await seen(live)
    assert only_model(await seen(live)).total.count == 5 * 4


async def test_version_grows_with_what_is_written_and_only_then(store: ResultStore, live: Live, time: Time) -> None:
    first = await live.version()
    time.now += 1
    assert await live.version() == first
    store.write_windows([requests(0)])
    time.now += 1
    second = await live.version()
    store.write_alerts([alert()])
    time.now += 1
    assert first < second < await live.version()


async def test_time_passes_on_the_page_without_new_windows(store: ResultStore, live: Live, time: Time) -> None:
    store.write_windows([requests(0)])
    before = await seen(live)
    time.now += 30
    after = await seen(live)
    assert after.now_unix_s - before.now_unix_s == 30
    assert after.times_unix_s[-1] > before.times_unix_s[-1]


async def test_store_that_went_away_is_retryable(store: ResultStore, live: Live) -> None:
    store.path.rename(store.path.with_name("moved"))
    with pytest.raises(Retryable, match=r"results\.sqlite"):
        await live.overview(900)


# -- routes ----------------------------------------------------------------------------------------------

Client = TestClient[web.Request, web.Application]


@asynccontextmanager
async def serving(
    store: ResultStore, stop: asyncio.Event | None = None, status: Callable[[], Any] = lambda: STATUS
) -> AsyncIterator[Client]:
    app, stop = web.Application(), stop or asyncio.Event()
    app.add_routes(page_routes(store, status, stop=stop, clock=lambda: NOW))
    async with TestClient(TestServer(app)) as client:
        yield client
        stop.set()


@pytest.fixture
async def client(store: ResultStore) -> AsyncIterator[Client]:
    async with serving(store) as client:
        yield client


async def test_overview_is_the_documented_struct(store: ResultStore, client: Client) -> None:
    store.write([requests(50), resource(50, "cpu", "total", utilization=0.5)], [alert()])
    answer = await client.get("/api/overview?range_s=300")
    overview = msgspec.json.decode(await answer.read(), type=Overview)
    assert (overview.range_s, len(overview.models), len(overview.hosts)) == (300, 1, 1)
    assert overview.components == {"windows": "running"}
    assert [each.summary for each in overview.alerts] == ["shop is slow"]
    assert answer.headers["Cache-Control"] == "no-store"


async def test_status_may_be_awaited(store: ResultStore) -> None:
    async def status() -> Status:
        return Status(consumer_lag=77)

    async with serving(store, status=status) as client:
        overview = await (await client.get("/api/overview")).json()
    assert next(each for each in overview["indicators"] if each["name"] == "Consumer lag")["value"] == 77


async def test_range_that_does_not_exist_is_refused_with_those_that_do(client: Client) -> None:
    answer = await client.get("/api/overview?range_s=901")
    assert (answer.status, await answer.text()) == (
        400,
        "range_s is '901'; it must be one of 300, 900, 3600, 21600",
    )


async def test_store_that_cannot_be_read_is_a_503_that_says_why(store: ResultStore, client: Client) -> None:
    store.path.rename(store.path.with_name("moved"))
    answer = await client.get("/api/overview")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert str(store.path) in await answer.text()


async def test_page_and_its_files_are_served_from_here_alone(client: Client) -> None:
    page = await client.get("/")
    text = await page.text()
    assert page.content_type == "text/html"
    assert "http" not in text
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript"), ("plotly.js", "text/javascript")):
        url = next(part for part in text.split('"') if part.startswith(f"/static/{name}?v="))
        file = await client.get(url)
        assert (file.status, file.content_type) == (200, kind)
        assert "immutable" in file.headers["Cache-Control"]
        assert file.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert len(await file.read()) > 1000
    assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")


async def test_packed_file_is_sent_only_to_those_who_can_unpack_it(client: Client) -> None:
    plain = await client.get("/static/page.js", headers={"Accept-Encoding": "identity"})
    packed = await client.get("/static/page.js", headers={"Accept-Encoding": "gzip, br"})
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "gzip"
    assert await plain.read() == await packed.read()


@pytest.mark.parametrize("name", ["page.py", "__init__.py", "..%2Fpage.py", "..%2F..%2Fsqlite.py", ""])
async def test_nothing_else_of_the_package_is_served(client: Client, name: str) -> None:
    assert (await client.get(f"/static/{name}")).status == 404


async def next_version(stream: ClientResponse) -> int:
    async with asyncio.timeout(5):
        while not (line := await stream.content.readline()).startswith(b"data: "):
            assert line, "the stream ended"
        return int(line.removeprefix(b"data: "))


async def test_stream_speaks_up_at_once_and_after_each_change(store: ResultStore, client: Client) -> None:
    async with client.get("/api/stream") as stream:
        assert stream.content_type == "text/event-stream"
        first = await next_version(stream)
        store.write_windows([requests(50)])
        second = await next_version(stream)
        store.write_alerts([alert()])
        assert first < second < await next_version(stream)


async def test_silent_stream_has_a_heartbeat(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "HEARTBEAT_S", 0.0)
    async with client.get("/api/stream") as stream, asyncio.timeout(5):
        await next_version(stream)
        assert await stream.content.readline() == b"\n"
        assert await stream.content.readline() == b": alive\n"


async def test_streams_end_at_once_when_the_process_stops(store: ResultStore) -> None:
    stop = asyncio.Event()
    async with serving(store, stop) as client, client.get("/api/stream") as stream:
        await next_version(stream)
        stop.set()
        async with asyncio.timeout(2):
            await stream.content.read()
        assert stream.content.at_eof()


async def test_streams_are_bounded_and_a_place_becomes_free(
    store: ResultStore, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "MAX_STREAMS", 1)
    monkeypatch.setattr(page_module, "HEARTBEAT_S", 0.0)
    async with client.get("/api/stream") as stream:
        await next_version(stream)
        refused = await client.get("/api/stream")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
    await eventually(lambda: answers(client))


async def answers(client: Client) -> bool:
    async with client.get("/api/stream") as stream:
        return stream.status == 200


async def test_stream_outlives_a_store_that_is_away_for_a_while(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes: list[int | Retryable] = [1, Retryable("database is locked"), 2]

    async def version(_: Live) -> int:
        outcome = outcomes.pop(0) if len(outcomes) > 1 else outcomes[0]
        if isinstance(outcome, Retryable):
            raise outcome
        return outcome

    monkeypatch.setattr(Live, "version", version)
    async with client.get("/api/stream") as stream:
        assert [await next_version(stream), await next_version(stream)] == [1, 2]
