"""A small fleet with one incident in it, as the log would have it: what root-cause analysis is measured on.

Four hosts run the services ``shop`` (models ranker and search) and ``ads`` (model ctr), which all ask ``features``
(model lookup). Half an hour in windows of ten seconds: noisy, with slow waves of traffic that latencies follow, and
with decoys in every incident: deploys of other services shortly before the onset, an older one of the same service,
spikes on other hosts, a failed run of an unrelated job, a burst of traffic elsewhere that rises with the incident.

Each incident is a few effects on that fleet, all of which follow from one cause with some seconds of delay; which cause
must come out first is said by its kind and labels. `build` makes it as windows, events and drift.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from streammon.events import Change, Dataset, Pipeline
from streammon.results import Alert, Cause, Completeness, Distribution, Drift, Gauge, Window
from streammon.sketch import Sketch

START: Final = 1_700_000_000.0
STEP_S: Final = 10.0
BINS: Final = 185
HOSTS: Final = ("h1", "h2", "h3", "h4")
PLACES: Final = {
    ("shop", "ranker"): ("h1", "h2", "h3"),
    ("shop", "search"): ("h2", "h3"),
    ("ads", "ctr"): ("h3", "h4"),
    ("features", "lookup"): ("h4",),
}
Floats = NDArray[Any]
_SKETCH: Final = Sketch.of(np.array([0.1]))


class Fleet:
    """Everything that is measured, as arrays to be bent by an incident."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.onset = int(rng.integers(150, 168))
        self.severity = float(rng.uniform(0.6, 1.6))
        self.delay = int(rng.integers(0, 4))
        """Bins until latency and errors follow their cause."""
        self.requests: dict[tuple[str, str, str], dict[str, Floats]] = {}
        self.resources: dict[tuple[str, str, str], dict[str, Floats]] = {}
        self.changes: list[Change] = []
        self.pipelines: list[Pipeline] = []
        self.drift: list[Drift] = []
        wave = 1 + 0.15 * np.sin(np.arange(BINS) / rng.uniform(15, 40) + rng.uniform(0, 6))
        for (service, model), hosts in PLACES.items():
            for host in hosts:
                self.requests[service, model, host] = self._requests(wave)
        for host in HOSTS:
            self._resources(host, wave)

    @property
    def onset_unix_s(self) -> float:
        return START + self.onset * STEP_S

    def noise(self, level: float, share: float) -> Floats:
        return level * (1 + share * self.rng.standard_normal(BINS))

    def _requests(self, wave: Floats) -> dict[str, Floats]:
        rng, latency = self.rng, self.rng.uniform(0.03, 0.2)
        return {
            "throughput": self.noise(rng.uniform(20, 80), 0.05) * wave,
            "p50": self.noise(latency, 0.05) * (0.7 + 0.3 * wave),
            "p99": self.noise(latency * 3, 0.12) * (0.7 + 0.3 * wave),
            "errors": np.abs(0.004 + 0.002 * rng.standard_normal(BINS)),
            "tokens": self.noise(300, 0.04),
            "confidence": np.clip(self.noise(0.8, 0.01), 0, 1),
        }

    def _resources(self, host: str, wave: Floats) -> None:
        rng = self.rng
        cpu = np.clip(self.noise(rng.uniform(0.25, 0.5), 0.06) * wave, 0, 1)
        self.resources |= {
            (host, "cpu", "total"): {"utilization": cpu, "iowait_fraction": np.abs(self.noise(0.01, 0.5))},
            (host, "host", host): {
                "load_1m": self.noise(2.0, 0.1) * wave,
                "uptime_s": rng.uniform(1e5, 1e6) + STEP_S * np.arange(BINS),
            },
            (host, "memory", "ram"): {"utilization": self.noise(rng.uniform(0.4, 0.6), 0.01)},
            (host, "memory", "swap"): {"utilization": np.zeros(BINS)},
            (host, "disk", "sda"): {
                "io_time_fraction": np.abs(self.noise(0.1, 0.3)),
                "write_bytes_per_s": np.abs(self.noise(1e6, 0.3)),
            },
            (host, "filesystem", "/"): {"utilization": rng.uniform(0.4, 0.7) + 1e-5 * np.arange(BINS)},
            (host, "network", "eth0"): {
                "receive_bytes_per_s": self.noise(1e6, 0.1) * wave,
                "receive_errors_per_s": rng.poisson(0.02, BINS).astype(float),
                "transmit_drops_per_s": rng.poisson(0.02, BINS).astype(float),
            },
            (host, "gpu", "0"): {
                "utilization": np.clip(self.noise(0.6, 0.08), 0, 1),
                "temperature_celsius": self.noise(65, 0.01),
                "throttled_fraction": np.zeros(BINS),
                "memory_utilization": self.noise(0.7, 0.005),
            },
            (host, "container", "app"): {"oom_kills": np.zeros(BINS), "memory_bytes": self.noise(2e9, 0.01)},
        }

    # ---------------------------------------------------------------- to bend it

    def after(self, delay_bins: int = 0, ramp_bins: int = 1) -> Floats:
        """0 before the onset, rising to 1 within ``ramp_bins``."""
        return np.clip((np.arange(BINS) - self.onset - delay_bins + 1) / ramp_bins, 0, 1)

    def slow(self, service: str, model: str, times: float, host: str | None = None, delay_bins: int = 0) -> None:
        times, delay_bins = 1 + (times - 1) * self.severity, delay_bins + self.delay
        for (one, other, where), track in self.requests.items():
            if (one, other) == (service, model) and host in (None, where):
                factor = 1 + (times - 1) * self.after(delay_bins, 2)
                track["p50"] *= factor
                track["p99"] *= factor

    def fail(self, service: str, model: str, share: float, host: str | None = None, delay_bins: int = 0) -> None:
        share, delay_bins = share * self.severity, delay_bins + self.delay
        for (one, other, where), track in self.requests.items():
            if (one, other) == (service, model) and host in (None, where):
                track["errors"] += share * self.after(delay_bins, 2) * self.rng.uniform(0.8, 1.2, BINS)

    def gauge(
        self, host: str, entity: str, id_: str, name: str, to: float, shape: Floats, wobble: float = 0.02
    ) -> None:
        track = self.resources[host, entity, id_]
        track[name] = track[name] * (1 - shape) + to * shape * (1 + wobble * self.rng.standard_normal(BINS))

    def change(self, before_s: float, service: str, kind: Any, **fields: Any) -> None:
        self.changes.append(Change(time_unix_s=self.onset_unix_s - before_s, service=service, kind=kind, **fields))

    def run(
        self, job: str, began_before_s: float, *, lasts_s: float, ends: str | None = "finished", **fields: Any
    ) -> None:
        begin = self.onset_unix_s - began_before_s
        name = f"{job}-{len(self.pipelines)}"
        outputs = [Dataset(name=f"{job}/table")]
        self.pipelines.append(Pipeline(time_unix_s=begin, job=job, run_id=name, event="started", **fields))
        if ends is not None:
            self.pipelines.append(
                Pipeline(time_unix_s=begin + lasts_s, job=job, run_id=name, event=ends, outputs=outputs)  # type: ignore[arg-type]  # one of the events
            )

    def drifted(self, model: str, target: str, before_s: float) -> None:
        start = self.onset_unix_s - before_s
        self.drift.append(
            Drift(
                model=model,
                target=target,
                detector="psi",
                statistic=0.4,
                threshold=0.2,
                drifted=True,
                sample_size=1000,
                start_unix_s=start,
                end_unix_s=start + 60,
            )
        )


