"""``streammon query``: results out of the results file, as a table for people and as they are for programs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, TypeVar

import typer

from streammon.cli.base import Output, OutputOption, app, command, print_json, print_rows
from streammon.cli.data import AGES_S, clock_time, moment
from streammon.cli.loop import check_labels, show_loops
from streammon.cli.roles import RESULTS_FILE
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.results import Alert, Drift, Quality, Window

M = TypeVar("M", Drift, Quality)

if TYPE_CHECKING:
    from streammon_sinks.sqlite import ResultStore

MOST = 1_000_000
"""Rows that are looked through."""


class Kind(StrEnum):
    """What can be asked for."""

    WINDOWS = "windows"
    ALERTS = "alerts"
    DRIFT = "drift"
    QUALITY = "quality"
    LOOP = "loop"


class WindowSource(StrEnum):
    """What the windows are over."""

    INFERENCE = "inference"
    RESOURCE = "resource"


@command(app)
def query(
    settings: Settings,
    kind: Annotated[Kind, typer.Argument(help="What to show.", show_default=False)],
    source: Annotated[WindowSource, typer.Option(help="Source of the windows.")] = WindowSource.INFERENCE,
    since: Annotated[
        str | None,
        typer.Option(
            help="Start: a time, or an age such as 15m. Of models: all since then, not the newest of each series.",
            show_default="15m for windows",
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(help="End, likewise.", show_default=False)] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=VALUE", help="Only what has this label, such as model=ranker; may be repeated."),
    ] = None,
    rollup: Annotated[
        str | None,
        typer.Option(help="Show windows this long, such as 1m, instead of base windows.", show_default=False),
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option("--id", help="One retraining in full: its id, or its first digits.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most rows.")] = 1000,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show windows, alerts, drift or the quality of models from the results under --data-dir; loop: from the log.

    Of drift and quality it is the newest of each series, the last that ended first; of quality also the newest that has
    labels, and in a table those measures that matter most. The loop is how models are trained anew, and if it helped.
    """
    from streammon_sinks.sqlite import ResultStore

    labels = _labels(where or [])
    if kind is Kind.LOOP:
        check_labels(labels)
        asyncio.run(show_loops(settings, labels, id_, limit, output))
        return
    asked = Asked(kind, source, *_range(kind, since, until), _length(rollup), limit if not where else MOST)
    path = settings.data_dir / RESULTS_FILE
    if not path.exists():
        raise ConfigError(f"no results at {path}; is `streammon up` or `streammon sink sqlite` using this --data-dir?")
    store = ResultStore.open(path, read_only=True)
    try:
        matching = [result for result in _read(store, asked) if labels.items() <= _labels_of(result).items()]
    finally:
        store.close()
    found = matching[-limit:] if kind is Kind.WINDOWS else matching[:limit]  # the newest
    if len(matching) > limit:
        print(f"the newest {limit} of {len(matching)}: --limit N, or a later --since", file=sys.stderr)
    if output is Output.JSON:
        for result in found:
            print_json(result)
    else:
        shown = _SHOWN[kind]
        columns = _window_columns(source) if kind is Kind.WINDOWS else shown.columns
        print_rows(map(shown.row, found), columns, output, empty=f"no {kind.value} here{_why_empty(kind, labels)}")


class Asked(NamedTuple):
    """Of what, and of when."""

    kind: Kind
    source: WindowSource
    since_unix_s: float | None
    until_unix_s: float | None
    rollup_s: float | None
    limit: int

    @property
    def newest(self) -> bool:
        """Of no time in particular: only the newest of each series."""
        return self.since_unix_s is None and self.until_unix_s is None


def _range(kind: Kind, since: str | None, until: str | None) -> tuple[float | None, float | None]:
    if kind is Kind.WINDOWS and since is None:
        since = "15m"
    last = None if until is None else moment("--until", until)
    return (None if since is None else moment("--since", since)), last


