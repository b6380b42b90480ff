"""Results as Elasticsearch documents: the names they get there, and the mapping that goes with them.

A document carries everything its result has. What the Elastic Common Schema or OpenTelemetry's semantic
conventions have a name for gets that name; everything keeps its name on the wire, below ``streammon``,
unless it is renamed here. The versions of both conventions are in every document.

=====================================  ====================================================================
`Window`                               document
=====================================  ====================================================================
start_unix_s                           ``@timestamp``, ``event.start``
end_unix_s, size_s                     ``event.end``, ``event.duration`` (nanoseconds)
source                                 ``event.dataset``: ``streammon.window`` or ``streammon.resource``
of_s (a rollup)                        ``event.dataset``: ``streammon.rollup``, a data stream of its own
series (renamed)                       ``labels.*``, and the labels in `SERIES_NAMES` under those names too
duration_s, ttft_s, tpot_s (renamed)   `DISTRIBUTION_NAMES` with ``.count .sum .min .max .mean .p50 …``
input_tokens.sum, output_tokens.sum    `SUM_NAMES`
exemplars[].trace_id                   ``trace.id``
=====================================  ====================================================================

Of `Drift` and `Quality`, what the series is made of is in ``labels.*`` likewise. A `Quality` that is revised is another
document with the same ``event.id``: the one with the highest ``streammon.revision`` counts.

``@timestamp`` is the *start* of the window: a minute in Kibana then sums exactly the windows that lie in it.
Rollups hold the same events again, in several lengths (``streammon.size_s``): filter by one of them.
Sketches are kept but not indexed, so take the maximum of a percentile over time, never its average.
Gauges, counters, distributions of resources, and costs are searchable under whatever names they have, up to
`MAX_FIELDS` fields in all; what is beyond that, or unknown to this mapping, is kept but not searchable.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from streammon.results import COUNTERS, DISTRIBUTIONS, Alert, Drift, Loop, Quality, Slo, Window
from streammon_sinks.ids import drift_id, quality_id

Json = dict[str, Any]

ECS_VERSION: Final = "8.17.0"
SEMCONV_VERSION: Final = "1.37.0"
MAX_FIELDS: Final = 1000
MAX_LONG: Final = 2**63 - 1

WINDOWS: Final = "metrics-streammon.window"
RESOURCES: Final = "metrics-streammon.resource"
ROLLUPS: Final = "metrics-streammon.rollup"
ALERTS: Final = "logs-streammon.alert"
SLOS: Final = "metrics-streammon.slo"
DRIFT: Final = "metrics-streammon.drift"
QUALITY: Final = "metrics-streammon.quality"
LOOPS: Final = "logs-streammon.loop"
STREAMS: Final = (WINDOWS, RESOURCES, ROLLUPS, ALERTS, SLOS, DRIFT, QUALITY, LOOPS)
"""Data streams, without the namespace."""

SERIES_NAMES: Final = {
    "service": "service.name",
    "host": "host.name",
    "endpoint": "http.route",
    "model": "gen_ai.request.model",
    "provider": "gen_ai.provider.name",
}
DISTRIBUTION_NAMES: Final = {
    "duration_s": "gen_ai.server.request.duration",
    "ttft_s": "gen_ai.server.time_to_first_token",
    "tpot_s": "gen_ai.server.time_per_output_token",
}
SUM_NAMES: Final = {
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
}


MEASURES: Final = (
    "accuracy", "precision", "recall", "f1", "log_loss", "calibration_error", "auc", "mae", "rmse", "bias", "score",
    "rating", "estimated_accuracy", "estimation_error", "mean_estimation_error",
)  # fmt: skip
"""The fields of a `Quality` that say how good."""


def stream_of(result: Window | Alert) -> str:
    """The data stream of a result, without the namespace."""
    if isinstance(result, Alert):
        return ALERTS
    if not result.is_base:
        return ROLLUPS
    return RESOURCES if result.source == "resource" else WINDOWS


def window_document(window: Window) -> Json:
    """The document of a window; see the table at the top of this module."""
    fields = msgspec.to_builtins(window)
    document = _common(fields, at_unix_s=window.start_unix_s, kind="metric", stream=stream_of(window))
    document |= {
        "event.category": ["host" if window.source == "resource" else "api"],
        "event.start": _ms(window.start_unix_s),
        "event.end": _ms(window.end_unix_s),
        "event.duration": round(window.size_s * 1e9),
    }
    if traces := [each.trace_id for each in window.exemplars or () if each.trace_id]:
        document["trace.id"] = traces
    for field, name in SUM_NAMES.items():
        if field in fields:
            document[name] = min(round(fields[field]["sum"]), MAX_LONG)
    document |= {name: fields.pop(field) for field, name in DISTRIBUTION_NAMES.items() if field in fields}
    for named_by_users in ("gauges", "counters", "distributions", "cost"):
        if named_by_users in fields:
            fields[named_by_users] = {_path(name): value for name, value in fields[named_by_users].items()}
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


def _path(name: str) -> str:
    """A name as Elasticsearch takes it: dots lead into objects, so nothing between two of them may be empty."""
    return ".".join(part if part.strip() else "_" for part in name.split("."))


def alert_document(alert: Alert) -> Json:
    """The document of one transition of an alert; ``@timestamp`` is when it happened."""
    fields = msgspec.to_builtins(alert)
    document = _common(fields, at_unix_s=alert.updated_unix_s, kind="alert", stream=ALERTS)
    document |= {
        "event.id": alert.id,
        "event.action": alert.state,
        "event.start": _ms(alert.started_unix_s),
        "log.level": alert.severity,
        "message": alert.summary,
        "rule.name": alert.rule,
        "rule.version": alert.rule_version,
    }
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


def budget_document(slo: Slo) -> Json:
    """The document of a record about an error budget; ``@timestamp`` is when its time ends."""
    fields = msgspec.to_builtins(slo)
    document = _common(fields, at_unix_s=slo.end_unix_s, kind="metric", stream=SLOS)
    document |= {"event.start": _ms(slo.start_unix_s), "event.end": _ms(slo.end_unix_s)}
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


def drift_document(drift: Drift) -> Json:
    """The document of one test of one target; ``@timestamp`` is the start of what was tested."""
    fields = msgspec.to_builtins(drift)
    fields["series"] = _labels_of_model(fields, "target", "detector")
    document = _common(fields, at_unix_s=drift.start_unix_s, kind="metric", stream=DRIFT)
    document |= _span(drift) | {"event.id": drift_id(drift)}
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


def quality_document(quality: Quality) -> Json:
    """The document of one revision of the quality of a model in one time, at whose start ``@timestamp`` is."""
    fields = msgspec.to_builtins(quality)
    fields |= {name: getattr(quality, name) for name in _QUALITY_COUNTS}  # 0 too, which the wire leaves out
    fields["series"] = quality.slice | _labels_of_model(fields, "by")
    fields["intervals"] = {name: msgspec.structs.asdict(each) for name, each in quality.intervals.items()}
    document = _common(fields, at_unix_s=quality.start_unix_s, kind="metric", stream=QUALITY)
    document |= _span(quality) | {"event.id": quality_id(quality)}
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


_OUTCOMES: Final = {"helped": "success", "failed": "failure", "timed_out": "failure", "worse": "failure"}
"""In the words of ECS; all others are ``unknown``."""


def loop_document(loop: Loop) -> Json:
    """The document of one transition of a retraining; ``@timestamp`` is when it happened."""
    fields = msgspec.to_builtins(loop) | {"transition": loop.transition}
    fields["series"] = _labels_of_model(fields)
    document = _common(fields, at_unix_s=loop.time_unix_s, kind="event", stream=LOOPS)
    document |= {"event.id": loop.id, "event.action": loop.state, "event.start": _ms(loop.requested_unix_s)}
    if loop.outcome is not None:
        document["event.outcome"] = _OUTCOMES.get(loop.outcome, "unknown")
    return document | {"streammon": fields | {"semconv": SEMCONV_VERSION}}


def _labels_of_model(fields: Json, *others: str) -> dict[str, str]:
    """What tells the series of a result about a model, as the series of a window does."""
    return {name: fields[name] for name in ("service", "model", "model_version", *others) if fields.get(name)}


def _span(result: Drift | Quality) -> Json:
    length_s = max(0.0, result.end_unix_s - result.start_unix_s)
    return {
        "event.start": _ms(result.start_unix_s),
        "event.end": _ms(result.end_unix_s),
        "event.duration": min(round(length_s * 1e9), MAX_LONG),
    }


def _common(fields: Json, *, at_unix_s: float, kind: str, stream: str) -> Json:
    """What all documents begin with; takes the labels out of ``fields``."""
    labels = fields.pop("series", None) or fields.pop("labels", {})
    return {
        "@timestamp": _ms(at_unix_s),
        "ecs.version": ECS_VERSION,
        "event.kind": kind,
        "event.module": "streammon",
        "event.dataset": stream.partition("-")[2],
        "event.type": ["info"],
        "labels": labels,
    } | {name: labels[label] for label, name in SERIES_NAMES.items() if label in labels}


def _ms(unix_s: float) -> int:
    return round(unix_s * 1000)


# ---------------------------------------------------------------- the mapping

_KEYWORD: Final = {"type": "keyword", "ignore_above": 1024}
_LONG: Final = {"type": "long"}
_DOUBLE: Final = {"type": "double"}
_DATE: Final = {"type": "date"}
_TEXT: Final = {"type": "text"}
_KEPT: Final = {"type": "object", "enabled": False}
_OPEN: Final = {"type": "object", "dynamic": True}
_NAMED_BY_OTHERS: Final = ("gauges", "counters", "distributions", "cost", "intervals", "disparity")
_DISTRIBUTION: Final = {
    "properties": {
        "count": _LONG,
        **dict.fromkeys(("sum", "min", "max", "mean", "p50", "p90", "p99"), _DOUBLE),
        "sketch": _KEPT,
    }
}
_COMPLETENESS: Final = {
    "properties": {
        **dict.fromkeys(COUNTERS, _LONG),
        "watermark_unix_s": _DOUBLE,
    }
}
_COMMON_FIELDS: Final = {
    "@timestamp": _DATE,
    "ecs.version": _KEYWORD,
    "event": {
        "properties": {
            **dict.fromkeys(("kind", "module", "dataset", "category", "type", "action", "id", "outcome"), _KEYWORD),
            "start": _DATE,
            "end": _DATE,
            "duration": _LONG,
        }
    },
    "labels": {"type": "flattened", "ignore_above": 1024},
    **dict.fromkeys(SERIES_NAMES.values(), _KEYWORD),
}
_WINDOW_FIELDS: Final = {
    "trace.id": _KEYWORD,
    **dict.fromkeys(DISTRIBUTION_NAMES.values(), _DISTRIBUTION),
    **dict.fromkeys(SUM_NAMES.values(), _LONG),
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "source", "part", "kind", "semconv"), _KEYWORD),
            **dict.fromkeys(("schema", "revision", "partition", "count", "error_count"), _LONG),
            **dict.fromkeys(("start_unix_s", "end_unix_s", "size_s", "of_s", "every_s", "gap_s"), _DOUBLE),
            **dict.fromkeys(("error_rate", "throughput_per_s"), _DOUBLE),
            **dict.fromkeys((each for each in DISTRIBUTIONS if each not in DISTRIBUTION_NAMES), _DISTRIBUTION),
            "completeness": _COMPLETENESS,
            **dict.fromkeys(("gauges", "counters", "distributions"), _OPEN),
            "cost": _OPEN,
            "exemplars": _KEPT,
        }
    },
}
_ALERT_FIELDS: Final = {
    "message": _TEXT,
    **dict.fromkeys(("log.level", "rule.name", "rule.version"), _KEYWORD),
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "id", "rule", "rule_version", "state", "severity", "semconv"), _KEYWORD),
            **dict.fromkeys(("condition", "contact", "escalation", "runbook_url", "action"), _KEYWORD),
            **dict.fromkeys(("schema", "transition"), _LONG),
            **dict.fromkeys(("value", "started_unix_s", "updated_unix_s", "ended_unix_s"), _DOUBLE),
            **dict.fromkeys(("summary", "resolution_steps"), _TEXT),
            "evidence": _KEPT,
        }
    },
}
_SLO_FIELDS: Final = {
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "slo", "indicator", "semconv"), _KEYWORD),
            **dict.fromkeys(("schema", "partition", "good", "total"), _LONG),
            **dict.fromkeys(("objective", "window_s", "start_unix_s", "end_unix_s", "budget_left"), _DOUBLE),
            "burn_rates": {"properties": dict.fromkeys(("1h", "6h", "3d"), _DOUBLE)},
        }
    },
}
_DRIFT_FIELDS: Final = {
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "service", "model", "model_version", "target", "detector"), _KEYWORD),
            **dict.fromkeys(("reference", "reason", "semconv"), _KEYWORD),
            **dict.fromkeys(("schema", "sample_size", "reference_size"), _LONG),
            **dict.fromkeys(("statistic", "threshold", "effect", "p_value", "q_value", "weight"), _DOUBLE),
            **dict.fromkeys(("start_unix_s", "end_unix_s"), _DOUBLE),
            "drifted": {"type": "boolean"},
        }
    },
}
_QUALITY_COUNTS: Final = ("revision", "predictions", "labelled", "judged", "confident", "unmatched_labels")
_QUALITY_FIELDS: Final = {
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "service", "model", "model_version", "by", "semconv"), _KEYWORD),
            **dict.fromkeys(("schema", "partition", *_QUALITY_COUNTS), _LONG),
            **dict.fromkeys(("start_unix_s", "end_unix_s", "size_s", "coverage", *MEASURES), _DOUBLE),
            "slice": {"type": "flattened", "ignore_above": 1024},
            "label_delay_s": _DISTRIBUTION,
            "intervals": _OPEN,
            "disparity": _OPEN,
        }
    },
}
_LOOP_FIELDS: Final = {
    "streammon": {
        "properties": {
            **dict.fromkeys(("type", "id", "service", "model", "action", "state", "by", "semconv"), _KEYWORD),
            **dict.fromkeys(("old_version", "new_version", "job", "run_id", "outcome", "why"), _KEYWORD),
            **dict.fromkeys(("schema", "transition"), _LONG),
            **dict.fromkeys(("time_unix_s", "requested_unix_s", "deadline_unix_s"), _DOUBLE),
            "detail": _TEXT,
            **dict.fromkeys(("times", "reasons", "comparison", "guards"), _KEPT),
        }
    },
}
_FIELDS_OF: Final[dict[str, Json]] = {
    ALERTS: _ALERT_FIELDS,
    SLOS: _SLO_FIELDS,
    DRIFT: _DRIFT_FIELDS,
    QUALITY: _QUALITY_FIELDS,
    LOOPS: _LOOP_FIELDS,
}


def index_template(stream: str) -> Json:
    """The composable index template of one of the data streams, for every namespace.

    The cluster's own settings (`cluster_settings`) and yours (``…@custom``) are used where they exist.
    """
    components = [cluster_settings(stream), f"{stream}@custom"]
    return {
        "index_patterns": [f"{stream}-*"],
        "data_stream": {},
        "priority": 200,  # above the 100 of the built-in templates for metrics-*-* and logs-*-*
        "composed_of": components,
        "ignore_missing_component_templates": components,
        "template": {
            "settings": {
                "index.auto_expand_replicas": "0-1",
                "index.mapping.total_fields.limit": MAX_FIELDS,
                "index.mapping.total_fields.ignore_dynamic_beyond_limit": True,
            },
            "mappings": {
                "dynamic": False,
                "dynamic_templates": [
                    _dynamic("streammon.distributions.*.sketch", "object", _KEPT),
                    *(
                        _dynamic(f"streammon.{name}.*", kind, _DOUBLE)  # whichever kind of number comes first
                        for name in _NAMED_BY_OTHERS
                        for kind in ("long", "double")
                    ),
                ],
                "properties": _COMMON_FIELDS | _FIELDS_OF.get(stream, _WINDOW_FIELDS),
            },
        },
        "_meta": {"managed_by": "streammon", "ecs": ECS_VERSION, "semconv": SEMCONV_VERSION},
    }


def cluster_settings(stream: str) -> str:
    """The component template in which a cluster keeps its settings, retention among them, for such data."""
    return f"{stream.partition('-')[0]}@settings"


def constants(stream: str) -> Json:
    """Mappings of what Kibana filters data streams by; need ``constant_keyword``, which a cluster may lack."""
    kind, _, dataset = stream.partition("-")
    values = {"data_stream.type": kind, "data_stream.dataset": dataset}
    return {name: {"type": "constant_keyword", "value": value} for name, value in values.items()}


def _dynamic(path: str, kind: str, mapping: Json) -> Json:
    """Values of this kind below a path are mapped so, whatever their names."""
    return {f"{path} {kind}": {"path_match": path, "match_mapping_type": kind, "mapping": mapping}}
