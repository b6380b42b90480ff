"""References of files and of events: the same values give the same one; bins fit them; wrong files are explained."""

from __future__ import annotations

import csv
import math
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streammon.errors import ConfigError
from streammon.models import DriftPolicy
from streammon.profiles import Reference
from streammon.wire import Floats
from streammon_processors.profiles.edges import BINS, bins_of, edges_of
from streammon_processors.profiles.reading import ColumnNames, sample_of_file
from streammon_processors.profiles.sample import Sample
from streammon_processors.profiles.targets import Events
from tests.oracle import Event
from tests.profiles import POLICY, check_reference, held_events, reference_of

# --- bins -----------------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(7)
SHAPES: dict[str, Floats] = {
    "normal": RNG.normal(size=5000),
    "of a small sample": RNG.normal(size=80),
    "log-normal": RNG.lognormal(0, 3, 5000),
    "Kelvin": 300 + RNG.normal(size=5000),
    "times": 1.7e9 + RNG.uniform(0, 3600, 5000),
    "negative and huge": -1e300 * RNG.lognormal(size=1000),
    "tiny": 1e-300 * RNG.normal(size=1000),
    "denormal": np.array([5e-324]) * RNG.integers(0, 1000, 1000),
    "all of float64": np.array([-1.7976931348623157e308, 1.7976931348623157e308, 0.0]),
    "many of all of float64": RNG.normal(size=1000) * 4e307,
    "one in two is 0": np.where(RNG.random(5000) < 0.5, 0.0, RNG.normal(size=5000)),
    "a lone outlier": np.append(RNG.normal(size=5000), 1e6),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES.keys())
def test_bins_hold_all_values_and_what_lies_outside_is_apart(values: Floats) -> None:
    edges = edges_of(values)
    bins = bins_of(values, edges)
    assert edges == sorted(set(edges))
    assert all(map(math.isfinite, edges))
    assert sum(bins) == len(values)
    assert bins[-1] == 0
    assert bins[0] == 0 or edges[0] == -1.7976931348623157e308  # nothing is below that
    assert len(edges) <= 2 * BINS


@pytest.mark.parametrize("name", ["normal", "log-normal", "Kelvin", "times", "a lone outlier"])
def test_no_bin_holds_much_more_than_its_share_however_far_from_zero_they_lie(name: str) -> None:
    values = SHAPES[name]
    assert len(edges_of(values)) == BINS + 1
    assert max(bins_of(values, edges_of(values))) <= 2 * len(values) / BINS


def test_a_shift_by_a_standard_deviation_is_seen_beside_an_offset_and_an_outlier() -> None:
    for values in (SHAPES["Kelvin"], SHAPES["a lone outlier"]):
        edges = edges_of(values)
        before, after = bins_of(values, edges), bins_of(values + 1.0, edges)
        assert sum(abs(a - b) for a, b in zip(before, after, strict=True)) > 0.6 * len(values)


def test_each_of_few_distinct_values_has_a_bin_of_its_own() -> None:
    values = np.repeat([0.0, 1.0, 2.5, -7.0, 1e9], [5, 1, 3, 2, 4])
    edges = edges_of(values)
    assert edges[1:] == [-7.0, 0.0, 1.0, 2.5, 1e9]
    assert bins_of(values, edges) == [0, 2, 5, 1, 3, 4, 0]
    assert bins_of(np.array([-7.1, 1e9 + 1]), edges) == [1, 0, 0, 0, 0, 0, 1]


def test_a_frequent_value_has_a_bin_of_its_own_among_others() -> None:
    values = SHAPES["one in two is 0"]
    edges = edges_of(values)
    (zeros,) = (count for count in bins_of(values, edges) if count > len(values) / 4)
    assert zeros == np.count_nonzero(values == 0.0)


def test_of_a_constant_everything_else_is_outside() -> None:
    edges = edges_of(np.full(100, 3.3))
    assert bins_of(np.array([3.3, 3.3, 3.2999, 3.3001]), edges) == [1, 2, 1]
    assert edges_of(np.zeros(0)) == []


def test_edges_are_short_numbers_as_long_as_that_splits_the_same_values() -> None:
    edges = edges_of(SHAPES["normal"])[1:-1]
    assert max(len(repr(edge)) for edge in edges) <= 8


# --- the same values, from anywhere ---------------------------------------------------------------------------------


def events(count: int = 400) -> list[Event]:
    rng = random.Random(3)
    return [
        {
            "prediction": rng.choice((0.0, 1.0)),
            "confidence": rng.random(),
            "features": {
                "price": rng.gauss(300, 1),
                "city": rng.choice(("Rome", "Oslo", "007")),
                "store": float(rng.randrange(3)),
                "query": rng.choice(("a", "red shoes", "12345", None)),
                "new": rng.choice((True, False, None)),
                "size": rng.choice((None, 2e-7, 1e22)),
            },
        }
        for _ in range(count)
    ]


def rows(some: list[Event]) -> list[dict[str, Any]]:
    """As a table has them, under names of its own."""
    flat = [{**each["features"], "y": each["prediction"], "p": each["confidence"]} for each in some]
    return [{("prix" if name == "price" else name): value for name, value in row.items()} for row in flat]


NAMES = ColumnNames({"prix": "price"}, prediction="y", confidence="p", ignored=frozenset(["row"]))


def written_csv(directory: Path, some: list[dict[str, Any]]) -> Path:
    with (file := directory / "train.csv").open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["row", *some[0]])
        writer.writeheader()
        writer.writerows({"row": number, **row} for number, row in enumerate(some))
    return file


