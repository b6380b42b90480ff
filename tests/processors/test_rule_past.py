"""What rules say of the past, held against plain lists of all windows there ever were."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streammon.sketch import EMPTY, Sketch, bucket_bounds, bucket_index
from streammon_processors.rules.conditions.cel import DISTRIBUTION, NUMBER, Call, ExpressionError, Node, parse
from streammon_processors.rules.conditions.expression import MATHS, Evaluation, Floats, Truth, calls_of
from streammon_processors.rules.conditions.past import FUNCTIONS, NAMES, Look, Past, share_above, understand

STEP_S: Final = 10.0
KINDS: Final = {
    **dict.fromkeys(("x", "count", "error_count", "duration_s.count", "duration_s.p99"), NUMBER),
    **dict.fromkeys(("duration_s", "ttft_s"), DISTRIBUTION),
}


def call(text: str) -> Call:
    node, _ = parse(f"{text} > 0", KINDS, (*MATHS, *FUNCTIONS))
    [found] = calls_of(node, dict.fromkeys(NAMES))
    return found


def look(text: str) -> Look:
    return understand(call(text))


class Seen(NamedTuple):
    """A window: numbers of it, and its durations (None: it has none)."""

    x: float = math.nan
    errors: float = math.nan
    requests: float = math.nan
    durations: tuple[float, ...] | None = None
    sketched: bool = True
    """Whether its sketch is still there."""


class Windows:
    """Windows as columns (`expression.Columns`), without labels."""

    def __init__(self, windows: Sequence[Seen]) -> None:
        self._windows = windows
        self.sketches = [None if each.durations is None else Sketch.of(np.array(each.durations)) for each in windows]

    def number(self, name: str) -> Floats:
        return np.array([float(_NUMBERS[name](each)) for each in self._windows])

    def text(self, name: str) -> Sequence[str | None]:
        raise AssertionError(name)

    def of_labels(self, predicate: Node) -> Truth:
        raise AssertionError(predicate)

    def of_past(self, call: Call) -> Floats:
        assert call.function == "share_above"
        return np.array([share_above(each, understand(call).parameters[0]) for each in self.sketches])


_NUMBERS: Final[Mapping[str, Callable[[Seen], float]]] = {
    "x": lambda each: each.x,
    "error_count": lambda each: each.errors,
    "count": lambda each: each.requests,
    "duration_s.count": lambda each: math.nan if each.durations is None else len(each.durations),
}


# ---------------------------------------------------------------- the oracle


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _xs(windows: Sequence[Seen]) -> list[float]:
    return _known(each.x for each in windows)


def _total(values: Sequence[float]) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def average(windows: Sequence[Seen]) -> float:
    found = _xs(windows)
    return _total(found) / len(found) if found else math.nan


def total(windows: Sequence[Seen]) -> float:
    found = _xs(windows)
    return _total(found) if found else math.nan


def delta(windows: Sequence[Seen]) -> float:
    found = _xs(windows)
    return found[-1] - found[0] if len(found) > 1 else math.nan


def growth(windows: Sequence[Seen]) -> float:
    """A second, of a counter that begins anew at 0 where it falls."""
    places = [place for place, each in enumerate(windows) if not math.isnan(each.x)]
    if len(places) < 2:
        return math.nan
    grown, before = 0.0, windows[places[0]].x
    for place in places[1:]:
        now = windows[place].x
        grown += now - before if now >= before else now
        before = now
    return grown / ((places[-1] - places[0]) * STEP_S)


def allowed(objective: float) -> float:
    """What is left to 1 of the number as it is written."""
    return float(1 - Decimal(repr(objective)))


def burnt(objective: float) -> Callable[[Sequence[Seen]], float]:
    def of(windows: Sequence[Seen]) -> float:
        known = [each for each in windows if not math.isnan(each.errors) and not math.isnan(each.requests)]
        events = _total([each.requests for each in known])
        return _total([each.errors for each in known]) / events / allowed(objective) if events else math.nan

    return of


def slow(threshold: float, objective: float) -> Callable[[Sequence[Seen]], float]:
    def of(windows: Sequence[Seen]) -> float:
        values = _durations(windows)
        return sum(value > threshold for value in values) / len(values) / allowed(objective) if values else math.nan

    return of


def quantile(q: float) -> Callable[[Sequence[Seen]], float]:
    def of(windows: Sequence[Seen]) -> float:
        values = _durations([each for each in windows if each.sketched])
        return sorted(values)[max(1, math.ceil(q * len(values))) - 1] if values else math.nan

    return of


def _durations(windows: Sequence[Seen]) -> list[float]:
    return [value for each in windows for value in each.durations or ()]


EXACT, CLOSE, SKETCHED = 0.0, 1e-12, 0.0055
"""How far from the oracle: sums of eighths are exact in any order; a share times its count is rounded."""
BEHAVIOURS: Final[Mapping[str, tuple[int, float, Callable[[Sequence[Seen]], float]]]] = {
    "avg_over(x, '10s')": (1, EXACT, average),
    "avg_over(x, '70s')": (7, EXACT, average),
    "avg_over(x, '5m')": (30, EXACT, average),
    "sum_over(x, '30s')": (3, EXACT, total),
    "sum_over(x * 2 + 1, '40s')": (
        4,
        EXACT,
        lambda windows: total([each._replace(x=2 * each.x + 1) for each in windows]),
    ),
    "min_over(x, '30s')": (3, EXACT, lambda windows: min(_xs(windows), default=math.nan)),
    "max_over(x, '2m')": (12, EXACT, lambda windows: max(_xs(windows), default=math.nan)),
    "delta(x, '50s')": (5, EXACT, delta),
    "delta(x, '10s')": (1, EXACT, delta),
    "rate(x, '50s')": (5, EXACT, growth),
    "rate(x, '5m')": (30, EXACT, growth),
    "burn_rate(0.99, '30s')": (3, EXACT, burnt(0.99)),
    "burn_rate(0.999, '2m')": (12, EXACT, burnt(0.999)),
    "burn_rate(duration_s, 1, 0.95, '30s')": (3, CLOSE, slow(1.0, 0.95)),
    "burn_rate(duration_s, 0.5, 0.9, '2m')": (12, CLOSE, slow(0.5, 0.9)),
    "quantile(0.5, '30s')": (3, SKETCHED, quantile(0.5)),
    "quantile(duration_s, 0.99, '2m')": (12, SKETCHED, quantile(0.99)),
    "quantile(0, '2m')": (12, SKETCHED, quantile(0.0)),
    "quantile(1, '10s')": (1, SKETCHED, quantile(1.0)),
}
"""Of each call: how many windows it looks back on, how near it comes, and what it should say of them."""
LOOKS: Final = {text: look(text) for text in BEHAVIOURS}


def same(found: float, expected: float, tolerance: float) -> bool:
    if math.isnan(expected):
        return math.isnan(found)
    return math.isclose(found, expected, rel_tol=tolerance, abs_tol=0.0)


# ---------------------------------------------------------------- what happens


class Wave(NamedTuple):
    """Windows of one start, by series, some numbers after the last."""

    after: int
    windows: Mapping[int, Seen]


class Reuse(NamedTuple):
    """A row becomes another series'."""

    row: int