# -------------------------------------------------------------------------------- the incidents

Truth = Callable[[Cause], bool]


def event(kind: str, **about: str) -> Truth:
    return lambda cause: cause.kind == kind and about.items() <= cause.labels.items()


def resource(host: str, *kinds: str) -> Truth:
    return lambda cause: cause.kind in kinds and cause.labels.get("host") == host


def bad_deploy(fleet: Fleet) -> Truth:
    fleet.change(fleet.rng.uniform(5, 60), "shop", "deploy", model="ranker", model_version="8", actor="ci")
    fleet.slow("shop", "ranker", 3)
    fleet.gauge("h1", "cpu", "total", "utilization", 0.88, fleet.after(0, 2))  # it is hungrier, too
    return event("deploy", service="shop", model_version="8")


def config_change(fleet: Fleet) -> Truth:
    fleet.change(fleet.rng.uniform(5, 40), "shop", "config", actor="kim", ref="timeout: 50 ms")
    fleet.fail("shop", "ranker", 0.2)
    fleet.fail("shop", "search", 0.1)
    return event("config", service="shop")


def noisy_neighbour(fleet: Fleet) -> Truth:
    fleet.gauge("h1", "cpu", "total", "utilization", 0.97, fleet.after(0, 2), 0.005)
    fleet.gauge("h1", "host", "h1", "load_1m", 40, fleet.after(1, 6))
    fleet.slow("shop", "ranker", 3, "h1", delay_bins=1)
    return resource("h1", "cpu")


