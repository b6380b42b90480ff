"""What every statistic of drift promises: one body, all of them; against SciPy, against Evidently, and by itself."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import inf, log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats
from scipy.spatial import distance

from streammon.models import TestName as Name
from streammon_processors.drift.statistics import (
    OF_NUMBERS,
    TESTS,
    Ints,
    Table,
    cramers_v,
    hellinger,
    jensen_shannon,
    kl,
    ks_error,
    places_of,
    psi,
    reach_of,
    shares,
    wasserstein_error,
)
from tests.data.evidently.samples import sample
from tests.profiled import Value, counted, target_reference

Floats = NDArray[np.float64]
EVIDENTLY = json.loads((Path(__file__).parents[1] / "data/evidently/values.json").read_text())

# ---------------------------------------------------------------- distributions

Draw = Callable[[np.random.Generator, int, float], Floats]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda rng, size, shift: rng.normal(shift, 1 + shift / 3, size),
    "lognormal": lambda rng, size, shift: np.exp(rng.normal(shift, 1, size)),
    "heavy_tails": lambda rng, size, shift: rng.standard_cauchy(size) + shift,
    "discrete": lambda rng, size, shift: rng.poisson(3 + shift, size).astype(float),
    "constant": lambda rng, size, shift: np.full(size, 7.0 + shift),
    "bimodal": lambda rng, size, shift: rng.normal(np.where(rng.random(size) < 0.5 + shift / 5, -4, 4), 1),
    "zero_inflated": lambda rng, size, shift: np.where(rng.random(size) < 0.7 - shift / 4, 0, rng.exponential(1, size)),
    "large_offset": lambda rng, size, shift: 1e9 + rng.normal(shift, 1, size),
}
CONTINUOUS = ("normal", "lognormal", "heavy_tails", "bimodal", "large_offset")
SHIFTS = (0.0, 0.2, 1.0)


@cache
def raw(name: str, shift: float, sizes: tuple[int, int] = (1500, 700)) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(sum(name.encode()) + round(100 * shift))
    return DISTRIBUTIONS[name](rng, sizes[0], 0.0), DISTRIBUTIONS[name](rng, sizes[1], shift)


def table_of(reference: Sequence[float] | Floats, current: Sequence[float] | Floats, bins: int = 20) -> Table:
    """As the task makes it, but for values that are missing."""
    frame = target_reference(list(map(float, reference)), bins=bins)
    edges, rows = frame.edges or [], np.array([frame.bins, counted(list(map(float, current)), frame.edges or [])])
    places = places_of(np.array(edges), frame.min or 0.0, frame.max or 0.0)
    return Table(rows[0], rows[1], len(edges) + 1, places, frame.std or 1.0)


def within(values: Floats, reference: Floats) -> Floats:
    """What is outside the range of the reference counts as its ends."""
    return values.clip(reference.min(), reference.max())


every_test = pytest.mark.parametrize("name", TESTS)
every_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)
every_shift = pytest.mark.parametrize("shift", SHIFTS)


# ---------------------------------------------------------------- against SciPy, on the same counts


def scipy_statistic(name: Name, table: Table) -> float:  # noqa: PLR0911 - one for each
    p, q = table.reference / table.reference.sum(), table.current / table.current.sum()
    more = [(row + 0.5) / (row + 0.5).sum() for row in (table.reference, table.current)]
    at = np.arange(table.ordered)
    match name:
        case "ks":
            return float(stats.ks_2samp(np.repeat(at, table.reference), np.repeat(at, table.current)).statistic)
        case "wasserstein":
            assert table.places is not None
            scaled = table.places / table.scale
            return float(stats.wasserstein_distance(scaled, scaled, table.reference, table.current))
        case "chi_square":
            used = p + q > 0
            return (
                sqrt(stats.chi2_contingency([p[used], q[used]], correction=False).statistic / 2)
                if used.sum() > 1
                else 0
            )
        case "psi":
            return float(stats.entropy(*more) + stats.entropy(*more[::-1]))
        case "kl":
            return float(stats.entropy(*more))
        case "jensen_shannon":
            return float(distance.jensenshannon(p, q))
        case "hellinger":
            return float(np.linalg.norm(np.sqrt(p) - np.sqrt(q)) / sqrt(2))


@every_test
@every_distribution
@every_shift
def test_it_equals_scipy_on_the_same_counts(name: Name, distribution: str, shift: float) -> None:
    table = table_of(*raw(distribution, shift))
    expected = scipy_statistic(name, table)
    assert TESTS[name](table).statistic == pytest.approx(expected, rel=1e-9, abs=1e-8)


@every_distribution
@every_shift
def test_the_p_value_of_tests_by_chi_square_is_scipys_on_bins_that_are_full_enough(
    distribution: str, shift: float
) -> None:
    table = table_of(*raw(distribution, shift))
    merged = np.stack([table.merged.reference, table.merged.current])
    assert merged.sum(axis=1).tolist() == list(table.sizes)
    if merged.shape[1] > 1:
        expected = stats.chi2_contingency(merged, correction=False)
        assert expected.expected_freq.min() >= 10
        assert TESTS["chi_square"](table).p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-300)


# ---------------------------------------------------------------- against SciPy, on the raw values


@every_distribution
@every_shift
def test_ks_is_below_that_of_the_raw_values_by_no_more_than_it_says(distribution: str, shift: float) -> None:
    values = raw(distribution, shift)
    table, exact = table_of(*values), stats.ks_2samp(*values).statistic
    found = TESTS["ks"](table).statistic
    assert found - 1e-12 <= exact <= found + ks_error(*table.rows) + 1e-12
    if distribution in CONTINUOUS:  # else a bin may hold nearly all
        assert ks_error(*table.rows) < 0.06 + shift / 5


@every_distribution
@every_shift
def test_wasserstein_is_as_near_to_that_of_the_raw_values_as_it_says(distribution: str, shift: float) -> None:
    reference, current = raw(distribution, shift)
    table, frame = table_of(reference, current), target_reference(reference.tolist())
    exact = stats.wasserstein_distance(reference, within(current, reference)) / table.scale
    reach = reach_of(np.array(frame.edges), reference.min(), reference.max()) / table.scale
    error = wasserstein_error(*table.rows, reach)
    assert abs(TESTS["wasserstein"](table).statistic - exact) <= error + 1e-9
    if distribution in ("normal", "bimodal", "large_offset"):
        assert error < 0.7
        assert abs(TESTS["wasserstein"](table).statistic - exact) < 0.1


@pytest.mark.parametrize("name", ["chi_square", "jensen_shannon", "psi", "kl", "hellinger"])
@every_distribution
@every_shift
def test_divergences_are_at_most_those_of_finer_bins(name: Name, distribution: str, shift: float) -> None:
    """Down to bins of one value each: SciPy on the raw values."""
    reference, current = raw(distribution, shift)
    known = sorted({*reference.tolist(), *current.tolist()})
    counts = [Counter(each.tolist()) for each in (reference, current)]
    rows = [np.array([each[value] for value in known]) for each in counts]
    finest = Table(rows[0], rows[1])
    unsmoothed = {"psi": psi, "kl": kl, "chi_square": cramers_v, "jensen_shannon": jensen_shannon}.get(name, hellinger)
    coarse = unsmoothed(*table_of(reference, current).rows)
    with np.errstate(divide="ignore"):
        fine = unsmoothed(*finest.rows)
    assert coarse <= fine + 1e-12 or coarse == fine == inf


@pytest.mark.parametrize(
    ("name", "exact"),
    [("kl", 0.125), ("psi", 0.25), ("hellinger", sqrt(1 - np.exp(-0.25 / 8))), ("ks", 2 * special.ndtr(0.25) - 1),
     ("wasserstein", 0.5)],
)  # fmt: skip
def test_of_many_values_it_is_that_of_the_distributions_within_the_width_of_a_bin(name: Name, exact: float) -> None:
    """Of normal values that move by half a standard deviation."""
    rng = np.random.default_rng(7)
    found = TESTS[name](table_of(rng.normal(size=100_000), rng.normal(0.5, 1, 100_000)))
    assert found.statistic == pytest.approx(exact, rel=0.06)
    assert found.effect == pytest.approx(found.statistic, rel=0.01)


@pytest.mark.parametrize("distribution", ["discrete", "zero_inflated"])
def test_of_categories_all_is_exact(distribution: str) -> None:
    reference, current = raw(distribution, 0.2)
    first, second = (Counter(np.minimum(np.round(each), 2).tolist()) for each in (reference, current))
    counts = np.array([[first[value], second[value]] for value in sorted(first | second)]).T
    table = Table(counts[0], counts[1])
    assert TESTS["chi_square"](table).p_value == pytest.approx(stats.chi2_contingency(counts, correction=False).pvalue)
    assert TESTS["jensen_shannon"](table).statistic == pytest.approx(distance.jensenshannon(*counts))


# ---------------------------------------------------------------- against Evidently

OURS: dict[str, Name] = {
    "ks": "ks", "wasserstein": "wasserstein", "jensenshannon": "jensen_shannon", "psi": "psi", "kl_div": "kl",
    "hellinger": "hellinger", "chisquare": "chi_square",
}  # fmt: skip
UNSMOOTHED: dict[str, Callable[[Floats, Floats], float]] = {
    "jensenshannon": jensen_shannon, "psi": psi, "kl_div": kl, "hellinger": hellinger,
}  # fmt: skip


def evidently(kind: str) -> pytest.MarkDecorator:
    cases = [case for case in EVIDENTLY["cases"] if case["numeric"] == (kind == "numeric")]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case["name"])


def samples_of(case: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """The ones that Evidently was asked of."""
    [first, second], (size, other), name = case["seeds"], case["sizes"], case["name"]
    both = sample(name, first, size, 0.0), sample(name, second, other, case["shift"])
    assert [each[:3] for each in both] == case["first_values"], "numpy draws other values than it did"
    return both


def filled(row: Floats) -> Floats:
    """Evidently's way with empty bins, which are given a little, and the rest is as it was."""
    least = row[row > 0].min()
    return np.where(row == 0, least / 10**6 if least <= 0.0001 else 0.0001, row)


