"""Ids derived from the result itself, so that writing a result again is recognised by every destination."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Any

import msgspec

from streammon.results import Alert, Drift, Loop, Quality, Slo, Window


def window_id(window: Window) -> str:
    """The same for every delivery of this window record and different for every other: 22 characters.

    The partition is part of it: what has no series of its own (``series`` empty, or `OTHER`) is once in each.
    """
    series = sorted(window.series.items())
    shape = () if window.kind == "tumbling" else (window.kind, window.every_s, window.gap_s)
    return _digest(
        window.source,
        window.partition,
        series,
        window.start_unix_s,
        window.size_s,
        window.part,
        window.revision,
        *shape,
    )


def transition_id(result: Alert | Loop) -> str:
    """The same for every delivery of this transition of this alert or retraining: 22 characters."""
    return _digest(result.id, result.transition)


def budget_id(slo: Slo) -> str:
    """The same for every record about the error budget of this objective and series: 22 characters."""
    return _digest(slo.slo, slo.partition, sorted(slo.series.items()))


def budget_record_id(slo: Slo) -> str:
    """The same for every delivery of this record; a supplement makes another one about the same time."""
    return _digest(budget_id(slo), slo.end_unix_s, slo.good, slo.total)


def drift_series(drift: Drift) -> str:
    """The same for every test of this target of this model version by this detector: 22 characters."""
    return _digest(drift.service, drift.model, drift.model_version, drift.target, drift.detector)


def drift_id(drift: Drift) -> str:
    """The same for every test over this time against this reference; one that late events change comes again."""
    return _digest(drift_series(drift), drift.reference, drift.start_unix_s, drift.end_unix_s)


def drift_record_id(drift: Drift) -> str:
    """The same for every delivery of this record."""
    return _digest(drift_id(drift), drift.sample_size, drift.statistic)


def quality_series(quality: Quality) -> str:
    """The same for all times of this model version, or of this slice of it: 22 characters."""
    of = (quality.service, quality.model, quality.model_version, sorted(quality.slice.items()))
    return _digest(*of, quality.by, quality.size_s, quality.partition)


def quality_id(quality: Quality) -> str:
    """The same for every revision of what is said about this time."""
    return _digest(quality_series(quality), quality.start_unix_s, quality.end_unix_s)


def quality_record_id(quality: Quality) -> str:
    """The same for every delivery of this revision."""
    return _digest(quality_id(quality), quality.revision)


def _digest(*parts: Any) -> str:
    """128 bits in URL-safe base64, the form that Elasticsearch stores in the fewest bytes."""
    return urlsafe_b64encode(blake2b(msgspec.json.encode(parts), digest_size=16).digest())[:22].decode()