def memory_leak(fleet: Fleet) -> Truth:
    leak = np.clip((np.arange(BINS) - fleet.onset + 60) / 60, 0, 1)
    fleet.gauge("h2", "memory", "ram", "utilization", 0.97, leak, 0.003)
    fleet.gauge("h2", "memory", "swap", "utilization", 0.6, fleet.after(0, 6))
    fleet.gauge("h2", "disk", "sda", "io_time_fraction", 0.8, fleet.after(1, 3))
    fleet.slow("shop", "ranker", 4, "h2", delay_bins=1)
    fleet.slow("shop", "search", 3, "h2", delay_bins=1)
    return resource("h2", "memory", "swap")


def oom_kill(fleet: Fleet) -> Truth:
    fleet.resources["h1", "container", "app"]["oom_kills"][fleet.onset] = 1.0
    fleet.gauge("h1", "memory", "ram", "utilization", 0.95, np.clip((np.arange(BINS) - fleet.onset + 20) / 20, 0, 1))
    fleet.fail("shop", "ranker", 0.4, "h1")
    return resource("h1", "oom", "memory")


def gpu_throttling(fleet: Fleet) -> Truth:
    fleet.gauge(
        "h1", "gpu", "0", "temperature_celsius", 91, np.clip((np.arange(BINS) - fleet.onset + 15) / 15, 0, 1), 0.005
    )
    fleet.gauge("h1", "gpu", "0", "throttled_fraction", 0.6, fleet.after(), 0.1)
    fleet.gauge("h1", "gpu", "0", "utilization", 0.99, fleet.after(0, 2), 0.005)
    fleet.slow("shop", "ranker", 2.5, "h1", delay_bins=1)
    return resource("h1", "gpu_throttling")


def disk_full(fleet: Fleet) -> Truth:
    fleet.gauge(
        "h1", "filesystem", "/", "utilization", 0.999, np.clip((np.arange(BINS) - fleet.onset + 40) / 40, 0, 1), 0.0
    )
    fleet.fail("shop", "ranker", 0.5, "h1", delay_bins=1)
    return resource("h1", "disk_full")


def busy_disk(fleet: Fleet) -> Truth:
    fleet.gauge("h2", "disk", "sda", "io_time_fraction", 0.99, fleet.after(), 0.005)
    fleet.gauge("h2", "cpu", "total", "iowait_fraction", 0.4, fleet.after(0, 2), 0.1)
    fleet.slow("shop", "ranker", 3, "h2", delay_bins=1)
    return resource("h2", "disk")


def late_pipeline(fleet: Fleet) -> Truth:
    for days in (3, 2, 1):
        fleet.run("ranker-features", 86_400 * days + 1800, lasts_s=600)
    fleet.run("ranker-features", 1800, lasts_s=0, ends=None)
    fleet.drifted("ranker", "user_age_days", fleet.rng.uniform(0, 60))
    for (service, model, _), track in fleet.requests.items():
        if (service, model) == ("shop", "ranker"):
            track["confidence"] *= 1 - 0.3 * fleet.after(0, 3)
    return event("run_late", job="ranker-features")


def failed_pipeline(fleet: Fleet) -> Truth:
    fleet.run("ranker-features", 86_400 + 900, lasts_s=600)
    fleet.run("ranker-features", 900, lasts_s=600, ends="failed")
    for (service, model, _), track in fleet.requests.items():
        if (service, model) == ("shop", "ranker"):
            track["confidence"] *= 1 - 0.3 * fleet.after(0, 3)
    return event("run_failed", job="ranker-features")


def input_drift(fleet: Fleet) -> Truth:
    fleet.drifted("ranker", "price", fleet.rng.uniform(30, 240))
    for (service, model, _), track in fleet.requests.items():
        if (service, model) == ("shop", "ranker"):
            track["confidence"] *= 1 - 0.25 * fleet.after(0, 6)
    return event("drift", model="ranker", target="price")


def traffic_surge(fleet: Fleet) -> Truth:
    for host in PLACES["shop", "ranker"]:
        fleet.requests["shop", "ranker", host]["throughput"] *= 1 + 3 * fleet.after(0, 2)
        fleet.gauge(host, "cpu", "total", "utilization", 0.95, fleet.after(0, 2), 0.01)
        fleet.gauge(host, "host", host, "load_1m", 20, fleet.after(1, 6))
    fleet.slow("shop", "ranker", 3)
    return lambda cause: cause.kind == "traffic"