class Restart(NamedTuple):
    """Everything is dumped and loaded, into other rows; sketches are not."""

    order: Sequence[int]


eighths: Final = st.integers(0, 8000).map(lambda number: number / 8) | st.just(math.nan)
durations: Final = st.lists(st.sampled_from([0.0, 1e-6, 0.3, 0.5, 0.51, 0.99, 1.0, 1.01, 2.0, 75.0]), max_size=6)
requests: Final = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
windows: Final = st.builds(
    lambda x, counts, values: Seen(x, float(counts[0]), float(counts[1]), None if values is None else tuple(values)),
    eighths,
    requests | st.just([math.nan, math.nan]) | st.just([math.nan, 5.0]),
    st.none() | durations,
)
waves: Final = st.builds(
    Wave,
    st.integers(1, 3) | st.integers(4, 40),
    st.dictionaries(st.integers(0, 3), windows, min_size=1),
)
happenings: Final = st.lists(
    waves | waves | waves | waves | st.builds(Reuse, st.integers(0, 3)) | st.builds(Restart, st.permutations(range(4))),
    max_size=40,
)


@dataclass
class Remembered:
    """All windows of the series in each row."""

    number: int
    rows: list[dict[int, Seen]] = field(default_factory=lambda: [{} for _ in range(4)])

    def take(self, wave: Wave) -> None:
        self.number += wave.after
        for row, window in wave.windows.items():
            self.rows[row][self.number] = window

    def newest(self, row: int, slots: int) -> list[Seen]:
        return [self.rows[row].get(number, Seen()) for number in range(self.number - slots + 1, self.number + 1)]