def written_parquet(directory: Path, some: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({name: [row[name] for row in some] for name in some[0]})
    table = table.append_column("row", pa.array([[1]] * len(some)))
    parquet.write_table(table.set_column(1, "city", table["city"].dictionary_encode()), file := directory / "t.parquet")
    return file


def made(sample: Sample) -> Reference:
    return sample.reference("shop", "ranker", None, origin="a test", made_unix_s=1.0)


def test_a_file_and_events_with_the_same_values_give_the_same_reference(tmp_path: Path) -> None:
    some = events()
    of_events = reference_of(some)
    check_reference(of_events, some)
    assert of_events.pairs.keys() == {"confidence,features.query", "features.price,features.size"}
    for file in (written_csv(tmp_path, rows(some)), written_parquet(tmp_path, rows(some))):
        of_file = made(sample_of_file(file, NAMES, POLICY))
        assert of_file == of_events, file


def test_a_reference_has_another_id_if_anything_it_says_is_another() -> None:
    some = events()
    assert reference_of(some).id == reference_of(some).id
    some[7]["features"]["price"] += 1e-9
    assert reference_of(some).id != reference_of(events()).id
    assert reference_of(events(), model="other").id != reference_of(events()).id


def test_a_sample_goes_on_from_what_was_remembered_of_it() -> None:
    some = events()
    whole, part = Sample(POLICY), Sample(POLICY)
    for sample, upto in ((whole, 400), (part, 150)):
        sample.add(sample.columns(held_events(some[:upto])), upto)
    part = Sample(POLICY, part.memory())
    part.add(part.columns(held_events(some[150:])), 250)
    assert (made(part), part.size) == (made(whole), whole.size)


def test_categories_beyond_the_cap_are_counted_together() -> None:
    held = Events([{"id": f"id {number}"} for number in range(3000)], [None] * 3000, np.full(3000, np.nan))
    sample = Sample(DriftPolicy())
    sample.add(sample.columns(held), 3000)
    target = made(sample).targets["features.id"]
    assert (len(target.values or ()), target.other, target.distinct) == (100, 2900, 500)


# --- files that are wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "train.csv is empty"),
        (b"a,b\n", "train.csv has no rows"),
        (b"a,a\n1,2\n", "two columns are called 'a'"),
        (b"a,\n1,2\n", "column 2 has no name"),
        (b"a,b\n1,2\n1\n", "train.csv:3: there are 1 cells, and 2 columns have a name"),
        (b"a\n1\n2\nn/a\n4\n", "train.csv:4: column a: 'n/a' is no number, and most others are"),
        (b"a\n1\n2\ntrue\n", "train.csv:4: column a: 'true' is no number"),
        (b"a\n1\ninf\n", "train.csv:3: column a: 'inf' is not a finite number"),
        (b"a\n1\n-1e999\n", "train.csv:3: column a: '-1e999' is not a finite number"),
        (b"a\n\xff\n", "train.csv is no CSV"),
        (b'a\n"1\n', "train.csv is no CSV"),
        (b"a\n" + b"x" * 200_000 + b"\n", "train.csv is no CSV"),
        (b",".join(b"c%d" % n for n in range(201)) + b"\n", "has 201 columns, at most 200"),
    ],
)
def test_a_wrong_csv_is_explained_with_file_row_and_column(tmp_path: Path, content: bytes, said: str) -> None:
    (file := tmp_path / "train.csv").write_bytes(content)
    with pytest.raises(ConfigError) as error:
        sample_of_file(file, ColumnNames(), POLICY)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (ColumnNames(prediction="y"), "has no column 'y'; it has a, b"),
        (ColumnNames({"a": "b"}), "two columns are features.b"),
        (ColumnNames(confidence="b"), "train.csv:2: column b: 'x' is no number, a confidence is one"),
    ],
)
def test_names_that_do_not_fit_the_columns_are_refused(tmp_path: Path, names: ColumnNames, said: str) -> None:
    (file := tmp_path / "train.csv").write_text("a,b\n1,x\n")
    with pytest.raises(ConfigError) as error:
        sample_of_file(file, names, POLICY)
    assert said in str(error.value)


def test_a_file_that_is_not_there_or_no_parquet_is_named(tmp_path: Path) -> None:
    (broken := tmp_path / "x.parquet").write_bytes(b"PAR1 or not")
    for file in (tmp_path / "no.csv", tmp_path / "no.parquet", broken):
        with pytest.raises(ConfigError, match=file.name):
            sample_of_file(file, ColumnNames(), POLICY)


def test_what_is_missing_in_a_csv_is_left_empty_or_called_so(tmp_path: Path) -> None:
    (file := tmp_path / "train.csv").write_text("\ufeffa,b\n1,x\n,\nNaN,null\n3,y\n", encoding="utf-8")
    targets = made(sample_of_file(file, ColumnNames(), DriftPolicy())).targets
    assert (targets["features.a"].count, targets["features.a"].missing) == (2, 2)
    assert targets["features.b"].values == {"x": 1, "y": 1}


def test_random_bytes_make_a_reference_or_a_reason_and_nothing_else(tmp_path: Path) -> None:
    rng = random.Random(5)
    file = tmp_path / "train.csv"
    for _ in range(300):
        file.write_bytes(b"a,b\n" + bytes(rng.choice(b'a1.,\n"-e\r\x00\xc3 ') for _ in range(rng.randrange(40))))
        with suppress(ConfigError):
            assert made(sample_of_file(file, ColumnNames(), POLICY)).sample_size