def larger_requests(fleet: Fleet) -> Truth:
    for host in PLACES["shop", "ranker"]:
        fleet.requests["shop", "ranker", host]["tokens"] *= 1 + 4 * fleet.after()
        fleet.gauge(host, "gpu", "0", "utilization", 0.97, fleet.after(0, 2), 0.01)
    fleet.slow("shop", "ranker", 3)
    return lambda cause: cause.kind == "input_size"


def slow_dependency(fleet: Fleet) -> Truth:
    fleet.slow("features", "lookup", 8)
    fleet.slow("shop", "ranker", 3, delay_bins=1)
    fleet.slow("ads", "ctr", 1.5, delay_bins=2)
    return lambda cause: cause.kind == "dependency" and cause.labels.get("service") == "features"


def one_bad_host(fleet: Fleet) -> Truth:
    fleet.slow("shop", "ranker", 4, "h1")
    return lambda cause: cause.kind == "host" and cause.labels.get("host") == "h1"


def network_errors(fleet: Fleet) -> Truth:
    fleet.gauge("h2", "network", "eth0", "receive_errors_per_s", 80, fleet.after(0, 2), 0.3)
    fleet.gauge("h2", "network", "eth0", "receive_bytes_per_s", 4e5, fleet.after(0, 2), 0.1)
    fleet.fail("shop", "ranker", 0.15, "h2")
    fleet.slow("shop", "ranker", 2, "h2")
    return resource("h2", "network")


class Incident(NamedTuple):
    """``field`` and ``labels``: of the alert that it raises."""

    inject: Callable[[Fleet], Truth]
    field: str
    host: str | None = None


INCIDENTS: Final = {
    "bad deploy": Incident(bad_deploy, "duration_s.p99"),
    "config change": Incident(config_change, "error_rate"),
    "noisy neighbour": Incident(noisy_neighbour, "duration_s.p99", "h1"),
    "memory leak": Incident(memory_leak, "duration_s.p99", "h2"),
    "OOM kill": Incident(oom_kill, "error_rate", "h1"),
    "GPU throttling": Incident(gpu_throttling, "duration_s.p99", "h1"),
    "disk full": Incident(disk_full, "error_rate", "h1"),
    "busy disk": Incident(busy_disk, "duration_s.p99", "h2"),
    "late pipeline": Incident(late_pipeline, "confidence.mean"),
    "failed pipeline": Incident(failed_pipeline, "confidence.mean"),
    "input drift": Incident(input_drift, "confidence.mean"),
    "traffic surge": Incident(traffic_surge, "duration_s.p99"),
    "larger requests": Incident(larger_requests, "duration_s.p99"),
    "slow dependency": Incident(slow_dependency, "duration_s.p99"),
    "one bad host": Incident(one_bad_host, "duration_s.p99", "h1"),
    "network errors": Incident(network_errors, "error_rate", "h2"),
}


def decoys(fleet: Fleet) -> None:
    """What has nothing to do with it, and happens all the same."""
    rng = fleet.rng
    fleet.change(rng.uniform(10, 90), "ads", "deploy", model="ctr", model_version="31")
    fleet.change(rng.uniform(10, 200), "features", "config")
    fleet.change(rng.uniform(300, 1500), "shop", "deploy", model="ranker", model_version="7")
    fleet.change(rng.uniform(20, 120), "shop", "deploy", model="search", model_version="4")
    fleet.run("billing-export", rng.uniform(60, 300), lasts_s=30, ends="failed")
    fleet.drifted("ctr", "hour", rng.uniform(0, 300))
    at = slice(fleet.onset + int(rng.integers(-8, 4)), None)  # a batch job on a host of others, at about that time
    fleet.resources["h4", "cpu", "total"]["utilization"][at] = np.clip(fleet.noise(0.95, 0.02)[at], 0, 1)
    burst = np.clip((np.arange(BINS) - fleet.onset - int(rng.integers(-3, 4)) + 1) / 3, 0, 1)
    for host in PLACES["ads", "ctr"]:
        fleet.requests["ads", "ctr", host]["throughput"] *= 1 + 0.8 * burst
    spike = int(rng.integers(90, fleet.onset - 10))
    fleet.resources["h1", "disk", "sda"]["io_time_fraction"][spike : spike + 2] = 0.9
    fleet.resources["h1", "network", "eth0"]["receive_bytes_per_s"] *= 1 + 0.5 * burst  # innocent, and moves along