def put(past: Past, number: int, found: Mapping[int, Seen]) -> NDArray[np.int64]:
    rows, columns = np.array(list(found), dtype=np.int64), Windows(list(found.values()))
    evaluation = Evaluation(columns)
    values = {track: np.broadcast_to(evaluation.number(track), len(rows)) for track in past.inputs}
    past.put(rows, number, values, {"duration_s": columns.sketches})
    return rows


def restarted(past: Past, order: Sequence[int]) -> Past:
    again = Past(past.looks, STEP_S)
    again.load(np.arange(len(order)), past.dump(np.array(order, dtype=np.int64)))
    return again


@settings(max_examples=300, deadline=None)
@given(happenings, st.integers(0, 2) | st.just(170_000_000))
def test_every_function_of_the_past_says_what_all_windows_say(
    happened: Sequence[Wave | Reuse | Restart], first: int
) -> None:
    past, expected = Past(LOOKS.values(), STEP_S), Remembered(first)
    for each in happened:
        match each:
            case Wave():
                expected.take(each)
                check(past, expected, put(past, expected.number, each.windows))
            case Reuse(row):
                past.forget(row)
                expected.rows[row] = {}
            case Restart(order):
                past = restarted(past, order)
                expected.rows = [_without_sketches(expected.rows[row]) for row in order]


def _without_sketches(found: Mapping[int, Seen]) -> dict[int, Seen]:
    """Sketches are not dumped; what was counted of them is."""
    return {number: window._replace(sketched=False) for number, window in found.items()}


def check(past: Past, expected: Remembered, rows: NDArray[np.int64]) -> None:
    for text, (slots, tolerance, says) in BEHAVIOURS.items():
        found = past.of(LOOKS[text], rows, expected.number)
        for value, row in zip(found.tolist(), rows.tolist(), strict=True):
            of_windows = expected.newest(row, slots)
            assert same(value, says(of_windows), tolerance), (text, value, of_windows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=60), st.sampled_from(["avg_over", "sum_over", "rate", "delta"]))
def test_sums_of_any_numbers_are_near_the_exact_ones(xs: list[float], name: str) -> None:
    says = {"avg_over": average, "sum_over": total, "rate": growth, "delta": delta}[name]
    subject = look(f"{name}(x, '5m')")
    past, seen = Past([subject], STEP_S), [Seen(x=x) for x in xs]
    for number, each in enumerate(seen):
        rows = put(past, number, {0: each})
    [found] = past.of(subject, rows, len(xs) - 1).tolist()
    assert same(found, says(seen[-30:]), CLOSE) or math.isclose(found, says(seen[-30:]), abs_tol=1e-12 * max(xs))


def test_equal_windows_give_equal_bits_whatever_row_they_are_in_and_whoever_is_asked_for_with_them() -> None:
    random = np.random.default_rng(7)
    past = Past(LOOKS.values(), STEP_S)
    for number in range(100):
        one = Seen(random.random(), random.random(), random.random(), tuple(random.random(3)))
        others = {row: Seen(random.random(), durations=tuple(random.random(3))) for row in range(1, 40, 2)}
        rows = put(past, number, others | {0: one, 33: one, 38: one})
        for text, each in LOOKS.items():
            together = dict(zip(rows.tolist(), past.of(each, rows, number).tolist(), strict=True))
            alone = {row: past.of(each, np.array([row]), number)[0] for row in (0, 33, 38)}
            bits = {struct.pack("d", value) for row in (0, 33, 38) for value in (alone[row], together[row])}
            assert len(bits) == 1, text


def test_a_row_of_a_past_that_was_never_put_is_empty_and_can_be_forgotten() -> None:
    past = Past([look("sum_over(x, '30s')")], STEP_S)
    past.forget(5)
    assert np.frombuffer(past.dump(np.array([5]))["newest"], "<i8") == [-1]
    past.load(np.array([], dtype=np.int64), {})
    assert put(past, 3, {0: Seen(x=1.0)}).tolist() == [0]


