"""What streammon says: windows, drift, runs, alerts and error budgets, exactly as they travel on the result topics.

Structs for the wire only. Field names are binding; see `streammon.events` for the conventions.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.events import MAX_COUNT, _schema
from streammon.sketch import Sketch

Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
Change = Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)]


def bounded(total: int) -> int:
    """A sum of what others claim, kept a `Change`."""
    return max(-MAX_COUNT, min(total, MAX_COUNT))


LARGEST = sys.float_info.max
"""JSON has no infinity: a sum beyond the largest float is given as the largest float."""


def finite(total: float) -> float:
    """A sum, kept within what JSON can hold: see `LARGEST`."""
    return min(max(total, -LARGEST), LARGEST)


OTHER = "__other__"
"""The label value of the series that sums whatever is beyond the cap of distinct series."""


class Result(Struct, kw_only=True, omit_defaults=True, gc=False):
    """What every result carries."""

    schema: int = msgspec.field(default_factory=_schema)


class Distribution(Struct, kw_only=True, gc=False):
    """The values of one field in one window. ``count`` of them had the field.

    Quantiles are read from the sketch: at most 0.55 % from the exact nearest-rank quantile.
    """

    count: Count
    sum: float
    min: float
    max: float
    mean: float
    p50: float
    p90: float
    p99: float
    sketch: Sketch


class Gauge(Struct, kw_only=True, omit_defaults=True, gc=False):
    """A sampled quantity in one window; ``last`` is the value with the highest event time, of ``count`` samples."""

    min: float
    max: float
    mean: float
    last: float
    count: Count = 0


class Counter(Struct, kw_only=True, gc=False):
    """What was added to a counter in one window: how much, and how much in a second of it."""

    sum: float
    per_s: float


def counters_of(sums: Mapping[str, float], size_s: float) -> dict[str, Counter] | None:
    """The counters of a window of this length, by name."""
    return {name: Counter(sum=total, per_s=total / size_s) for name, total in sorted(sums.items())} or None


class Exemplar(Struct, kw_only=True, omit_defaults=True, gc=False):
    """A concrete slow request of the window, to open in a tracing tool."""

    duration_s: float
    trace_id: str | None = None
    event_id: str | None = None


class Completeness(Struct, kw_only=True, gc=False):
    """What else was sent and is not in ``count``; in events, but ``missing``, which counts batches.

    Summed over all windows of an agent's events:
    ``sent = count of main windows + late + duplicate + rejected + dropped``.
    Each event is reported once: with its own series where that is known, else in a window of the
    partition with an empty ``series`` and ``count`` 0. ``missing`` falls when a lost batch turns up after all.
    """

    late: Count = 0
    duplicate: Count = 0
    missing: Change = 0
    rejected: Count = 0
    dropped: Count = 0
    watermark_unix_s: float = 0.0


COUNTERS = tuple(name for name in Completeness.__struct_fields__ if name != "watermark_unix_s")
"""Its fields that add."""

Kind = Literal["tumbling", "hopping", "session"]


class Window(Result, tag_field="type", tag="window"):
    """One series in one window ``[start, end)``.

    ``part`` "main" with ``revision`` 0 is written once, when the window closes, and never changes. Events that
    come later are in further windows of the same series and start, ``part`` "late" with ``revision`` 1, 2, …:
    counts, sums and sketches add.

    A *base window* is made of events. A *rollup* is made of windows, and has ``of_s``: the same events are in the
    base windows too, so never add windows of different ``size_s`` or ``kind``.
    """

    source: str
    part: Literal["main", "late"]
    revision: Count
    series: dict[str, str]
    start_unix_s: float
    end_unix_s: float
    size_s: float
    partition: Count
    count: Count
    throughput_per_s: float
    completeness: Completeness
    error_count: Count | None = None
    error_rate: float | None = None
    duration_s: Distribution | None = None
    ttft_s: Distribution | None = None
    tpot_s: Distribution | None = None
    queue_s: Distribution | None = None
    queue_length: Distribution | None = None
    input_tokens: Distribution | None = None
    output_tokens: Distribution | None = None
    cache_read_tokens: Distribution | None = None
    cache_write_tokens: Distribution | None = None
    reasoning_tokens: Distribution | None = None
    confidence: Distribution | None = None
    gauges: dict[str, Gauge] | None = None
    counters: dict[str, Counter] | None = None
    distributions: dict[str, Distribution] | None = None
    """Of what senders named themselves; the fields above are those of inference events."""
    exemplars: list[Exemplar] | None = None
    cost: dict[str, float] | None = None
    of_s: float | None = None
    """Only in a rollup: the length of the windows it is the sum of."""
    kind: Kind = "tumbling"
    every_s: float | None = None
    """Hopping: a window starts this often."""
    gap_s: float | None = None
    """Session: the silence that ends one."""

    @property
    def is_base(self) -> bool:
        """Made of events: the windows to show and to add, unless somebody asks for others."""
        return self.of_s is None


DISTRIBUTIONS = (
    "duration_s", "ttft_s", "tpot_s", "queue_s", "queue_length", "input_tokens", "output_tokens",
    "cache_read_tokens", "cache_write_tokens", "reasoning_tokens", "confidence",
)  # fmt: skip
"""The fields of an inference event that become a `Distribution` of the same name."""


class Drift(Result, tag_field="type", tag="drift"):
    """One test of one target (a feature, a prediction, a score) against its reference.

    The target ``dataset`` is all of a model: which share of it has drifted.
    """

    model: str
    target: str
    detector: str
    statistic: float
    threshold: float
    drifted: bool
    sample_size: int
    start_unix_s: float
    end_unix_s: float
    p_value: float | None = None
    reference: str | None = None
    service: str | None = None
    """Whose model it is; with the version, the target and the detector, it tells the series."""
    model_version: str | None = None
    effect: float | None = None
    """The statistic without what chance alone brings on average; drift reaches the threshold by it."""
    q_value: float | None = None
    """The p-value, adjusted for all that was tested at the same time."""
    weight: float | None = None
    """How much the target matters. Tests of profiles have one; detectors have none."""
    reference_size: int | None = None
    reason: str | None = None
    """Why it was not tested, such as ``too_few_samples``; nothing has drifted then."""

    @property
    def extent(self) -> float:
        """What is held against the threshold: the effect, of tests that tell it."""
        return self.statistic if self.effect is None else self.effect


class Interval(Struct, frozen=True, array_like=True):
    """Where a value lies, with 95 % confidence."""

    low: float
    high: float


class Quality(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="quality"):
    """How good the predictions of one model version were, of all of them or of a slice, in ``[start, end)``.

    ``by`` "prediction": of those made in that time, as far as labels have come; a new ``revision``, which replaces the
    one before, whenever more have. "label": of those whose labels came in that time, the prequential order; once.
    A measure is None where it does not apply, or where too little is known.
    """

    service: str
    model: str
    model_version: str | None = None
    slice: dict[str, str] = {}
    """Of predictions with this value; empty: of all."""
    by: Literal["prediction", "label"]
    revision: Count = 0
    start_unix_s: float
    end_unix_s: float
    size_s: float
    partition: Count
    predictions: Count = 0
    """Made in that time; only by prediction."""
    labelled: Count = 0
    judged: Count = 0
    """Of these, those with a prediction to compare: what accuracy, or the errors of numbers, are of."""
    confident: Count = 0
    """Of these, those with a confidence: what `estimation_error` is of."""
    scored: Count = 0
    rated: Count = 0
    """Predictions that users gave a score, or a rating."""
    final: bool = False
    """By prediction: nothing more is waited for."""
    coverage: float | None = None
    """The share of predictions that have a label, of those that can have one."""
    unmatched_labels: Count = 0
    label_delay_s: Distribution | None = None
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    average: Literal["binary", "macro"] | None = None
    """Of what precision, recall and F1 are: of the positive class, or the mean over classes."""
    log_loss: float | None = None
    calibration_error: float | None = None
    """Expected calibration error: how far confidence is from accuracy, on average over bins of confidence."""
    auc: float | None = None
    """Area under the ROC curve."""
    mae: float | None = None
    rmse: float | None = None
    bias: float | None = None
    """Mean of prediction minus label."""
    score: float | None = None
    rating: float | None = None
    """Mean of what users gave."""
    estimated_accuracy: float | None = None
    """From confidence alone, before labels come: an estimate, never a measurement. By label: what they were expected to
    tell."""
    estimation_error: float | None = None
    """What it was off by, once labels are there: estimated minus measured, of predictions with a confidence."""
    mean_estimation_error: float | None = None
    """How far off such estimates have been, either way, on average; the newest count most."""
    estimates: dict[str, float] = {}
    """Of two classes, estimated likewise: precision, recall, f1, auc."""
    intervals: dict[str, Interval] = {}
    """By measure."""
    disparity: dict[str, float] = {}
    """Of a slice: by measure, how far it is from that of everybody else; `intervals` has it as ``disparity.NAME``."""


class Run(Result, tag_field="type", tag="run"):
    """The folded state of one pipeline run; one record each time that it is in another one."""

    job: str
    run_id: str
    state: str
    started_unix_s: float | None = None
    ended_unix_s: float | None = None
    nominal_time_unix_s: float | None = None
    """When it should begin."""
    updated_unix_s: float | None = None
    """Since when it is in this state; of a run that never began, or is lost, nothing else says that."""

    @property
    def time_unix_s(self) -> float | None:
        """Since when it is in this state, as far as it says."""
        known = (self.updated_unix_s, self.ended_unix_s, self.started_unix_s, self.nominal_time_unix_s)
        return next((time for time in known if time is not None), None)

    @property
    def duration_s(self) -> float | None:
        """How long it took, or has taken so far; None if it has not begun."""
        until = self.ended_unix_s if self.ended_unix_s is not None else self.time_unix_s
        return None if self.started_unix_s is None or until is None else until - self.started_unix_s


AlertState = Literal["pending", "firing", "acknowledged", "resolved", "no_data"]
Severity = Literal["critical", "warning", "info"]


class Alert(Result, tag_field="type", tag="alert"):
    """The newest state of one alert; one record a transition, under the same id."""

    id: str
    rule: str
    rule_version: str
    state: AlertState
    severity: Severity
    labels: dict[str, str]
    value: float | None
    condition: str
    summary: str
    started_unix_s: float
    updated_unix_s: float
    transition: Count
    ended_unix_s: float | None = None
    resolution_steps: list[str] = []
    contact: str | None = None
    escalation: list[str] = []
    runbook_url: str | None = None
    action: str | None = None
    """The remediation that its rule names."""
    evidence: dict[str, Any] = {}

    @property
    def has_fired(self) -> bool:
        """Whether anybody may be told: pending (transition 0) is a breach that may not last, and may end as such."""
        return self.state != "pending" and (self.state != "resolved" or self.transition != 1)


class Slo(Result, tag_field="type", tag="slo"):
    """How much is left of the error budget of one objective and series, in the time from start to end."""

    slo: str
    series: dict[str, str]
    objective: float
    indicator: str
    """Which requests are good, in words."""
    window_s: float
    partition: Count
    start_unix_s: float
    end_unix_s: float
    good: Count
    total: Count
    budget_left: float
    """Of the bad requests allowed, the share that has not happened yet: 1 at first, below 0 when it is missed."""
    burn_rates: dict[str, float] = {}
    """By time looked back, such as ``6h``, if there were requests: how many times faster than allowed they were bad."""


class CoMoving(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A series that moved as the alert's own did."""

    series: dict[str, str]
    field: str
    correlation: float
    """At the lag where it is strongest, from -1 to 1; below 0: it fell as the other rose."""
    lag_s: float
    """How long before the alert's own series it moved; below 0: after it."""