def evidentlys(method: str, reference: Ints, current: Ints) -> float:
    p, q = shares(reference), shares(current)
    if method in ("psi", "kl_div"):
        p, q = filled(p), filled(q)
        if method == "kl_div":  # which SciPy makes shares again
            p, q = p / p.sum(), q / q.sum()
    return UNSMOOTHED[method](p, q)


@evidently("numeric")
def test_in_evidentlys_bins_distances_are_evidentlys(case: dict[str, Any]) -> None:
    if case["bins"] is not None:
        counts = [np.array(case["bins"][which]) for which in ("reference", "current")]
        for method in UNSMOOTHED:
            if (method, case["name"]) != ("hellinger", "zero_inflated"):  # there its bins are of distinct values
                assert evidentlys(method, *counts) == pytest.approx(case["says"][method], rel=1e-6, abs=1e-7), method


@evidently("categorical")
def test_of_categories_distances_are_evidentlys(case: dict[str, Any]) -> None:
    first, second = map(Counter, samples_of(case))
    counts = [np.array([each[value] for value in sorted(first | second)]) for each in (first, second)]
    for method in UNSMOOTHED:
        assert evidentlys(method, *counts) == pytest.approx(case["says"][method], rel=1e-6, abs=1e-7), method
    expected = counts[0] * counts[1].sum() / counts[0].sum()
    assert stats.chisquare(counts[1], expected).pvalue == pytest.approx(case["says"]["chisquare"])
    ours = TESTS["chi_square"](Table(counts[0], counts[1])).p_value  # which knows that the reference is a sample, too
    assert ours >= case["says"]["chisquare"]