def test_a_row_that_is_reused_knows_nothing_of_the_series_before() -> None:
    past = Past(LOOKS.values(), STEP_S)
    put(past, 7, {0: Seen(1.0, 1.0, 1.0, (1.0,)), 1: Seen(1.0, 1.0, 1.0, (1.0,))})
    past.forget(0)
    rows = put(past, 8, {0: Seen(), 1: Seen()})
    for text, (slots, _, _) in BEHAVIOURS.items():
        forgotten, kept = past.of(LOOKS[text], rows, 8)
        assert math.isnan(forgotten), text
        assert math.isnan(kept) == (slots == 1 or "rate(x" in text or "delta" in text), text


def test_what_was_never_there_has_no_rate_and_no_change() -> None:
    """A rate of 0 would fire `rate(x, "5m") < 1` for every series that has no such gauge."""
    subjects = [look(f"{name}(x, '50s')") for name in ("rate", "delta", "avg_over", "sum_over", "min_over", "max_over")]
    past = Past(subjects, STEP_S)
    for number in range(8):
        rows = put(past, number, {0: Seen(), 1: Seen(x=float(number))})
    assert [math.isnan(past.of(each, rows, 7)[0]) for each in subjects] == [True] * 6
    assert [past.of(each, rows, 7)[1] for each in subjects] == [0.1, 4.0, 5.0, 25.0, 3.0, 7.0]


def test_infinities_are_numbers_too() -> None:
    subjects = [look(f"{name}(x, '30s')") for name in ("min_over", "max_over", "sum_over", "delta")]
    past = Past(subjects, STEP_S)
    for number in range(3):
        rows = put(past, number, {0: Seen(x=math.inf), 1: Seen(x=-math.inf), 2: Seen(x=math.inf if number else 1.0)})
    found = [past.of(each, rows, 2).tolist() for each in subjects]
    assert found[:3] == [[math.inf, -math.inf, 1.0], [math.inf, -math.inf, math.inf], [math.inf, -math.inf, math.inf]]
    assert [math.isnan(each) for each in found[3]] == [True, True, False]


def test_a_counter_that_begins_anew_has_grown_by_what_it_shows() -> None:
    subject = look("rate(x, '1m')")
    past = Past([subject], STEP_S)
    for number, x in enumerate((100.0, 130.0, math.nan, 20.0, 20.0, 0.0)):
        rows = put(past, number, {0: Seen(x=x)})
    assert past.of(subject, rows, 5).tolist() == [(30 + 20 + 0 + 0) / 50]


def test_equal_looks_share_a_ring_as_long_as_the_longest() -> None:
    past = Past([look("sum_over(x, '30s')"), look("avg_over(x, '2m')"), look("max_over(x, '30s')")], STEP_S)
    assert list(past.tracks.values()) == [12]
    assert past.row_bytes == 12 * 8
    assert past.keeps
    assert not Past([], STEP_S).keeps
    assert not Past([look("share_above(duration_s, 1)")], STEP_S).keeps


def parts(text: str) -> set[str]:
    return set(Past([look(text)], STEP_S).dump(np.array([0])))


def test_the_names_of_what_is_kept_tell_other_rings_apart() -> None:
    assert parts("sum_over(x, '30s')") == parts("max_over(x, '30s')")
    assert parts("sum_over(x, '30s')") != parts("sum_over(x, '40s')")
    assert parts("sum_over(x, '30s')") != parts("sum_over(count, '30s')")
    assert len({frozenset(parts(text)) for text in BEHAVIOURS}) > 8


def test_sketches_are_given_up_once_no_function_looks_back_on_them() -> None:
    subject = look("quantile(0.5, '30s')")
    past = Past([subject], STEP_S)
    for number in range(50):
        rows = put(past, number, {0: Seen(durations=(float(number + 1),))})
    assert sorted(past._sketches["duration_s", 0]) == [47, 48, 49]
    assert past.of(subject, rows, 49)[0] == pytest.approx(49, rel=SKETCHED)


@pytest.mark.parametrize(
    ("text", "slots"),
    [("avg_over(x, '1s')", 1), ("avg_over(x, '14s')", 1), ("avg_over(x, '16s')", 2), ("avg_over(x, '1h')", 360)],
)
def test_a_look_back_is_rounded_to_whole_windows_and_is_at_least_one(text: str, slots: int) -> None:
    assert list(Past([look(text)], STEP_S).tracks.values()) == [slots]