class Cause(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be behind an alert, and why it is suspected."""

    what: str
    why: str
    kind: str
    """Such as ``deploy``, ``cpu`` or ``run_failed``: see docs/evidence.md."""
    score: float
    """From 0 to 1; an order, not a probability."""
    at_unix_s: float
    lag_s: float
    """How long before the onset of the alert; below 0: after it."""
    labels: dict[str, str] = {}
    """What it is about: of a series, or of an event."""
    field: str | None = None


class Point(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One window of the alert's own series, in a few numbers."""

    start_unix_s: float
    count: Count
    value: float | None = None
    """Of the field that the alert is about."""
    error_rate: float | None = None
    p99_s: float | None = None


class Evidence(Result, tag_field="type", tag="evidence"):
    """What was found around the onset of an alert; one record a firing, under the id of the alert."""

    alert_id: str
    transition: Count
    """Of the alert's record that this explains."""
    onset_unix_s: float
    """When the alert's own series began to move, which may be before the rule was breached."""
    made_unix_s: float
    field: str | None = None
    """Of the alert's own series: the one that is explained."""
    window: dict[str, Any] = {}
    """That tripped the rule, with the trace ids of its slowest requests."""
    history: list[Point] = []
    comoving: list[CoMoving] = []
    """The strongest first."""
    causes: list[Cause] = []
    """The likeliest first."""
    notes: list[str] = []
    """What could not be looked at."""


LoopState = Literal[
    "awaiting_approval", "approved", "started", "training", "trained", "deployed", "confirming", "closed"
]
Outcome = Literal[
    "helped", "no_change", "worse",
    "failed", "refused", "withdrawn", "expired", "skipped", "timed_out", "overtaken", "dry_run",
]  # fmt: skip
"""How a retraining ended: the first three are measured, the others say why nothing was."""


class RetrainReason(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An alert for which a model is trained anew."""

    alert_id: str
    rule: str
    summary: str = ""
    time_unix_s: float
    """When it asked."""
    ended_unix_s: float | None = None


class Comparison(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A new version of a model against the one before it, by one measure."""

    measure: str
    """``accuracy`` or ``mae``, of labels; ``estimated_accuracy``, which is an estimate; ``error_rate`` and
    ``slow_rate``, of requests."""
    way: Literal["side_by_side", "before_after"]
    """Both in the same windows, or the new one's against what was the old one's before."""
    old: float
    new: float
    old_count: Count
    """Predictions that the value is of."""
    new_count: Count
    difference: float
    """New minus old."""
    interval: Interval
    """Where the difference lies; it holds at every look, however often one looks."""
    windows: Count
    """Of the new version."""
    start_unix_s: float
    end_unix_s: float


class Loop(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="loop"):
    """The newest state of one retraining, from what asked for it to whether it helped; under the same id throughout."""

    id: str
    """That of the remediation, and of the ``retrain`` change."""
    service: str
    model: str
    action: str
    state: LoopState
    transition: Count = 0
    time_unix_s: float
    """By the broker's clock."""
    requested_unix_s: float
    times: dict[str, float] = {}
    """By state, when it came to be in it."""
    deadline_unix_s: float | None = None
    """When it is given up if it is still in this state."""
    reasons: list[RetrainReason] = []
    """What asked for it: the first, and others that came while it was open."""
    by: str | None = None
    """Who said yes or no."""
    old_version: str | None = None
    new_version: str | None = None
    job: str | None = None
    """Of the run that trains it."""
    run_id: str | None = None
    outcome: Outcome | None = None
    """Only when it is closed."""
    why: str | None = None
    """The reason for the outcome, in one word; docs/retraining.md lists them."""
    detail: str | None = None
    """For people."""
    comparison: Comparison | None = None
    guards: list[Comparison] = []
    """What must not have become worse."""


RESULTS: dict[str, type[Result]] = {
    "windows": Window,
    "drift": Drift,
    "quality": Quality,
    "runs": Run,
    "alerts": Alert,
    "evidence": Evidence,
    "slos": Slo,
    "loops": Loop,
}
"""The result topics and what they carry."""