@evidently("numeric")
def test_in_our_bins_what_evidently_has_of_raw_values_is_found_within_the_error_of_the_bins(
    case: dict[str, Any],
) -> None:
    both = samples_of(case)
    table, (reference, current) = table_of(*both), map(np.array, both)
    exact = stats.ks_2samp(reference, current).statistic
    assert log(case["says"]["ks"]) == pytest.approx(log(stats.ks_2samp(reference, current).pvalue))
    assert log(special.kolmogorov(sqrt(table.effective_size) * exact)) == pytest.approx(
        log(case["says"]["ks"]), rel=0.05
    )
    nearest = sqrt(table.effective_size) * (exact - ks_error(*table.rows))
    assert TESTS["ks"](table).p_value <= special.kolmogorov(max(0.0, nearest)) + 1e-12

    frame = target_reference(reference.tolist())
    reach = reach_of(np.array(frame.edges), reference.min(), reference.max()) / table.scale
    beyond = float(np.abs(current - within(current, reference)).mean()) / table.scale
    error = wasserstein_error(*table.rows, reach) + beyond
    assert abs(TESTS["wasserstein"](table).statistic - case["says"]["wasserstein"]) <= error


@evidently("numeric")
def test_in_our_bins_distances_are_near_evidentlys_where_its_bins_see_the_values(case: dict[str, Any]) -> None:
    """Evidently's are of equal width: of a long tail nearly all values are in one of them, and a shift is not seen."""
    table = table_of(*samples_of(case))
    for method, least in (("jensenshannon", 0.0), ("hellinger", 0.0)):
        ours, theirs = TESTS[OURS[method]](table).statistic, case["says"][method]
        if case["name"] in ("lognormal", "heavy"):
            assert ours > 1.5 * theirs
        else:
            assert ours == pytest.approx(theirs, abs=0.02), method
        assert ours >= least