# ---------------------------------------------------------------- calls


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("avg_over(rate(x, '1m'), '1m')", "avg_over: its argument may not hold a function of the past"),
        (
            "delta(x, '1y')",
            "delta: '1y' is no duration; write a number of seconds, or a text such as 90s, 5m, 1h or 3d",
        ),
        ("rate(x, '0')", "rate: it looks back on nothing"),
        ("quantile(-0.1, '1m')", "quantile(-0.1): a quantile is from 0 to 1"),
        ("quantile(x, '1m')", "quantile: a number that is written out is wanted here"),
        ("burn_rate(0, '1m')", "burn_rate: the objective is a fraction such as 0.999, not 0"),
        ("burn_rate(99.9, '1m')", "burn_rate: the objective is a fraction such as 0.999, not 99.9"),
        ("burn_rate(duration_s, x, 0.9, '1m')", "burn_rate: a number that is written out is wanted here"),
        ("share_above(duration_s, x)", "share_above: a number that is written out is wanted here"),
    ],
)
def test_a_call_that_means_nothing_is_refused(text: str, said: str) -> None:
    node, _ = parse(f"{text} > 0", KINDS, (*MATHS, *FUNCTIONS))
    with pytest.raises(ExpressionError) as refusal:
        understand([*calls_of(node, dict.fromkeys(NAMES))][-1])
    assert str(refusal.value) == said


def test_a_quantile_is_of_durations_unless_a_field_is_named() -> None:
    assert look("quantile(0.9, '1m')").sketches == "duration_s"
    assert look("quantile(ttft_s, 0.9, '1m')").sketches == "ttft_s"
    assert look("burn_rate(ttft_s, 2, 0.9, '1m')").sketches == "ttft_s"


# ---------------------------------------------------------------- shares

values: Final = st.lists(st.floats(-1e12, 1e12).filter(lambda value: not 0 < abs(value) < 1e-300), max_size=40)


@settings(max_examples=300)
@given(values, st.floats(-1e12, 1e12).filter(lambda value: not 0 < abs(value) < 1e-300))
def test_above_counts_exactly_but_for_the_bucket_of_the_threshold(found: list[float], threshold: float) -> None:
    """Which is not counted: values within 1.1 % of it."""
    exact = np.array(found)
    sketch = Sketch.of(exact)
    beside = (np.sign(exact) != np.sign(threshold)) | (
        _buckets(exact, sketch.scale) != _buckets(np.array([threshold]), sketch.scale)
    )
    assert sketch.above(threshold) == np.sum((exact > threshold) & beside)


def _buckets(found: Floats, scale: int) -> NDArray[np.int64]:
    magnitudes = np.abs(found)
    return np.where(magnitudes > 0, bucket_index(np.where(magnitudes > 0, magnitudes, 1.0), scale), -(2**40))


@given(values, st.integers(-300, 300), st.sampled_from([1, -1]))
def test_above_a_bound_of_buckets_is_exact(found: list[float], bucket: int, sign: int) -> None:
    """As the powers of two are; of negative values those at the bound count as above it."""
    magnitudes = np.abs(np.array(found))
    bound = float(bucket_bounds(bucket)[1])
    sketch = Sketch.of(sign * magnitudes)
    if sketch.scale == 6:
        expected = np.sum(magnitudes > bound) if sign > 0 else np.sum(magnitudes <= float(bucket_bounds(bucket)[0]))
        assert sketch.above(sign * bound) == expected


@pytest.mark.parametrize(
    ("threshold", "above"), [(0.0, 3), (-0.0, 3), (1e300, 0), (math.inf, 0), (-1e300, 6), (2.0, 1), (-2.0, 5)]
)
def test_above_at_zero_and_beyond_all_values(threshold: float, above: int) -> None:
    assert Sketch.of(np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 4.0])).above(threshold) == above


def test_the_share_of_nothing_is_not_known() -> None:
    assert math.isnan(share_above(None, 1.0))
    assert math.isnan(share_above(EMPTY, 1.0))
    assert share_above(Sketch.of(np.array([1.0, 2.0, 4.0, 8.0])), 2.0) == 0.5
