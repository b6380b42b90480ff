"""The whole source: a real service, real programs, bad targets beside good ones, targets that come and go."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shutil
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from streammon.config import load
from streammon.events import EventType
from streammon.sketch import Sketch, merge
from streammon.telemetry import DROPPED, health_routes, serve_http
from streammon_agents.scrape import scrape_source
from streammon_agents.scrape.accounts import Oddity
from streammon_agents.scrape.fetching import Down, FetchError, Room
from streammon_agents.scrape.pages import Fault
from streammon_agents.source import Source, ended
from tests.certificates import Authority
from tests.outlets import Kept
from tests.support import eventually

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
FAST = {"scrape_interval": "300ms"}
SHOP = Path(__file__).with_name("shop.py")


def source(*jobs: dict[str, Any]) -> Source:
    return scrape_source(load(agent={"host": "node1", "scrape": {"jobs": list(jobs)}}))


def job(name: str, *addresses: str, **fields: Any) -> dict[str, Any]:
    return {"job_name": name, **FAST, "static_configs": [{"targets": list(addresses)}], **fields}


@asynccontextmanager
async def running(*jobs: dict[str, Any]) -> AsyncIterator[Kept]:
    out = Kept()
    task = asyncio.create_task(source(*jobs).run(out))
    try:
        yield out
        assert not task.done(), "the source runs on"
    finally:
        await ended(task)


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server of one page; its address."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"{host}:{port}"
    finally:
        await runner.cleanup()


def showing(text: str | bytes, **fields: Any) -> Handler:
    async def show(_: web.Request) -> web.Response:
        body = text if isinstance(text, bytes) else text.encode()
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4", **fields})

    return show


def metrics(out: Kept, name: str, **labels: str) -> list[float]:
    """All values of a metric, in order, of events with these labels."""
    return [
        event["metrics"][name]
        for event in out.of(EventType.RESOURCE)
        if name in event["metrics"] and labels.items() <= event["labels"].items()
    ]


def total(out: Kept, name: str, **labels: str) -> float:
    return sum(
        float(event["counters"][name])
        for event in out.of(EventType.RESOURCE)
        if name in event.get("counters", {}) and labels.items() <= event["labels"].items()
    )


def histogram(out: Kept, name: str, **labels: str) -> tuple[Sketch, float]:
    found = [
        event["histograms"][name]
        for event in out.of(EventType.RESOURCE)
        if name in event.get("histograms", {}) and labels.items() <= event["labels"].items()
    ]
    return merge(each.sketch for each in found), sum(each.sum for each in found)


# --- a service that is not changed ------------------------------------------------------------------------


class Shop:
    """The service as a process of its own."""

    def __init__(self, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._port, self._process = port, None

    _process: subprocess.Popen[bytes] | None

    def start(self) -> None:
        self._process = subprocess.Popen([sys.executable, str(SHOP), str(self._port)], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def shop(free_port: int) -> Iterator[Shop]:
    made = Shop(free_port)
    yield made
    made.stop()


async def test_a_flask_service_is_watched_exactly_over_a_restart(shop: Shop) -> None:
    random.seed(7)
    orders = [(random.choice("ab"), random.choice([0.5, 3, 7, 20, 60, 200]), random.randint(1, 9)) for _ in range(60)]

    async def place(session: aiohttp.ClientSession, kind: str, price: float, size: int) -> None:
        async with session.post(f"http://{shop.address}/order/{kind}?price={price}&size={size}") as answer:
            assert answer.status == 200

    async with running(job("shop", shop.address)) as out, aiohttp.ClientSession() as session:
        await eventually(lambda: 0.0 in metrics(out, "up"))  # watched since before it is there
        placed = 0
        for part in (orders[:40], orders[40:]):
            shop.start()
            await eventually(lambda: metrics(out, "up")[-1] == 1.0, 20)
            for order in part:
                await place(session, *order)
            placed += len(part)
            await eventually(lambda: total(out, "order_size_count") == placed)  # noqa: B023 - is called at once
            await asyncio.to_thread(shop.stop)
            await eventually(lambda: metrics(out, "up")[-1] == 0.0)
    for kind in "ab":
        prices = [price for each, price, _ in orders if each == kind]
        sketch, sum_ = histogram(out, "price_eur", kind=kind)
        assert (total(out, "orders_total", kind=kind), sketch.count) == (len(prices), len(prices))
        assert sum_ == pytest.approx(sum(prices))
        for bound in (1, 5, 10, 50):
            over = sum(price > bound for price in prices)
            assert sketch.above(bound * 1.012) <= over <= sketch.above(bound / 1.012), "a bucket is as wide as that"
    assert total(out, "order_size_sum") == sum(size for *_, size in orders)
    assert metrics(out, "open_orders")[-1] == 20.0
    events = out.of(EventType.RESOURCE)
    assert {(event["host"], event["entity"], event["id"]) for event in events} == {("node1", "service", "shop")}
    assert {event["labels"]["instance"] for event in events} == {shop.address}
    assert total(out, "scrape_failures_total", reason="unreachable") == out.refused[Down.UNREACHABLE] >= 1


# --- targets as bad as they come --------------------------------------------------------------------------


async def never_ends(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await answer.prepare(request)
    while True:
        await answer.write(b"# a comment\n")
        await asyncio.sleep(0.05)


async def too_much(request: web.Request) -> web.StreamResponse:
    answer = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await answer.prepare(request)
    for _ in range(100):
        await answer.write(b"a 1\n" * 262_144)  # 100 MiB in all
    return answer


async def round_and_round(_: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("/redirects")


async def half_open(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(60)
    raise AssertionError


EXPLODED = "".join(f'a{{x="{number}"}} 1\n' for number in range(1_000_000 // 20))
BOMB = gzip.compress(b"\n" * 50_000_000)
GZIP = {"Content-Encoding": "gzip"}
BAD: dict[str, tuple[Handler, str]] = {
    "drip": (never_ends, Down.TIMEOUT),
    "half_open": (half_open, Down.TIMEOUT),
    "hundred_megabytes": (too_much, Down.TOO_LARGE),
    "bomb": (showing(BOMB, **GZIP), Down.TOO_LARGE),
    "no_gzip": (showing("a 1\n", **GZIP), Down.BAD_ENCODING),
    "cut_gzip": (showing(gzip.compress(b"a 1\n")[:-4], **GZIP), Down.BAD_ENCODING),
    "brotli": (showing("a 1\n", **{"Content-Encoding": "br"}), Down.BAD_ENCODING),
    "explosion": (showing(EXPLODED), Fault.TOO_MANY_SAMPLES),
    "redirects": (round_and_round, Down.REDIRECT),
    "html": (showing("<html>", **{"Content-Type": "text/html"}), Down.CONTENT_TYPE),
    "words": (showing("no page of metrics\n"), Fault.MALFORMED),
    "latin1": (showing(b'a{x="\xe4"} 1\n'), Fault.NOT_UTF8),
    "cut": (showing("a 1\n", **{"Content-Type": "application/openmetrics-text"}), Fault.TRUNCATED),
    "long": (showing(f'a{{x="{"y" * 5000}"}} 1\n'), Fault.LABEL_TOO_LONG),
    "wide": (showing("a{" + ",".join(f'x{number}="1"' for number in range(100)) + "} 1\n"), Fault.TOO_MANY_LABELS),
    "protobuf": (
        showing(b"\xff", **{"Content-Type": "application/vnd.google.protobuf; encoding=delimited"}),
        Fault.TRUNCATED,
    ),
}


async def test_bad_targets_are_down_with_their_reason_and_touch_no_other() -> None:
    async def serve(request: web.Request) -> web.StreamResponse:
        if (name := request.path.strip("/")) == "status":
            raise web.HTTPInternalServerError
        return await BAD[name][0](request)

    expected = {**{name: reason for name, (_, reason) in BAD.items()}, "status": Down.STATUS}
    async with serving(serve) as address, serving(showing("good 1\n")) as good:
        patience = {name: "1s" if reason is Down.TIMEOUT else "5s" for name, reason in expected.items()}
        jobs = [
            job(name, address, metrics_path=f"/{name}", scrape_interval="5s", scrape_timeout=patience[name])
            for name in expected
        ]
        async with running(*jobs, job("good", good)) as out:

            def reasons() -> dict[str, str]:
                labels = {event["id"]: event["labels"] for event in out.of(EventType.RESOURCE)}
                return {name: each["reason"] for name, each in labels.items() if "reason" in each}

            await eventually(lambda: reasons().keys() == expected.keys(), 30)
            beats = [event["time_unix_s"] for event in out.of(EventType.RESOURCE) if event["id"] == "good"]
    assert reasons() == expected
    assert {*metrics(out, "up")} == {0.0, 1.0}
    gaps = [late - early for early, late in pairwise(beats)]
    assert max(gaps) < 2, "the good one is never kept waiting for long"
    assert metrics(out, "good")
    assert any("status" in (state or "") or "more" in (state or "") for state in out.states)


def test_all_pages_under_way_share_one_bound() -> None:
    room = Room(100)
    with room.share() as one, room.share() as two:
        one.grow(60)
        two.grow(40)
        with pytest.raises(FetchError, match="all the room"):
            one.grow(1)
    with room.share() as next_:
        next_.grow(100)


async def test_odd_samples_are_counted_and_the_page_is_taken() -> None:
    hour_off = f"off 1 {(time.time() - 3600) * 1000:.0f}\n"
    async with serving(showing("a 1\na 2\nb NaN\n" + hour_off)) as address, running(job("odd", address)) as out:
        await eventually(lambda: len(metrics(out, "up")) >= 2)
    assert {*metrics(out, "a")} == {1.0}
    assert {Oddity.DUPLICATE, Oddity.NOT_FINITE, Oddity.WRONG_TIME} <= out.refused.keys()
    assert {*metrics(out, "scrape_samples_scraped")} == {4.0}
    assert all(abs(event["time_unix_s"] - time.time()) < 60 for event in out.of(EventType.RESOURCE))
    assert out.states in ([None], [])


# --- how a target is asked --------------------------------------------------------------------------------


async def test_a_target_is_asked_as_prometheus_asks(tmp_path: Path) -> None:
    asked = list[web.Request]()

    async def show(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(body=gzip.compress(b"a 1\n# EOF\n"), headers={
            "Content-Encoding": "gzip", "Content-Type": "application/openmetrics-text; version=1.0.0; charset=utf-8"
        })  # fmt: skip

    token = tmp_path / "token"
    token.write_text("first\n")
    async with serving(show) as address:
        given = job("a", address, params={"module": ["x"]}, authorization={"credentials_file": str(token)})
        async with running(given) as out:
            await eventually(lambda: metrics(out, "up")[-1:] == [1.0])
            token.write_text("second")
            await eventually(lambda: asked[-1].headers["Authorization"] == "Bearer second")
            token.unlink()
            await eventually(lambda: total(out, "scrape_failures_total", reason="no_credentials"))
    assert asked[0].headers["Authorization"] == "Bearer first"
    assert asked[0].path_qs == "/metrics?module=x"
    assert asked[0].headers["Accept"] == (
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
        "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
        "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
    )
    assert asked[0].headers["Accept-Encoding"] == "gzip"
    assert asked[0].headers["X-Prometheus-Scrape-Timeout-Seconds"] == "0.3"
    assert "first" not in repr(out.states)


async def test_secrets_go_over_tls_to_whom_the_authority_vouches_for_and_to_no_other(tmp_path: Path) -> None:
    asked = list[str | None]()

    async def show(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        return web.Response(text="a 1\n")

    async def lead_away(_: web.Request) -> web.Response:
        raise web.HTTPFound(f"http://localhost:{plain.rpartition(':')[2]}/metrics")

    authority = Authority(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.issue("server"))
    (tmp_path / "password").write_text("pa:ss\n")
    basic = {"username": "me", "password_file": str(tmp_path / "password")}
    async with serving(show, context) as trusted, serving(show) as plain, serving(lead_away) as leading:
        jobs = [
            job("good", trusted, scheme="https", basic_auth=basic, tls_config={"ca_file": str(authority.file)}),
            job("unknown", trusted, scheme="https", basic_auth=basic),
            job("lax", trusted, scheme="https", tls_config={"insecure_skip_verify": True}),
            job("no_file", trusted, scheme="https", tls_config={"ca_file": str(tmp_path / "none.pem")}),
            job("led", leading, bearer_token="s3cret"),
            job("not_led", leading, follow_redirects=False),
        ]
        async with running(*jobs) as out:

            def last() -> dict[str, float]:
                up = [(event["id"], event["metrics"].get("up")) for event in out.of(EventType.RESOURCE)]
                return {name: value for name, value in up if value is not None}

            expected = {"good": 1, "unknown": 0, "lax": 1, "no_file": 0, "led": 1, "not_led": 0}
            await eventually(lambda: last() == expected)
    assert {*asked} == {None, "Basic " + b64encode(b"me:pa:ss").decode()}, "a token is not sent along"
    assert {Down.TLS, Down.STATUS} <= out.refused.keys()
    assert "pa:ss" not in repr(out.states)


async def test_our_own_page_is_read_as_any_other() -> None:
    app = web.Application()
    app.add_routes(health_routes(lambda: None))
    async with serve_http(app, "127.0.0.1", 0) as port, running(job("streammon", f"127.0.0.1:{port}")) as out:
        await eventually(lambda: metrics(out, "up"))
        DROPPED.labels("test").inc(3)
        await eventually(lambda: total(out, "streammon_dropped_events_total", where="test") == 3)
    assert metrics(out, "up")[-1] == 1.0
    assert metrics(out, "process_resident_memory_bytes")
    assert not out.refused.keys() - {Down.TIMEOUT}  # of a machine that is busy


async def test_files_are_read_again_when_they_change_and_bad_ones_keep_their_targets(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    async with serving(showing("a 1\n")) as one, serving(showing("b 1\n")) as two:

        def write(*targets: str) -> None:
            file.write_text(json.dumps([{"targets": targets, "labels": {"zone": "z"}}]))

        write(one)
        given = {
            **job("files"),
            "static_configs": [],
            "file_sd_configs": [{"files": [str(tmp_path / "*.json")], "refresh_interval": "100ms"}],
        }
        async with running(given) as out:
            await eventually(lambda: metrics(out, "a", instance=one, zone="z"))
            write(one, two)
            await eventually(lambda: metrics(out, "b", instance=two, zone="z"))
            file.write_text("{")
            await eventually(lambda: out.states and out.states[-1])
            seen = len(metrics(out, "b"))
            await eventually(lambda: len(metrics(out, "b")) > seen)
            write(two)
            await eventually(lambda: out.states[-1] is None)
            seen = len(metrics(out, "a")) + 1
            since = len(metrics(out, "b"))
            await eventually(lambda: len(metrics(out, "b")) > since + 5)
    assert len(metrics(out, "a")) <= seen, "a target that is gone is not scraped any more"
    assert "holds no list of targets" in "".join(filter(None, out.states))


async def test_check_says_which_targets_can_be_had_and_why_not(free_port: int) -> None:
    async with serving(showing("a 1\nb 1\n")) as good, serving(showing("nonsense nonsense\n")) as bad:
        made = source(
            job("good", good),
            job("bad", bad, f"127.0.0.1:{free_port}", "ann:hunter2@b:1"),
            {"job_name": "pods", "kubernetes_sd_configs": [{"role": "pod"}]},
        )
        found = await asyncio.to_thread(made.check)
    told = {finding.what: (finding.seen, finding.detail) for finding in found}
    assert told[f"target good {good}"] == (True, "2 samples")
    assert told[f"target bad {bad}"][1].startswith("malformed_page: line 1")
    assert told[f"target bad 127.0.0.1:{free_port}"][1].startswith("unreachable: ")
    assert "'…@b:1' is no HOST:PORT" in told["target"][1]
    assert "hunter2" not in str(told)
    assert "service account" in told["job pods"][1]


def test_without_jobs_there_is_nothing_to_pay_for() -> None:
    loaded = (
        "import sys; from streammon.config import load; from streammon_agents.agent import sources_of;"
        "made = sources_of(load(agent={'sources': ['scrape']})); assert 'aiohttp' not in sys.modules;"
        "[finding] = made[0].check(); assert not finding.seen and finding.fix"
    )
    subprocess.run([sys.executable, "-c", loaded], check=True)


# --- real programs ----------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="Prometheus is not installed")
@pytest.mark.parametrize("protocol", ["PrometheusProto", "OpenMetricsText1.0.0", "PrometheusText0.0.4"])
async def test_prometheus_itself_is_scraped_in_every_format(protocol: str, free_port: int, tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text("scrape_configs: []\n")
    address = f"127.0.0.1:{free_port}"
    arguments = [
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path}",
        f"--web.listen-address={address}",
        "--enable-feature=native-histograms",
    ]
    process = await asyncio.to_thread(subprocess.Popen, ["prometheus", *arguments], stderr=subprocess.DEVNULL)
    with process:
        try:
            async with running(job("prometheus", address, scrape_protocols=[protocol])) as out:
                await eventually(lambda: metrics(out, "prometheus_ready")[-1:] == [1.0], 30)
                before = total(out, "promhttp_metric_handler_requests_total", code="200")
                async with aiohttp.ClientSession() as session:
                    for _ in range(20):
                        async with session.get(f"http://{address}/-/ready") as answer:
                            assert answer.status == 200
                ready = "/-/ready"
                await eventually(
                    lambda: histogram(out, "prometheus_http_request_duration_seconds", handler=ready)[0].count >= 20
                )
                assert histogram(out, "prometheus_http_response_size_bytes", handler=ready)[0].count >= 20
                await eventually(lambda: total(out, "promhttp_metric_handler_requests_total", code="200") > before)
        finally:
            process.send_signal(signal.SIGKILL)
    assert not out.refused.keys() - {Down.UNREACHABLE, Down.TIMEOUT, Oddity.NOT_FINITE}
    assert metrics(out, "up")[-1] == 1.0
