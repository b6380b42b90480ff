"""The fast path of single events reads what the closer look reads, and leaves the rest to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.errors import Rejected
from streammon.events import EventType
from streammon.wire import Batch, Codec, Density, Rows, Wanted, decode, encode, plain
from tests.test_wire import event, events_of, mutated, one

INFERENCE = EventType.INFERENCE
WANTED = Wanted(
    ("model", "endpoint", "status", "metrics", "labels", "counters", "histograms", "no_such_field"),
    ("trace_id", "event_id"),
)


@pytest.fixture(autouse=True)
def _short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "BLOCK", 3)
    monkeypatch.setattr(plain, "FEW", 2)
    monkeypatch.setattr(plain, "MAX_ODD", 1)


def closely(event_type: EventType, value: bytes) -> Batch | None:
    """What `decode` makes of a record, if that is one event without an identity."""
    try:
        batches = decode(event_type, value)
    except Rejected:
        return None
    alone = len(batches) == 1 and len(batches[0].rows) == 1 and batches[0].identity is None
    return batches[0] if alone else None


def agree(codec: Codec, found: Rows, expected: Sequence[Batch]) -> None:
    """Every question about the rows has the same answer."""
    assert len(found) == len(expected)
    for row, batch in enumerate(expected):
        assert found.event(row) == batch.rows.event(0)
        assert [fault._replace(row=0) for fault in found.faults() if fault.row == row] == batch.rows.faults()
    for name, spec in codec.fields.items():
        values = [batch.rows.value(name, 0) for batch in expected]
        assert [found.value(name, row) for row in range(len(found))] == values
        dictionary, codes = found.coded(name)
        frozen = [batch.rows.coded(name) for batch in expected]
        assert [dictionary[code] for code in codes] == [one.dictionary[one.codes[0]] for one in frozen]
        if spec.numeric:
            numbers = found.floats(name)
            absent = [value is None for value in values]
            assert (numbers is None) == all(absent)
            assert numbers is None or np.isnan(numbers).tolist() == absent
            assert numbers is None or numbers[~np.isnan(numbers)].tolist() == [v for v in values if v is not None]
        else:
            assert found.present(name).tolist() == [value is not None for value in values]
            assert list(found.objects(name) or [None] * len(values)) == values


def check(event_type: EventType, values: Sequence[bytes]) -> list[int]:
    """Read a log as the windows do; the sizes of the runs that the fast path took."""
    codec, at, sizes = Codec(event_type), 0, []
    while at < len(values):
        found = codec.plain(values, at, len(values), WANTED)
        expected = [closely(event_type, value) for value in values[at : at + len(found)]]
        assert None not in expected
        if len(found):
            agree(codec, found, [batch for batch in expected if batch is not None])
        if not len(found):
            sizes.append(0)
            continued = closely(event_type, values[at])
            others = (b"[", b"NaN", b'"columns"', b'"constant"')  # other densities of one event
            assert continued is None or any(other in values[at] for other in others)
        else:
            sizes.append(len(found))
        at += max(1, len(found))
    return sizes


@st.composite
def logs(draw: st.DrawFn) -> tuple[EventType, list[bytes]]:
    event_type = draw(st.sampled_from(EventType))
    values: list[bytes] = []
    for events in draw(st.lists(events_of(event_type), min_size=1, max_size=4)):
        made = encode(event_type, events, Density.OBJECT)
        values += [value.replace(b"{", b'{"zz":"x",', 1) if draw(st.integers(0, 3)) == 0 else value for value in made]
    others = draw(st.lists(mutated() | st.sampled_from((b"", b"{}", b"[]", b"null", b"\xff", b"{" * 2000)), max_size=3))
    return event_type, draw(st.permutations([*values, *others]))


@settings(deadline=None, max_examples=300)
@given(logs())
def test_any_log_is_read_as_record_by_record(log: tuple[EventType, list[bytes]]) -> None:
    event_type, values = log
    check(event_type, values)


def test_events_alike_are_read_in_one_run() -> None:
    assert check(INFERENCE, [one(time_unix_s=1.7e9 + i, model=f"m{i % 4}") for i in range(20)]) == [20]


def test_a_new_field_is_learned_and_read_from_its_first_event_on() -> None:
    values = [*(one() for _ in range(7)), *(one(endpoint="/x", input_tokens=i) for i in range(9))]
    assert sum(check(INFERENCE, values)) == 16


def test_a_field_that_is_not_ours_is_ignored_but_not_its_bytes() -> None:
    foreign = [one(colour=i) for i in range(8)]
    broken = one(colour="@").replace(b"@", b"\xff")
    assert sum(check(INFERENCE, [*foreign, broken, *foreign])) == 16
    assert closely(INFERENCE, broken) is None


@pytest.mark.parametrize(
    "odd",
    [
        {"agent": "a", "boot": "b", "seq": 0},
        {"schema": 2},
        {"schema": 1.0},
        {"schema": True},
        {"schema": None},
        {"type": "log"},
        {"duration_s": "slow"},
        {"host": 5},
        {"status": "okay"},
        {"model": None},
        {"duration_s": float("nan")},
    ],
    ids=str,
)
def test_an_odd_one_is_left_to_the_closer_look_and_its_neighbours_are_read(odd: dict[str, Any]) -> None:
    values = [one(), one(), one(), json.dumps(event() | odd).encode(), one(), one()]
    assert check(INFERENCE, values) == [3, 0, 2]


@pytest.mark.parametrize("whole", [{"schema": 1}, {"agent": "a"}, {"boot": "b", "agent": "a"}], ids=str)
def test_what_looks_odd_but_is_plain_is_read_with_the_others(whole: dict[str, Any]) -> None:
    assert sum(check(INFERENCE, [one(), json.dumps(event() | whole).encode(), one()])) == 3


def test_a_value_out_of_range_is_a_fault_of_its_row() -> None:
    values = [one(), one(duration_s=-1), one(), one(time_unix_s=1.7e12), one()]
    found = Codec(INFERENCE).plain(values, 0, len(values), WANTED)
    assert [(fault.row, fault.reason.value) for fault in found.faults()] == [(1, "negative"), (3, "bad_time")]


def test_after_many_strange_records_the_fast_decoder_is_tried_again() -> None:
    codec = Codec(INFERENCE)
    strange = [one(colour=i) for i in range(300)]
    usual = [one() for _ in range(3 * (plain.LONGEST_REST + 1))]
    log, at = strange + usual, 0
    while at < len(log):
        at += len(codec.plain(log, at, len(log), WANTED))
    assert is_fitted(codec, usual)


def is_fitted(codec: Codec, values: list[bytes]) -> bool:
    """Whether these are read with a struct of fewer fields than the whole type has."""
    names, rows = codec._plain._fitted.rows(values[: plain.BLOCK])
    return len(names) < len(codec.fields) and len(rows) > 0


def test_a_few_foreign_fields_and_records_of_other_densities_do_not_cost_the_fast_decoder() -> None:
    codec = Codec(INFERENCE)
    batch = encode(INFERENCE, [event(), event()], Density.ARRAY)
    log = 20 * [one(), one(colour="red"), *batch, b"", one(), one(), one(), one()]
    at = 0
    while at < len(log):
        at += max(1, len(codec.plain(log, at, len(log), WANTED)))
        assert not codec._plain._fitted._rest
    assert is_fitted(codec, [one()])


def test_a_new_field_behind_a_foreign_one_is_read() -> None:
    strange = json.dumps({"colour": "red"} | event(endpoint="/x", trace_id="t")).encode()
    assert sum(check(INFERENCE, [one(), one(), one(), strange, one(), strange, strange])) == 7


def test_an_absent_field_that_is_spelled_out_as_null_is_learned() -> None:
    codec = Codec(INFERENCE)
    log = [one(error_type=None, trace_id=None) for _ in range(7)]
    assert check(INFERENCE, log) == [7]
    codec.plain(log, 0, len(log), WANTED)
    assert is_fitted(codec, log)
    assert {"error_type", "trace_id"} <= set(codec._plain._fitted._names)


def test_what_is_foreign_within_an_object_is_not_skipped_unread() -> None:
    run = {"schema": 1, "type": "pipeline", "time_unix_s": 1.7e9, "job": "j", "run_id": "r", "event": "started"}
    good = json.dumps(run | {"inputs": [{"name": "n", "zz": "x"}]}).encode()
    assert sum(check(EventType.PIPELINE, [good, good, good.replace(b'"x"', b'"\xff"'), good])) == 3


def test_counters_and_histograms_do_not_cost_the_fast_decoder() -> None:
    """Nor do they what is foreign within them; see above."""
    codec, count = Codec(EventType.RESOURCE), 1000
    host = {
        "schema": 1,
        "type": "resource",
        "time_unix_s": 1.7e9,
        "host": "h",
        "entity": "host",
        "id": "0",
        "metrics": {},
    }
    sketch = {"scale": 6, "zero_count": 3, "offset": 0, "counts": [], "zz": "x"}
    more = {"counters": {"n": 1.0}, "histograms": {"latency_s": {"sum": 1.0, "sketch": sketch, "zz": "x"}}}
    log = [json.dumps(host | (more if number % 3 else {})).encode() for number in range(count)]
    assert sum(check(EventType.RESOURCE, log)) == count
    codec.plain(log, 1, len(log), WANTED)
    names, rows = codec._plain._fitted.rows(log[: plain.BLOCK])
    assert ({"counters", "histograms"} <= set(names), "labels" in names, len(rows)) == (True, False, plain.BLOCK)
    assert sum(check(EventType.RESOURCE, [*log, log[1].replace(b'"x"', b'"\xff"', 1)])) == count