# ---------------------------------------------------------------- by itself


@every_test
@every_distribution
def test_samples_of_the_same_shares_are_no_distance_apart(name: Name, distribution: str) -> None:
    values = raw(distribution, 0.0)[0]
    found = TESTS[name](table_of(values, values))
    assert found.statistic == pytest.approx(0, abs=1e-9)
    assert found.p_value == pytest.approx(1)
    assert found.effect == 0


@every_test
@every_distribution
@every_shift
def test_it_is_within_its_bounds_and_symmetric_unless_it_says_otherwise(
    name: Name, distribution: str, shift: float
) -> None:
    table = table_of(*raw(distribution, shift))
    found = TESTS[name](table)
    most = {"ks": 1.0, "chi_square": 1.0, "hellinger": 1.0, "jensen_shannon": sqrt(log(2))}.get(name, inf)
    assert 0 <= found.statistic <= most + 1e-9
    assert 0 <= found.effect <= found.statistic + 1e-12
    assert 0 <= found.p_value <= 1
    other = TESTS[name](replace(table, reference=table.current, current=table.reference))
    if name not in ("kl",):
        assert other.statistic == pytest.approx(found.statistic, abs=1e-9)
    assert other.p_value == pytest.approx(found.p_value, rel=1e-6)


@every_test
def test_disjoint_samples_are_as_far_apart_as_can_be(name: Name) -> None:
    found = TESTS[name](table_of(np.linspace(0, 1, 500), np.full(500, 5.0)))
    most = {"ks": 1.0, "chi_square": 1.0, "hellinger": 1.0, "jensen_shannon": sqrt(log(2)), "kl": 3.0, "psi": 9.0}
    assert found.statistic >= most.get(name, 1.5) - 1e-6
    assert found.p_value < 1e-30


@every_test
def test_more_values_make_the_same_distance_surer(name: Name) -> None:
    table = table_of(*raw("normal", 0.2))
    larger = replace(table, reference=10 * table.reference, current=10 * table.current)
    few, many = TESTS[name](table), TESTS[name](larger)
    assert many.statistic == pytest.approx(few.statistic, rel=0.05)  # but for half a value more in a bin
    assert many.p_value < few.p_value**3
    assert few.effect < many.effect <= many.statistic


