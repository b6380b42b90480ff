"""Targets: what discovery has found, after relabelling.

Labels that begin with ``__`` steer: ``__address__``, ``__scheme__``, ``__metrics_path__``, ``__param_NAME``,
``__scrape_interval__`` and ``__scrape_timeout__``, as in Prometheus. All others become labels of what is scraped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlencode

from streammon.durations import seconds
from streammon_agents.scrape.jobs import SHORTEST_INTERVAL_S, Job
from streammon_agents.scrape.relabel import Relabel, relabelling

_PARAM: Final = "__param_"


class Target(NamedTuple):
    """One page, fetched again and again. Equal targets are one."""

    job_name: str
    url: str
    labels: tuple[tuple[str, str], ...]
    interval_s: float
    timeout_s: float

    @property
    def name(self) -> str:
        """For people: the job and the instance."""
        return f"{self.job_name} {dict(self.labels).get('instance', self.url)}"


class Found(NamedTuple):
    """Targets, each once; why some are none; and how many there were beyond the limit."""

    targets: list[Target]
    faults: list[str]
    omitted: int


def targets_of(job: Job, discovered: Iterable[Mapping[str, str]]) -> Found:
    """The targets of a job among the label sets that were discovered."""
    relabel = relabelling(job.relabel_configs)
    found, faults = dict[Target, None](), list[str]()
    for labels in discovered:
        try:
            target = _target(job, labels, relabel)
        except ValueError as error:
            faults.append(f"{job.job_name} {_shown(labels.get('__address__', ''))}: {error}")
        else:
            if target is not None:
                found[target] = None
    targets = list(found)
    return Found(targets[: job.max_targets], faults, max(0, len(targets) - job.max_targets))


def _target(job: Job, discovered: Mapping[str, str], relabel: Relabel) -> Target | None:
    """None where a rule drops it. Raises ValueError where it cannot be scraped."""
    labels = relabel({**_steering(job), **discovered})
    if labels is None:
        return None
    address = labels.get("__address__", "")
    if not address or any(character in address for character in "/?#@ "):
        raise ValueError(f"__address__ = {_shown(address)!r} is no HOST:PORT")
    scheme = labels.get("__scheme__", "")
    if scheme not in ("http", "https"):
        raise ValueError(f"__scheme__ = {scheme!r} is neither http nor https")
    interval_s = seconds(labels.get("__scrape_interval__", ""))
    timeout_s = seconds(labels.get("__scrape_timeout__", ""))
    if interval_s < SHORTEST_INTERVAL_S or not 0 < timeout_s <= interval_s:
        raise ValueError(f"a timeout of {timeout_s:g} s does not fit an interval of {interval_s:g} s")
    own = {name: value for name, value in labels.items() if not name.startswith("__")}
    own.setdefault("instance", address)
    url = f"{scheme}://{address}{_path(labels)}{_query(job, labels)}"
    return Target(job.job_name, url, tuple(sorted(own.items())), interval_s, timeout_s)


def _shown(address: str) -> str:
    """Without what may be a password, for logs and heartbeats."""
    _, at, rest = address.rpartition("@")
    return f"…@{rest}" if at else address


def _steering(job: Job) -> dict[str, str]:
    return {
        "job": job.job_name,
        "__scheme__": job.scheme,
        "__metrics_path__": job.metrics_path,
        "__scrape_interval__": f"{job.interval_s}s",
        "__scrape_timeout__": f"{job.timeout_s}s",
        **{f"{_PARAM}{name}": values[0] for name, values in job.params.items() if values},
    }


def _path(labels: Mapping[str, str]) -> str:
    path = labels.get("__metrics_path__", "")
    return path if path.startswith("/") else f"/{path}"


def _query(job: Job, labels: Mapping[str, str]) -> str:
    """The parameters of the job, the first value of each as relabelling has left it."""
    params = {name: list(values) for name, values in job.params.items()}
    for label, value in labels.items():
        if label.startswith(_PARAM):
            name = label.removeprefix(_PARAM)
            params[name] = [value, *params.get(name, [])[1:]]
    return f"?{urlencode(params, doseq=True)}" if params else ""