class Built(NamedTuple):
    """An incident as the log has it."""

    alert: Alert
    windows: list[Window]
    changes: list[Change]
    pipelines: list[Pipeline]
    drift: list[Drift]
    onset_unix_s: float
    is_cause: Truth


def build(name: str, seed: int, *, by_host: bool = True) -> Built:
    """One of `INCIDENTS`; the same for the same seed.

    ``by_host``: whether windows of requests say on which host they were served, which `windows.inference_by` decides.
    """
    incident = INCIDENTS[name]
    fleet = Fleet(np.random.default_rng([seed, list(INCIDENTS).index(name)]))
    decoys(fleet)
    is_cause = incident.inject(fleet)
    notice = fleet.onset + fleet.delay + int(fleet.rng.integers(1, 4))
    labels = {"service": "shop", "model": "ranker", "host": incident.host or "h1"}
    if not by_host:
        fleet.requests = _over_hosts(fleet.requests)
        del labels["host"]
    windows = list(_windows(fleet, notice + 3))
    tripped = next(each for each in windows if each.series == labels and each.start_unix_s == START + notice * STEP_S)
    alert = _alert(incident.field, tripped)
    return Built(alert, windows, fleet.changes, fleet.pipelines, fleet.drift, fleet.onset_unix_s, is_cause)


def _over_hosts(
    requests: dict[tuple[str, str, str], dict[str, Floats]],
) -> dict[tuple[str, str, str], dict[str, Floats]]:
    """The same where windows do not know hosts."""
    found = {}
    for service, model in PLACES:
        tracks = [track for (one, other, _), track in requests.items() if (one, other) == (service, model)]
        whole = {name: np.mean([track[name] for track in tracks], axis=0) for name in tracks[0]}
        whole["throughput"] *= len(tracks)
        whole["p99"] = np.max([track["p99"] for track in tracks], axis=0)
        found[service, model, ""] = whole
    return found


def _windows(fleet: Fleet, until: int) -> Iterator[Window]:
    for bin_ in range(min(until, BINS)):
        for (service, model, host), track in fleet.requests.items():
            series = {"service": service, "model": model} | ({"host": host} if host else {})
            at = {name: float(values[bin_]) for name, values in track.items()}
            count = max(0, round(at["throughput"] * STEP_S))
            yield _window(
                bin_,
                "inference",
                series,
                count,
                throughput_per_s=count / STEP_S,
                error_rate=min(1.0, at["errors"]),
                duration_s=_distribution(at["p50"], at["p99"]),
                input_tokens=_distribution(at["tokens"], at["tokens"] * 2),
                confidence=_distribution(at["confidence"], at["confidence"]),
            )
        for (host, entity, id_), gauges in fleet.resources.items():
            numbers = {name: float(values[bin_]) for name, values in gauges.items()}
            found = {name: Gauge(min=x, max=x, mean=x, last=x, count=10) for name, x in numbers.items()}
            yield _window(bin_, "resource", {"host": host, "entity": entity, "id": id_}, 10, gauges=found)


def _window(bin_: int, source: str, series: dict[str, str], count: int, **fields: Any) -> Window:
    start = START + bin_ * STEP_S
    about: dict[str, Any] = {"start_unix_s": start, "end_unix_s": start + STEP_S, "size_s": STEP_S, "partition": 0}
    plain: dict[str, Any] = {"throughput_per_s": count / STEP_S, "completeness": Completeness()}
    return Window(source=source, part="main", revision=0, series=series, count=count, **(about | plain | fields))


def _distribution(p50: float, p99: float) -> Distribution:
    numbers = {"min": p50, "max": p99, "mean": p50, "p50": p50, "p90": (p50 + p99) / 2, "p99": p99}
    return Distribution(count=1, sum=p50, sketch=_SKETCH, **numbers)


def _alert(field: str, tripped: Window) -> Alert:
    window = msgspec.to_builtins(tripped)
    value: Any = window
    for part in field.split("."):
        value = value[part]
    return Alert(
        id="a" * 22,
        rule="test",
        rule_version="1",
        state="firing",
        severity="critical",
        labels=dict(tripped.series),
        value=value,
        condition=f"{field} is {value:.3g}",
        summary="shop/ranker is ill",
        started_unix_s=tripped.start_unix_s,
        updated_unix_s=tripped.end_unix_s,
        transition=1,
        evidence={"window": window},
    )