@every_test
@pytest.mark.parametrize("sizes", [(1000, 100), (1000, 3000), (5000, 500)])
def test_if_nothing_has_changed_small_p_values_are_as_seldom_as_they_say(name: Name, sizes: tuple[int, int]) -> None:
    """Also of a small window, of a finite reference, and in bins that are made from it."""
    tables = unchanged(*sizes)
    found = np.array([TESTS[name](each).p_value for each in tables])
    for level in (0.1, 0.01):
        allowed = level * 1.35 + 3 * sqrt(level / len(tables))
        assert (found <= level).mean() <= allowed
    effects = np.array([TESTS[name](each).effect for each in tables[:300]])
    statistics = np.array([TESTS[name](each).statistic for each in tables[:300]])
    assert (effects**2).mean() < 0.5 * (statistics**2).mean()


@cache
def unchanged(n: int, m: int) -> list[Table]:
    rng = np.random.default_rng((n, m))
    return [drawn(rng, n, m) for _ in range(1000)]


def drawn(rng: np.random.Generator, n: int, m: int, bins: int = 20) -> Table:
    reference, current = rng.standard_normal(n), rng.standard_normal(m)
    edges = np.concatenate(
        [[reference.min() - 1e-9], np.quantile(reference, np.arange(1, bins) / bins), [reference.max()]]
    )
    rows = [np.bincount(np.searchsorted(edges, each), minlength=bins + 2) for each in (reference, current)]
    return Table(rows[0], rows[1], bins + 2, places_of(edges, reference.min(), reference.max()), float(reference.std()))


# ---------------------------------------------------------------- what hides nothing


@every_test
def test_one_value_of_a_million_hides_no_shift_and_is_none(name: Name) -> None:
    """In bins of both samples together a PSI of 1.03 becomes 0.019 by it."""
    rng = np.random.default_rng(3)
    reference, shifted, same = rng.normal(size=2000), rng.normal(1, 1, 2000), rng.normal(size=2000)
    found = [TESTS[name](table_of(reference, [*each, *more])) for each in (shifted, same) for more in ([], [1e6])]
    assert found[1].statistic == pytest.approx(found[0].statistic, rel=0.005)
    assert found[1].effect > 0.3
    assert found[1].p_value < 1e-50
    assert found[3].statistic == pytest.approx(found[2].statistic, abs=0.01)
    assert found[3].effect < 0.06
    both = np.concatenate([reference, shifted, [1e6]])
    edges = np.histogram_bin_edges(both, bins="sturges")
    hidden = [np.histogram(each, edges)[0] for each in (reference, [*shifted, 1e6])]
    assert TESTS["psi"](Table(hidden[0], hidden[1])).statistic < 0.02


@pytest.mark.parametrize("name", sorted(TESTS.keys() - OF_NUMBERS))
def test_values_that_are_missing_are_a_bin_of_their_own(name: Name) -> None:
    """(Of `ks` and `wasserstein` the check ``missing`` sees them.)"""
    values: list[Value] = list(np.random.default_rng(4).normal(size=1000).tolist())
    table = table_of(
        [each for each in values if isinstance(each, float)], [each for each in values if isinstance(each, float)]
    )
    lacking = Table(np.append(table.reference, 0), np.append(table.current, 250), table.ordered)
    assert TESTS[name](lacking).p_value < 1e-20
    assert TESTS[name](lacking).effect > 0.1


def test_merging_sparse_bins_keeps_every_value_and_leaves_none_sparse() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        ordered, others = int(rng.integers(0, 12)), int(rng.integers(0, 12))
        size = 2 + ordered + others
        rows = rng.poisson(rng.choice([0.3, 3, 30], size), (2, size)) + np.eye(2, size, dtype=int) * 9
        table = Table(rows[0], rows[1], min(ordered, size))
        merged = table.merged
        assert merged.sizes == table.sizes
        least = 10 * sum(table.sizes) / min(table.sizes)
        pooled = merged.reference + merged.current
        assert len(pooled) == 1 or pooled.min() >= least