def _read(store: ResultStore, asked: Asked) -> Iterable[Any]:
    match asked.kind:
        case Kind.WINDOWS:
            return store.windows(asked.source, asked.since_unix_s or 0.0, asked.until_unix_s, MOST, asked.rollup_s)
        case Kind.ALERTS:
            return store.alerts(asked.limit)
        case Kind.DRIFT:
            return _of_models(store, Drift, asked)
        case _:
            return _qualities(store, asked)


def _of_models(store: ResultStore, kind: type[M], asked: Asked) -> list[M]:
    if asked.newest:
        return store.newest(kind, asked.limit)
    until = inf if asked.until_unix_s is None else asked.until_unix_s
    return store.ended(kind, asked.since_unix_s or 0.0, until, asked.limit)


def _qualities(store: ResultStore, asked: Asked) -> list[Quality]:
    """Labels come late, and the newest may have none: then the newest that has some, too."""
    from streammon_sinks.ids import quality_id

    measured = store.newest(Quality, asked.limit, notable=True) if asked.newest else []
    found = {quality_id(each): each for each in [*measured, *_of_models(store, Quality, asked)]}
    return sorted(found.values(), key=lambda each: each.end_unix_s, reverse=True)


def _labels(pairs: list[str]) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise ConfigError(f"--where is {wrong[0]!r}, expected LABEL=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


_LABELS: Final = ("service", "model", "model_version", "target", "detector", "by")


def _labels_of(result: Any) -> Mapping[str, str]:
    match result:
        case Window():
            return result.series
        case Alert():
            return result.labels
    found = {name: value for name in _LABELS if (value := getattr(result, name, None)) is not None}
    return found | getattr(result, "slice", {})


def _length(text: str | None) -> float | None:
    """A duration in seconds."""
    if text is None:
        return None
    number, unit_s = (text[:-1], AGES_S[text[-1]]) if text[-1:] in AGES_S else (text, 1)
    try:
        return float(number) * unit_s
    except ValueError:
        raise ConfigError(f"--rollup is {text!r}, expected a length such as 1m") from None


def _why_empty(kind: Kind, labels: Mapping[str, str]) -> str:
    """What to do when there is nothing, where that is not plain."""
    if labels:
        return f" with {' '.join(f'{name}={value}' for name, value in labels.items())}"
    return {
        Kind.DRIFT: ": the inputs and outputs of models are tested once there is a reference to hold them against, "
        "window by window; see docs/drift.md",
        Kind.QUALITY: ": predictions need an event_id, and labels with the same one; see docs/labels.md",
    }.get(kind, "")


# -- rows ----------------------------------------------------------------------------------------------


class Shown(NamedTuple):
    """A result as a row of a table."""

    row: Callable[[Any], dict[str, Any]]
    columns: tuple[str, ...] = ()


def _window_columns(source: WindowSource) -> tuple[str, ...]:
    measured = ("per s", "errors", "p50", "p90", "p99") if source is WindowSource.INFERENCE else ("measured",)
    return ("start", "part", "count", *measured, "series")


def _window_row(window: Window) -> dict[str, Any]:
    row = {
        "start": clock_time(window.start_unix_s),
        "series": _pairs(window.series),
        "part": window.part,
        "count": window.count,
        "per s": f"{window.throughput_per_s:.1f}",
        "errors": "" if window.error_rate is None else f"{window.error_rate:.2%}",
        "measured": " ".join(_measured_of(window)),
    }
    if window.duration_s is not None:
        row |= {name: f"{getattr(window.duration_s, name) * 1000:.1f} ms" for name in ("p50", "p90", "p99")}
    return row


def _measured_of(window: Window) -> Iterator[str]:
    """What was measured: values as they were last, what was added in a second, and how high values were."""
    for name, gauge in (window.gauges or {}).items():
        yield f"{name}={gauge.last:.4g}"
    for name, counter in (window.counters or {}).items():
        yield f"{name}={counter.per_s:.4g}/s"
    for name, values in (window.distributions or {}).items():
        yield f"{name}:p50={values.p50:.4g},p99={values.p99:.4g}"


def _alert_row(alert: Alert) -> dict[str, Any]:
    return {
        "state": alert.state,
        "severity": alert.severity,
        "rule": alert.rule,
        "labels": _pairs(alert.labels),
        "condition": alert.condition,
        "started": clock_time(alert.started_unix_s),
        "ended": "" if alert.ended_unix_s is None else clock_time(alert.ended_unix_s),
    }


def _drift_row(drift: Drift) -> dict[str, Any]:
    unchanged = "as before" if drift.extent < drift.threshold else "may be chance"
    return _model_columns(drift) | {
        "ended": clock_time(drift.end_unix_s),
        "state": "drifted" if drift.drifted else drift.reason or unchanged,
        "target": drift.target,
        "detector": drift.detector,
        "effect": f"{drift.extent:.4g}",
        "threshold": f"{drift.threshold:.4g}",
        "p": "" if drift.p_value is None else f"{drift.p_value:.2g}",
        "values": drift.sample_size,
        "reference": drift.reference or "",
    }


def _quality_row(quality: Quality) -> dict[str, Any]:
    delay, measures = quality.label_delay_s, _measured(quality)
    return _model_columns(quality) | {
        "ended": clock_time(quality.end_unix_s),
        "slice": _pairs(quality.slice),
        "by": quality.by,
        "labelled": quality.labelled if quality.by == "label" else f"{quality.labelled} of {quality.predictions}",
        "label delay": "" if delay is None else f"{delay.p50:.3g} s",
        "measured": next(measures, ""),
        "also": " ".join(measures),
        "estimated accuracy": "" if quality.estimated_accuracy is None else f"{quality.estimated_accuracy:.1%}",
        "disparity": next(iter(_disparities(quality)), ""),
    }


_SHARES: Final = ("accuracy", "f1")
_MEASURES: Final = ("accuracy", "mae", "score", "rating", "f1", "auc", "log_loss", "calibration_error", "rmse", "bias")
"""Those that a line has room for, what matters most first."""


def _measured(quality: Quality) -> Iterator[str]:
    """What was measured; the first with its interval."""
    first = True
    for name in _MEASURES:
        if (value := getattr(quality, name)) is not None:
            form = ".1%" if name in _SHARES else ".3g"
            around = quality.intervals.get(name) if first else None
            yield f"{name}={value:{form}}" + (
                "" if around is None else f" ({around.low:{form}} to {around.high:{form}})"
            )
            first = False


def _disparities(quality: Quality) -> Iterator[str]:
    """How far a slice is from everybody else, what matters most first."""
    for name in _MEASURES:
        if (value := quality.disparity.get(name)) is not None:
            yield f"{name} {100 * value:+.1f} points" if name in _SHARES else f"{name} {value:+.3g}"


def _model_columns(result: Drift | Quality) -> dict[str, Any]:
    return {
        "model": "/".join(name for name in (result.service, result.model) if name),
        "version": result.model_version or "",
    }


def _pairs(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


_SHOWN: Final = {
    Kind.WINDOWS: Shown(_window_row),
    Kind.ALERTS: Shown(_alert_row, ("state", "severity", "rule", "labels", "condition", "started", "ended")),
    Kind.DRIFT: Shown(
        _drift_row,
        (
            "ended",
            "model",
            "version",
            "target",
            "state",
            "effect",
            "threshold",
            "p",
            "detector",
            "values",
            "reference",
        ),
    ),
    Kind.QUALITY: Shown(
        _quality_row,
        (
            "ended",
            "model",
            "version",
            "slice",
            "by",
            "labelled",
            "label delay",
            "measured",
            "estimated accuracy",
            "disparity",
            "also",
        ),
    ),
}
