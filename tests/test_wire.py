"""The wire against what honest senders pack and what hostile ones send."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Iterator
from functools import reduce
from operator import or_
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from streammon import wire
from streammon.errors import Reason, Rejected
from streammon.events import KEYS, STRUCTS, EventType, NonNegative, record_key
from streammon.sketch import Sketch
from streammon.topics import MAX_RECORD_BYTES, TOPIC_OF
from streammon.wire import Batch, Density, Identity, Rows, claimed_events, decode, encode, route

INFERENCE = EventType.INFERENCE
BATCHED = (Density.ARRAY, Density.COLUMNS, Density.PACKED)
NAN, INF = math.nan, math.inf


def event(**fields: Any) -> dict[str, Any]:
    required = {"time_unix_s": 1.7e9, "service": "shop", "model": "ranker", "duration_s": 0.5, "status": "ok"}
    return required | fields


def one(**fields: Any) -> bytes:
    """One event as a record."""
    return json.dumps(event(**fields)).encode()


def several(*events: dict[str, Any]) -> bytes:
    return json.dumps(events).encode()


def text(record: bytes, old: str, new: str) -> bytes:
    """The record with one piece of its JSON replaced."""
    assert old.encode() in record, record
    return record.replace(old.encode(), new.encode(), 1)


def columns(count: object = 2, constant: object = None, /, **given: object) -> bytes:
    """A record in columns; ``given`` adds columns or, with None, takes them away."""
    required: dict[str, object] = {
        "time_unix_s": [1.0, 2.0], "service": ["a", "a"], "model": ["m", "m"], "duration_s": [1, 1],
        "status": ["ok", "ok"],
    }  # fmt: skip
    kept = {name: column for name, column in (required | given).items() if column is not None}
    return json.dumps({"type": "inference", "count": count, "constant": constant or {}, "columns": kept}).encode()


def packed(code: str, *values: float) -> dict[str, str]:
    return {code: base64.b64encode(np.array(values, dtype=f"<{code}").tobytes()).decode()}


def coded(dictionary: list[Any], *index: int) -> dict[str, Any]:
    return {"dictionary": dictionary, "index": packed("u1" if len(dictionary) <= 256 else "u2", *index)}


def only(value: bytes, event_type: EventType = INFERENCE) -> Batch:
    [batch] = decode(event_type, value)
    return batch


def rows(batches: list[Batch]) -> list[dict[str, Any]]:
    return [batch.rows.event(index) for batch in batches for index in range(len(batch.rows))]


def refusal(value: bytes, event_type: EventType | None = INFERENCE) -> Rejected:
    """Why the whole record is refused; `route` and `decode` agree on it."""
    with pytest.raises(Rejected) as routed:
        route(value, event_type)
    if event_type is not None:
        with pytest.raises(Rejected) as decoded:
            decode(event_type, value)
        assert (decoded.value.reason, decoded.value.detail) == (routed.value.reason, routed.value.detail)
    return routed.value


# --- values of every field, from the types --------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    (-0.0, 5e-324, 2.0**63, 1.7976931348623157e308)
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | FINITE | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)

SKETCHES = st.lists(st.floats(-1e9, 1e9), max_size=5).map(lambda them: Sketch.of(np.array(them)).to_wire())


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Plain JSON values of a type hint of `streammon.events`."""
    known = {NonNegative: FINITE.map(abs), float: FINITE, Any: JSON, Sketch: SKETCHES}
    if hint in known:
        return known[hint]
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        optional = _fields(hint)
        required = {field.name: optional.pop(field.name) for field in msgspec.structs.fields(hint) if field.required}
        return st.fixed_dictionaries(required, optional=optional)
    return _composed(get_origin(hint), get_args(hint)) if get_args(hint) else st.from_type(hint)


def _composed(origin: Any, parts: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is dict:
        return st.dictionaries(st.text(), values(parts[1]), max_size=3)
    if origin is list:
        return st.lists(values(parts[0]), max_size=3)
    return reduce(or_, (values(part) for part in parts if part is not type(None)))


def _fields(of: type[msgspec.Struct]) -> dict[str, st.SearchStrategy[Any]]:
    return {name: values(hint) for name, hint in get_type_hints(of, include_extras=True).items()}


def events_of(event_type: EventType) -> st.SearchStrategy[list[dict[str, Any]]]:
    hints = get_type_hints(STRUCTS[event_type], include_extras=True)
    by_name = {name: values(hints[name]) for name in wire.codec_of(event_type).fields}
    by_name["time_unix_s"] = st.floats(0, wire.MAX_TIME_UNIX_S, exclude_max=True)
    required = {name: by_name.pop(name) for name, spec in wire.codec_of(event_type).fields.items() if spec.required}
    return st.lists(st.fixed_dictionaries(required, optional=by_name), min_size=1, max_size=5)


@st.composite
def typed_events(draw: st.DrawFn) -> tuple[EventType, list[dict[str, Any]]]:
    event_type = draw(st.sampled_from(EventType))
    return event_type, draw(events_of(event_type))


def comparable(found: list[dict[str, Any]]) -> list[str]:
    """Rows without the order of their fields; datasets as maps, and 1 and 1.0, 0.0 and -0.0 the same."""
    plain = msgspec.to_builtins(found)
    return [json.dumps(_plain(row), sort_keys=True) for row in plain]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return float(value) + 0.0 if isinstance(value, int | float) and not isinstance(value, bool) else value


# --- what honest senders send ---------------------------------------------------------------------------------------


@settings(deadline=None)
@given(typed_events())
def test_every_density_gives_the_same_rows(sent: tuple[EventType, list[dict[str, Any]]]) -> None:
    event_type, events = sent
    found = {
        density: [batch for value in encode(event_type, events, density) for batch in decode(event_type, value)]
        for density in Density
    }
    expected = comparable(rows(found[Density.OBJECT]))
    assert len(expected) == len(events)
    for density in BATCHED:
        assert comparable(rows(found[density])) == expected, density
        assert not found[density][0].rows.faults()


@settings(deadline=None)
@given(typed_events())
def test_rows_hold_what_was_sent(sent: tuple[EventType, list[dict[str, Any]]]) -> None:
    event_type, events = sent
    [value] = encode(event_type, events, Density.PACKED)
    for found, given_event in zip(rows(decode(event_type, value)), events, strict=True):
        for name, value_sent in given_event.items():
            if isinstance(value_sent, str | bool | float):
                assert found[name] == value_sent


EDGES = [0, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**53 + 1, 2**63 - 1, -(2**63)]


@given(
    st.lists(st.floats() | st.sampled_from(EDGES), min_size=2).filter(lambda values: set(map(type, values)) != {int})
)
def test_numbers_are_packed_as_the_bytes_that_numpy_makes_of_them(values: list[float]) -> None:
    assert packed_column(values) == packed("f8", *values)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9) | st.sampled_from(EDGES), min_size=2))
def test_whole_numbers_are_packed_as_the_narrowest_bytes_that_numpy_makes_of_them(values: list[int]) -> None:
    narrow = all(-(2**31) <= value < 2**31 for value in values)
    assert packed_column(values) == packed("i4" if narrow else "i8", *values)


def test_whole_numbers_beyond_64_bits_are_not_packed() -> None:
    assert packed_column([2**63, 1]) == [2**63, 1]


@pytest.mark.parametrize(("size", "code"), [(2, "u1"), (256, "u1"), (257, "u2"), (65_536, "u2"), (65_537, "i4")])
def test_texts_and_shared_maps_are_packed_with_the_index_that_numpy_makes(size: int, code: str) -> None:
    codes = [*range(size), *reversed(range(size)), 1]
    texts = [None if number == 1 else f"text {number}" for number in range(size)]
    assert packed_column([texts[number] for number in codes]) == {"dictionary": texts, "index": packed(code, *codes)}
    maps = [{"x": number} for number in range(size)]
    assert packed_column([maps[number] for number in codes]) == {"dictionary": maps, "index": packed(code, *codes)}


def packed_column(values: list[Any]) -> Any:
    [value] = encode(INFERENCE, [{"it": each} for each in values], Density.PACKED)
    return json.loads(value)["columns"]["it"]


@settings(deadline=None)
@given(typed_events())
def test_columns_agree_with_events(sent: tuple[EventType, list[dict[str, Any]]]) -> None:
    event_type, events = sent
    for density in BATCHED:
        [value] = encode(event_type, events, density)
        batch = only(value, event_type)
        read = rows([batch])
        for name, spec in wire.codec_of(event_type).fields.items():
            expected = [row.get(name) for row in read]
            dictionary, codes = batch.rows.coded(name)
            assert [dictionary[code] is None for code in codes] == [value is None for value in expected]
            assert list(batch.rows.objects(name) or [None] * len(read)) == expected
            if spec.numeric and (numbers := batch.rows.floats(name)) is not None:
                assert [None if math.isnan(number) else number for number in numbers] == expected
            elif not spec.numeric:
                assert batch.rows.present(name).tolist() == [value is not None for value in expected]


@settings(deadline=None)
@given(typed_events(), st.sampled_from(BATCHED))
def test_a_split_loses_and_invents_nothing(sent: tuple[EventType, list[dict[str, Any]]], density: Density) -> None:
    event_type, events = sent
    [value] = encode(event_type, events, density)
    routed = route(value)
    assert (routed.accepted, routed.rejected) == (len(events), 0)
    found = []
    for record in routed.records:
        part = rows(decode(event_type, record.value or b""))
        for row in part:
            names = tuple(row.get(name) for name in KEYS[event_type])
            assert record.key == record_key(event_type, names)
        found += part
    assert sorted(comparable(found)) == sorted(comparable(rows(decode(event_type, value))))


def test_integers_beyond_64_bits_survive_a_split() -> None:
    log = {"time_unix_s": 1.0, "message": "m", "fields": {"big": 2**200, "small": -(2**70)}}
    [value] = encode(EventType.LOG, [{**log, "service": "a"}, {**log, "service": "b"}], Density.ARRAY)
    for record in route(value).records:
        [row] = rows(decode(EventType.LOG, record.value or b""))
        assert row["fields"] == log["fields"]


@pytest.mark.parametrize("density", Density)
def test_an_empty_string_is_a_value_and_a_missing_one_is_none(density: Density) -> None:
    values = encode(INFERENCE, [event(host=""), event()], density)
    found = rows([batch for value in values for batch in decode(INFERENCE, value)])
    assert [row.get("host") for row in found] == ["", None]


@pytest.mark.parametrize("density", BATCHED)
def test_true_and_one_stay_apart(density: Density) -> None:
    [value] = encode(INFERENCE, [event(prediction=given) for given in (True, 1.0, "1", False, 0.0)], density)
    found = [row["prediction"] for row in rows(decode(INFERENCE, value))]
    assert [(type(one), one) for one in found] == [(bool, True), (float, 1.0), (str, "1"), (bool, False), (float, 0.0)]


EMPTY = columns(0, time_unix_s=[], service=[], model=[], duration_s=[], status=[])


@pytest.mark.parametrize("value", [b"[]", b'{"count":0,"columns":{}}', EMPTY])
def test_an_empty_batch_has_no_rows_and_no_faults(value: bytes) -> None:
    assert rows(decode(INFERENCE, value)) == []
    assert route(value, INFERENCE).accepted == 0


def test_a_column_goes_before_a_constant_of_the_same_name() -> None:
    assert [row["host"] for row in rows(decode(INFERENCE, columns(2, {"host": "c"}, host=["x", "y"])))] == ["x", "y"]


def test_the_last_of_duplicate_json_keys_counts() -> None:
    [value] = encode(INFERENCE, [event(host="first")], Density.OBJECT)
    assert only(text(value, '"host":"first"', '"host":"first","host":"last"')).rows.event(0)["host"] == "last"


def test_unknown_fields_are_ignored_in_every_density() -> None:
    for density in Density:
        for value in encode(INFERENCE, [event(colour="red", nested={"a": [1]})], density):
            assert set(only(value).rows.event(0)) == set(event())


def test_schema_and_type_may_be_left_out() -> None:
    assert only(one()).rows.event(0) == event()
    assert only(columns().replace(b'"type": "inference", ', b"")).rows.floats("duration_s") is not None


@pytest.mark.parametrize("code", ["f8", "f4", "i8", "i4", "u2", "u1"])
def test_every_number_format_is_read(code: str) -> None:
    assert only(columns(duration_s=packed(code, 3, 200))).rows.floats("duration_s") == pytest.approx([3, 200])


@pytest.mark.parametrize("code", ["i8", "i4", "u2", "u1"])
def test_every_integer_format_can_be_an_index(code: str) -> None:
    record = columns(host={"dictionary": ["x", None], "index": packed(code, 1, 0)})
    assert only(record).rows.objects("host") == [None, "x"]


def test_equal_dictionary_entries_are_one_key() -> None:
    record = columns(service={"dictionary": ["a", "a"], "index": packed("u1", 0, 1)})
    assert [each.value for each in route(record).records] == [record]


def test_numbers_at_the_edges_are_read_exactly() -> None:
    edges = [-0.0, 5e-324, 2.0**63, 2.0**64, 1.7976931348623157e308]
    for density in BATCHED:
        [value] = encode(INFERENCE, [event(confidence=edge) for edge in edges], density)
        found = only(value).rows.floats("confidence")
        assert found is not None
        assert found.tobytes() == np.array(edges).tobytes(), density
    assert only(columns(confidence=[2**63, -(2**64)])).rows.floats("confidence") == pytest.approx([2.0**63, -(2.0**64)])


def test_an_event_may_be_a_batch_of_one() -> None:
    [value] = encode(INFERENCE, [event()], Density.OBJECT, Identity("a", "b", 7))
    assert only(value).identity == Identity("a", "b", 7)
    assert only(text(value, '"boot":"b",', "")).identity is None


def test_an_array_of_several_identities_is_several_batches() -> None:
    events = [event(agent="a", boot="b", seq=seq) for seq in (0, 0, 1)]
    found = decode(INFERENCE, json.dumps(events).encode())
    assert [(batch.identity, len(batch.rows)) for batch in found] == [
        (Identity("a", "b", 0), 2),
        (Identity("a", "b", 1), 1),
    ]


# --- whole records refused ------------------------------------------------------------------------------------------

BAD_FORM: dict[str, tuple[bytes, Reason, str]] = {
    "empty": (b"", Reason.INVALID_JSON, "truncated"),
    "cut off": (one()[:-1], Reason.INVALID_JSON, "truncated"),
    "trailing garbage": (one() + b"x", Reason.INVALID_JSON, "trailing"),
    "byte order mark": (b"\xef\xbb\xbf" + one(), Reason.INVALID_JSON, "byte 0"),
    "UTF-16": (json.dumps(event()).encode("utf-16"), Reason.INVALID_UNICODE, "position 0"),
    "a number": (b"5", Reason.INVALID_EVENT, "object"),
    "null": (b"null", Reason.INVALID_EVENT, "object"),
    "just NaN": (b"NaN", Reason.INVALID_EVENT, "nan"),
    "an array of numbers": (b"[1]", Reason.INVALID_EVENT, "$[0]"),
    "NaN in broken JSON": (b'{"duration_s":NaN', Reason.INVALID_JSON, ""),
    "a missing field": (b'{"time_unix_s":1}', Reason.INVALID_EVENT, "service"),
    "a missing field of one event": (several(event(), {"time_unix_s": 1}), Reason.INVALID_EVENT, "$[1]"),
    "a wrong type": (one(service=5), Reason.INVALID_EVENT, "$.service"),
    "a wrong choice": (one(status="fine"), Reason.INVALID_EVENT, "$.status"),
    "another type of event": (one(type="log"), Reason.WRONG_TYPE, "'log'"),
    "another type in an array": (several(event(), event(type="log")), Reason.WRONG_TYPE, "event 1"),
    "another type beside NaN": (several(event(cost_amount=NAN), event(type="log")), Reason.WRONG_TYPE, "event 1"),
    "a type that is no text": (one(type=[]), Reason.INVALID_EVENT, "$.type"),
    "schema 2": (one(schema=2), Reason.UNKNOWN_SCHEMA, "schema is 2"),
    "schema 2 in an array": (several(event(), event(schema=2)), Reason.UNKNOWN_SCHEMA, "event 1: schema is 2"),
    "schema 2 beside NaN": (several(event(cost_amount=NAN), event(schema=2)), Reason.UNKNOWN_SCHEMA, "event 1"),
    "schema 2 in columns": (text(columns(), "{", '{"schema":2,'), Reason.UNKNOWN_SCHEMA, "schema is 2"),
    "schema as text": (one(schema="1"), Reason.UNKNOWN_SCHEMA, "'1'"),
    "schema true": (one(schema=True), Reason.UNKNOWN_SCHEMA, "True"),
    "schema null": (one(schema=None), Reason.UNKNOWN_SCHEMA, "None"),
    "schema true in columns": (text(columns(), "{", '{"schema":true,'), Reason.UNKNOWN_SCHEMA, "True"),
    "a negative seq": (one(agent="a", boot="b", seq=-1), Reason.INVALID_EVENT, "seq is -1"),
    "a huge seq": (one(agent="a", boot="b", seq=2**63), Reason.INVALID_EVENT, "seq is"),
    "a number out of range": (text(one(), "0.5", "1e400"), Reason.INVALID_EVENT, "$.duration_s"),
    "an integer out of range": (text(one(), "0.5", "9" * 400), Reason.INVALID_EVENT, "$.duration_s"),
    "one out of range beside NaN": (text(one(cost_amount=NAN), "0.5", "9" * 400), Reason.INVALID_EVENT, "$.duration_s"),
    "more digits than Python reads": (text(one(cost_amount=NAN), "0.5", "9" * 5000), Reason.INVALID_JSON, ""),
    "count missing": (text(columns(), '"count": 2, ', ""), Reason.INVALID_EVENT, "count"),
    "count negative": (columns(-1), Reason.INVALID_EVENT, "count is -1"),
    "count huge": (columns(10**9), Reason.TOO_LARGE, "count is 1000000000"),
    "count beyond 64 bits": (columns(10**30), Reason.TOO_LARGE, "count is 1000"),
    "count a fraction": (columns(2.5), Reason.INVALID_EVENT, "$.count"),
    "count true": (columns(True), Reason.INVALID_EVENT, "$.count"),
    "count NaN": (columns(NAN), Reason.INVALID_EVENT, "$.count"),
    "count too small": (columns(1), Reason.UNEQUAL_LENGTHS, "column time_unix_s has 2 values, count is 1"),
    "count too large": (columns(3), Reason.UNEQUAL_LENGTHS, "column time_unix_s has 2 values, count is 3"),
    "negative dropped": (text(columns(), "{", '{"dropped":-1,'), Reason.INVALID_EVENT, "dropped is -1"),
    "more dropped than can be counted": (
        text(columns(), "{", '{"dropped":9007199254740993,'), Reason.INVALID_EVENT, "dropped is 9007199254740993",
    ),
    "dropped in more digits than Python writes": (
        text(columns(), "{", '{"dropped":' + "9" * 4300 + ","), Reason.INVALID_EVENT, "dropped is 999",
    ),
    "columns is a list": (b'{"count":1,"constant":{},"columns":[]}', Reason.INVALID_EVENT, "$.columns"),
    "one column short": (columns(host=["x"]), Reason.UNEQUAL_LENGTHS, "column host has 1 values"),
    "a required column missing": (columns(model=None, status=None), Reason.INVALID_EVENT, "model, status"),
    "null in a required column": (columns(service=["a", None]), Reason.INVALID_EVENT, "column service: value 1"),
    "null in a required number": (columns(duration_s=[None, 1]), Reason.INVALID_EVENT, "column duration_s: value 0"),
    "null beside NaN": (columns(duration_s=[NAN, None]), Reason.INVALID_EVENT, "column duration_s: value 1"),
    "null constant": (columns(2, {"service": None}, service=None), Reason.INVALID_EVENT, "service"),
    "a constant of a wrong type": (columns(2, {"host": 5}), Reason.INVALID_EVENT, "column host"),
    "a constant list": (columns(2, {"duration_s": [1, 1]}, duration_s=None), Reason.INVALID_EVENT, "column duration_s"),
    "a wrong type in a column": (columns(host=["x", 5]), Reason.INVALID_EVENT, "column host"),
    "text in a number column": (columns(duration_s=[1, "2"]), Reason.INVALID_EVENT, "column duration_s"),
    "true in a number column": (columns(duration_s=[1, True]), Reason.INVALID_EVENT, "column duration_s"),
    "a column that is text": (columns(host="xx"), Reason.INVALID_EVENT, "column host"),
    "nested lists": (columns(host=[["x"], ["y"]]), Reason.INVALID_EVENT, "column host"),
    "an empty packed column": (columns(host={}), Reason.BAD_PACKING, "column host"),
    "an unknown format": (columns(duration_s={"f16": "AAA="}), Reason.INVALID_EVENT, "f16"),
    "an unknown format beside NaN": (
        columns(duration_s={"f16": "AAA="}, cost_amount=[NAN, 1]),
        Reason.INVALID_EVENT, "column duration_s",
    ),
    "two formats": (
        columns(duration_s=packed("f8", 1, 2) | packed("i4", 1, 2)),
        Reason.BAD_PACKING, "column duration_s",
    ),
    "bad base64": (columns(duration_s={"f8": "*"}), Reason.BAD_PACKING, "column duration_s"),
    "packed with a wrong length": (columns(duration_s=packed("f8", 1)), Reason.UNEQUAL_LENGTHS, "8 bytes of f8"),
    "half a number": (columns(duration_s={"f8": "AAA="}), Reason.UNEQUAL_LENGTHS, "2 bytes of f8"),
    "numbers for text": (columns(host=packed("i4", 1, 2)), Reason.INVALID_EVENT, "column host"),
    "a dictionary without index": (columns(host={"dictionary": ["x"]}), Reason.BAD_PACKING, "column host"),
    "an index without dictionary": (columns(host={"index": packed("u1", 0, 0)}), Reason.BAD_PACKING, "column host"),
    "a dictionary with numbers": (columns(host=coded(["x"], 0, 0) | packed("u1", 0, 0)), Reason.BAD_PACKING, "u1"),
    "an index in an index": (
        columns(host={"dictionary": ["x"], "index": packed("u1", 0, 0) | {"index": {}}}),
        Reason.BAD_PACKING, "index",
    ),
    "an index past the dictionary": (
        columns(host=coded(["x"], 0, 1)),
        Reason.BAD_INDEX, "index 0 to 1, the dictionary has 1",
    ),
    "an index into nothing": (columns(host=coded([], 0, 0)), Reason.BAD_INDEX, "column host"),
    "a negative index": (
        columns(host={"dictionary": ["x"], "index": packed("i4", -1, 0)}),
        Reason.BAD_INDEX, "index -1",
    ),
    "a fractional index": (
        columns(host={"dictionary": ["x"], "index": packed("f8", 0, 0)}),
        Reason.BAD_PACKING, "integers",
    ),
    "a short index": (columns(host=coded(["x"], 0)), Reason.UNEQUAL_LENGTHS, "column host"),
    "a wrong type in a dictionary": (columns(host=coded([5], 0, 0)), Reason.INVALID_EVENT, "column host"),
    "a required null in a dictionary": (
        columns(service=coded([None, None, "a"], 1, 2)),
        Reason.INVALID_EVENT, "service has a null",
    ),
    "a map for too many rows": (
        columns(100_000, {**event(), "features": dict.fromkeys(map(str, range(11)), 1)}, **dict.fromkeys(event())),
        Reason.TOO_LARGE, "1100000 entries",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FORM)
def test_a_record_of_bad_form_is_refused_whole_and_told_why(case: str) -> None:
    value, reason, detail = BAD_FORM[case]
    found = refusal(value)
    assert (found.reason, detail in found.detail) == (reason, True), found.detail


def test_a_record_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(Rejected, match="at most 1048576") as error:
        route(b"[" * (MAX_RECORD_BYTES + 1))
    assert error.value.reason == Reason.TOO_LARGE


SURROGATES = {
    "a high one": b'"\\ud800"',
    "a low one": b'"\\udc00"',
    "a reversed pair": b'"\\udc00\\ud800"',
    "two high ones": b'"\\ud800\\ud800"',
    "encoded": b'"\xed\xa0\x80"',
}


@pytest.mark.parametrize("lone", SURROGATES.values(), ids=SURROGATES)
@pytest.mark.parametrize("beside", [b"", b',"cost_amount":NaN'], ids=["", "beside NaN"])
def test_lone_surrogates_are_refused_wherever_they_stand(lone: bytes, beside: bytes) -> None:
    head = one()[:-1] + beside
    for place in (b'"host":%s', b'"ignored":%s', b'%s:"host"', b'"features":{%s:1}', b'"features":{"a":%s}'):
        alone = head + b"," + place % lone + b"}"
        for value in (alone, b"[%s]" % alone):
            assert refusal(value).reason == Reason.INVALID_UNICODE
    for place in (
        b'"host":[%s,"x"]',
        b'"ignored":[%s]',
        b'%s:["x","y"]',
        b'"host":{"dictionary":[%s],"index":{"u1":"AAA="}}',
    ):
        value = columns().replace(b'"columns": {', b'"columns": {' + place % lone + b", ")
        assert refusal(value).reason == Reason.INVALID_UNICODE


def test_a_surrogate_pair_is_a_character() -> None:
    value = text(one(host="x"), '"x"', '"\\ud83d\\ude00"')
    assert only(value).rows.event(0)["host"] == "😀"
    assert only(text(value, "0.5", "NaN")).rows.event(0)["host"] == "😀"


@pytest.mark.parametrize("bad", [b"\xff", b"\xc0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"])
def test_invalid_utf8_is_refused_even_in_an_ignored_field(bad: bytes) -> None:
    for name in ("host", "ignored"):
        for shape in (json.dumps(event(**{name: "?"})), json.dumps([event(**{name: "?"})])):
            assert refusal(shape.encode().replace(b"?", bad)).reason == Reason.INVALID_UNICODE
        assert refusal(columns(**{name: ["?", "x"]}).replace(b"?", bad)).reason == Reason.INVALID_UNICODE


@pytest.mark.parametrize("opening", ["[", '{"a":'])
@pytest.mark.parametrize("beside", ["", '"cost_amount":NaN,'])
def test_nesting_deeper_than_the_stack_is_refused(opening: str, beside: str) -> None:
    closing = "]" if opening == "[" else "}"
    deep = opening * 50_000 + "1" + closing * 50_000
    value = text(one(), "{", "{" + beside + '"deep":' + deep + ",")
    assert refusal(value).detail == "nested too deeply"
    with pytest.raises(Rejected, match="nested too deeply"):
        route(value)
    assert claimed_events(value) == 1


@pytest.mark.parametrize("depth", range(50, 1000, 50))
def test_nesting_that_can_be_read_can_be_split_or_is_refused(depth: int) -> None:
    deep = "[" * depth + "NaN" + "]" * depth
    log = '{"time_unix_s":1,"service":"%s","message":"m","type":"log","fields":{"x":%s}}'
    value = f"[{log % ('a', deep)},{log % ('b', deep)}]".encode()
    if depth > 200:  # somewhere above, depending on who calls
        with contextlib.suppress(Rejected):
            route(value)
        return
    routed = route(value)
    assert (len(routed.records), routed.rejected) == (2, 2)


def test_a_record_of_one_megabyte_is_read() -> None:
    [value] = encode(INFERENCE, [event(event_id=f"{number:040}") for number in range(5800)], Density.ARRAY)
    assert 0.95 * MAX_RECORD_BYTES < len(value) <= MAX_RECORD_BYTES
    assert route(value).accepted == 5800


# --- single events refused ------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, Any, Reason, str]] = {
    "a NaN": ("duration_s", NAN, Reason.NON_FINITE, "duration_s"),
    "an infinity": ("duration_s", INF, Reason.NON_FINITE, "duration_s"),
    "a negative infinity": ("confidence", -INF, Reason.NON_FINITE, "confidence"),
    "an optional NaN": ("ttft_s", NAN, Reason.NON_FINITE, "ttft_s"),
    "a NaN that is no time": ("time_unix_s", NAN, Reason.NON_FINITE, "time_unix_s"),
    "an infinite time": ("time_unix_s", INF, Reason.NON_FINITE, "time_unix_s"),
    "a negative duration": ("duration_s", -1e-9, Reason.NEGATIVE, "duration_s is -1e-09"),
    "a negative count": ("input_tokens", -1.0, Reason.NEGATIVE, "input_tokens is -1"),
    "milliseconds": ("time_unix_s", 1.7e12, Reason.BAD_TIME, "milliseconds"),
    "a time before 1970": ("time_unix_s", -1.0, Reason.BAD_TIME, "time_unix_s -1.0"),
    "NaN as the prediction": ("prediction", NAN, Reason.NON_FINITE, "prediction"),
    "NaN in the features": ("features", {"a": 1.0, "age": NAN}, Reason.NON_FINITE, "features.age is nan"),
    "infinity in the metrics": ("metrics", {"loss": INF}, Reason.NON_FINITE, "metrics.loss is inf"),
}


@pytest.mark.parametrize("density", Density)
@pytest.mark.parametrize("case", FAULTS)
def test_an_event_with_a_bad_value_is_refused_and_its_neighbours_kept(case: str, density: Density) -> None:
    name, value, reason, detail = FAULTS[case]
    events = [event(), event(**{name: value}), event()]
    batches = [batch for record in encode(INFERENCE, events, density) for batch in decode(INFERENCE, record)]
    faults = [batch.rows.faults() for batch in batches]
    [fault] = [fault for found in faults for fault in found]
    assert (fault.reason, detail in fault.detail) == (reason, True), fault.detail
    assert faults == [[], [fault], []] if density is Density.OBJECT else fault.row == 1


@pytest.mark.parametrize("shape", ["constant", "list", "dictionary", "packed"])
def test_a_nan_in_any_shape_of_column_is_a_fault_of_its_rows(shape: str) -> None:
    given = {"list": [NAN, 1.0], "dictionary": coded([NAN, 1.0], 0, 1), "packed": packed("f8", NAN, 1)}
    record = columns(2, {"confidence": NAN}) if shape == "constant" else columns(confidence=given[shape])
    found = [(fault.row, fault.reason) for fault in only(record).rows.faults()]
    assert found == [(row, Reason.NON_FINITE) for row in ((0, 1) if shape == "constant" else (0,))]


def test_absent_numbers_are_no_fault() -> None:
    for record in (
        columns(confidence=[None, 0.5]),
        columns(confidence={"dictionary": [None, 0.5], "index": packed("u1", 0, 1)}),
    ):
        batch = only(record)
        assert batch.rows.faults() == []
        assert "confidence" not in batch.rows.event(0)


def test_negative_zero_is_not_negative() -> None:
    assert only(columns(duration_s=[-0.0, 0.0])).rows.faults() == []


@pytest.mark.parametrize("name", ["resources", "error", "inputs"])
def test_nan_deep_inside_a_pipeline_event_is_refused(name: str) -> None:
    inside = {
        "resources": {"cpu_s": NAN}, "error": {"trace": [1, {"x": NAN}]},
        "inputs": [{"name": "d", "quality": {"age": {"mean": NAN}}}],
    }[name]  # fmt: skip
    run = {"time_unix_s": 1.0, "job": "j", "run_id": "r", "event": "started"}
    for density in BATCHED:
        [value] = encode(EventType.PIPELINE, [run, {**run, name: inside}], density)
        [fault] = only(value, EventType.PIPELINE).rows.faults()
        assert (fault.row, fault.reason) == (1, Reason.NON_FINITE)
        assert fault.detail.startswith(name)


def measured(**fields: Any) -> dict[str, Any]:
    return {"time_unix_s": 1.0, "host": "h", "entity": "service", "id": "s", "metrics": {}} | fields


def histogram(counts: Any = (), **fields: Any) -> dict[str, Any]:
    return {"sum": 1.0, "sketch": {"scale": 6, "zero_count": 1, "offset": 0, "counts": [*counts]}} | fields


@pytest.mark.parametrize("density", Density)
@pytest.mark.parametrize(
    ("wrong", "reason", "detail"),
    [
        ({"counters": {"a": 1.0, "b": -1.0}}, Reason.NEGATIVE, "counters.b is -1"),
        ({"counters": {"a": NAN, "b": -1.0}}, Reason.NON_FINITE, "counters.a is nan"),
        ({"histograms": {"a": histogram(), "b": histogram(sum=INF)}}, Reason.NON_FINITE, "histograms.b.sum is inf"),
        ({"histograms": {"a": histogram(min=NAN)}}, Reason.NON_FINITE, "histograms.a.min is nan"),
        ({"histograms": {"a": histogram(max=-INF)}}, Reason.NON_FINITE, "histograms.a.max is -inf"),
    ],
    ids=str,
)
def test_counters_and_histograms_that_cannot_be_refuse_their_event_alone(
    wrong: dict[str, Any], reason: Reason, detail: str, density: Density
) -> None:
    fine = measured(counters={"a": 0.0}, histograms={"a": histogram(sum=-1.0, min=-2.0)})
    records = encode(EventType.RESOURCE, [fine, measured(**wrong), fine], density)
    batches = [batch for record in records for batch in decode(EventType.RESOURCE, record)]
    [fault] = [fault for batch in batches for fault in batch.rows.faults()]
    assert (fault.reason, detail in fault.detail) == (reason, True), fault.detail
    routed = [route(record) for record in records]
    assert [sum(each.rejected for each in routed), sum(each.accepted for each in routed)] == [1, 2]


@pytest.mark.parametrize("density", BATCHED)
@pytest.mark.parametrize(
    "lie",
    [
        {"counts": [-1]}, {"counts": [2**53]}, {"counts": [0.5]}, {"counts": [1] * 4097}, {"counts": None},
        {"counts": {"u1": "*"}}, {"counts": {"f8": "AAAA"}}, {"counts": {"u1": "A" * 8000}},
        {"zero_count": -1}, {"scale": 7}, {"offset": 10**6},
    ],
    ids=str,
)  # fmt: skip
def test_sketch_that_cannot_be_refuses_its_record(lie: dict[str, Any], density: Density) -> None:
    wrong = histogram()
    wrong["sketch"] |= lie
    [record] = encode(EventType.RESOURCE, [measured(), measured(histograms={"a": wrong})], density)
    assert refusal(record, EventType.RESOURCE).reason in (Reason.INVALID_EVENT, Reason.BAD_PACKING)


def test_histograms_count_as_the_entries_that_they_cost() -> None:
    """A constant is read once, but merged for every event."""

    def shared(rows: int, *buckets: int) -> bytes:
        maps = {str(number): histogram([1] * size) for number, size in enumerate(buckets)}
        constant = measured(histograms=maps)
        return json.dumps({"type": "resource", "count": rows, "constant": constant, "columns": {}}).encode()

    assert len(only(shared(50_000, 0), EventType.RESOURCE).rows) == 50_000
    assert "1020000 entries" in refusal(shared(60_000, 1), EventType.RESOURCE).detail
    assert "1016000 entries" in refusal(shared(500, 1000, 1000), EventType.RESOURCE).detail
    packed_counts = histogram() | {"sketch": Sketch.of(np.geomspace(1, 1e9, 5000)).to_wire()}
    record = json.dumps(
        {"type": "resource", "count": 600, "constant": measured(histograms={"a": packed_counts}), "columns": {}}
    )
    assert refusal(record.encode(), EventType.RESOURCE).reason == Reason.TOO_LARGE


def test_several_bad_values_of_one_event_are_one_fault() -> None:
    for density in BATCHED:
        [value] = encode(INFERENCE, [event(duration_s=NAN, ttft_s=-1, time_unix_s=-1, features={"a": NAN})], density)
        assert len(only(value).rows.faults()) == 1
        assert route(value).rejected == 1


# --- routing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", Density)
def test_a_value_with_one_key_is_passed_on_unchanged(density: Density) -> None:
    [value] = encode(INFERENCE, [event(duration_s=NAN, extra=1)], density)
    [record] = route(value).records
    assert (record.topic, record.key, record.value) == ("inference", b"shop/ranker", value)
    assert dict(record.headers) == {"streammon-schema": b"1"}


@pytest.mark.parametrize("event_type", EventType)
@pytest.mark.parametrize("density", Density)
def test_the_topic_is_told_from_the_type(event_type: EventType, density: Density) -> None:
    everything = {
        "service": "s", "model": "m", "host": "h", "job": "j", "time_unix_s": 1.0, "duration_s": 1.0, "status": "ok",
        "entity": "host", "id": "0", "metrics": {"x": 1.0}, "event_id": "e", "run_id": "r", "event": "started",
        "message": "m", "kind": "deploy",
    }  # fmt: skip
    [value] = encode(event_type, [everything], density)
    [record] = route(value).records
    assert record.topic == TOPIC_OF[event_type]
    assert record.key == "/".join(str(everything[name]) for name in KEYS[event_type]).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{}", Reason.INVALID_EVENT),
        (b"[]", Reason.INVALID_EVENT),
        (b'{"type":"window"}', Reason.WRONG_TYPE),
        (b'{"type":"tick"}', Reason.WRONG_TYPE),
        (b'{"type":[],"x":NaN}', Reason.INVALID_EVENT),
        (b'[[],{"x":NaN}]', Reason.INVALID_EVENT),
        (b"NaN", Reason.INVALID_EVENT),
    ],
)
def test_a_value_of_unknown_type_is_refused(value: bytes, reason: Reason) -> None:
    assert refusal(value, None).reason == reason


@pytest.mark.parametrize("density", BATCHED)
def test_a_split_batch_keeps_its_identity_under_a_boot_of_the_key(density: Density) -> None:
    events = [event(model=model) for model in ("a", "b", "a")]
    dropped = 0 if density is Density.ARRAY else 4
    [value] = encode(INFERENCE, events, density, Identity("agent", "boot", 3), dropped)
    routed = route(value)
    parts = {record.key: only(record.value or b"") for record in routed.records}
    assert {key: (part.identity, len(part.rows), part.sparse) for key, part in parts.items()} == {
        b"shop/a": (Identity("agent", "boot/shop/a", 3), 2, True),
        b"shop/b": (Identity("agent", "boot/shop/b", 3), 1, True),
    }
    assert [part.dropped for part in parts.values()] == [dropped, 0], "dropped events are counted once"


def test_batches_of_one_key_each_keep_their_identity_as_it_is() -> None:
    events = [event(model=model, agent="a", boot=model, seq=0) for model in ("x", "y")]
    parts = [only(record.value or b"") for record in route(json.dumps(events).encode(), INFERENCE).records]
    assert [(part.identity, part.sparse) for part in parts] == [
        (Identity("a", "x", 0), False),
        (Identity("a", "y", 0), False),
    ]


@pytest.mark.parametrize("density", BATCHED)
@pytest.mark.parametrize("case", FAULTS)
def test_a_refused_event_is_refused_for_the_same_reason_after_a_split(case: str, density: Density) -> None:
    name, value, reason, _ = FAULTS[case]
    events = [event(model="a"), event(model="b", **{name: value}), event(model="b")]
    [record] = encode(INFERENCE, events, density)
    routed = route(record)
    assert (routed.accepted, routed.rejected, dict(routed.reasons)) == (2, 1, {reason: 1})
    again = [fault for part in routed.records for fault in only(part.value or b"").rows.faults()]
    assert [(fault.row, fault.reason) for fault in again] == [(0, reason)]


def test_a_map_that_rows_share_is_not_written_for_every_row() -> None:
    """Else one megabyte could become a hundred thousand."""
    shared = {"a": "x" * 100_000}
    services = dict.fromkeys(event()) | {"service": coded(["a", "b"], *(row % 2 for row in range(1000)))}
    features = coded([shared, {}], *[0] * 999, 1)
    for record in (
        columns(1000, event(features=shared), **services),
        columns(1000, event(), **services, features=features),
    ):
        routed = route(record)
        assert len(routed.records) == 2
        assert all(len(part.value or b"") < 120_000 for part in routed.records)
        assert sum(len(only(part.value or b"").rows) for part in routed.records) == 1000


def test_a_record_that_grows_without_bound_when_split_is_refused() -> None:
    count = 5000
    services = dict.fromkeys(event()) | {"service": coded([str(row) for row in range(count)], *range(count))}
    record = columns(count, event(host="x" * 500_000), **services)
    with pytest.raises(Rejected, match="split by key") as error:
        route(record)
    assert error.value.reason == Reason.TOO_LARGE


# --- what a refused record claims -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", 1), (b"junk", 1), (b"{}", 1), (b"5", 1), (b"[]", 1), (b"[1,2,3]", 3), (b"[NaN,NaN]", 2),
        (columns(7), 7), (columns(-7), 1), (columns(10**30), wire.MAX_EVENTS), (columns("7"), 1), (columns(2.5), 1),
        (columns(NAN), 1), (columns(None), 1), (columns([]), 1), (b'{"count":7}', 1), (b"\xff", 1), (b"9" * 5000, 1),
    ],
)  # fmt: skip
def test_a_refused_record_counts_as_the_events_it_claims(value: bytes, expected: int) -> None:
    assert claimed_events(value) == expected


# --- fuzz -----------------------------------------------------------------------------------------------------------


def check(value: bytes) -> None:
    """Nothing but `Rejected` comes out; what is accepted holds together."""
    assert 1 <= claimed_events(value) <= wire.MAX_EVENTS
    for event_type in (None, *EventType):
        try:
            routed = route(value, event_type)
        except Rejected as error:
            error.detail.encode()  # it becomes a header
            continue
        if event_type is not None:
            batches = decode(event_type, value)
            assert routed.accepted + routed.rejected == sum(len(batch.rows) for batch in batches)
            for batch in batches:
                check_rows(event_type, batch.rows)


def check_rows(event_type: EventType, found: Rows) -> None:
    refused = {fault.row for fault in found.faults()}
    sound = np.array([row not in refused for row in range(len(found))], dtype=bool)
    for name, spec in wire.codec_of(event_type).fields.items():
        dictionary, codes = found.coded(name)
        assert len(codes) == len(found)
        assert not len(codes) or 0 <= codes.min() <= codes.max() < len(dictionary)
        if spec.numeric and spec.required:
            column = found.floats(name)
            assert not len(found) or (column is not None and np.isfinite(column[sound]).all())
    original = [found.event(row) for row in range(len(found))]
    again = [encode(event_type, [row], density) for row in original for density in Density]
    reread = [rows(decode(event_type, value)) for [value] in again]
    assert [comparable(one) for one in reread] == [comparable([row]) for row in original for _ in Density]


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_read(value: bytes) -> None:
    check(value)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=200)
@given(ANY_JSON, st.booleans())
def test_arbitrary_json_is_refused_or_read(value: Any, ascii_only: bool) -> None:
    check(json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass"))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid record with a value somewhere inside replaced, taken away or moved."""
    event_type, events = draw(typed_events())
    [value] = encode(event_type, events, draw(st.sampled_from(BATCHED)))
    record = json.loads(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(containers(record))
        place = draw(st.sampled_from(places))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        assume(keys)
        key = draw(st.sampled_from(keys))
        place[key] = draw(ANY_JSON | st.sampled_from((NAN, INF, -1, 2**63, 1e308)) | elsewhere(record))
    return json.dumps(record, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass")


def elsewhere(record: Any) -> st.SearchStrategy[Any]:
    """A copy of something that stands in another place of the record."""
    pieces = [json.dumps(piece) for piece in containers(record)]
    return st.sampled_from(pieces).map(json.loads)


def containers(value: Any, depth: int = 0) -> Iterator[Any]:
    if isinstance(value, dict | list) and depth < 10:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner, depth + 1)


@settings(deadline=None, max_examples=400)
@given(mutated())
def test_a_valid_record_with_something_changed_is_refused_or_read(value: bytes) -> None:
    check(value)


@settings(deadline=None, max_examples=300)
@given(typed_events(), st.sampled_from(BATCHED), st.data())
def test_a_valid_record_with_bytes_changed_is_refused_or_read(
    sent: tuple[EventType, list[dict[str, Any]]], density: Density, data: st.DataObject
) -> None:
    event_type, events = sent
    [value] = encode(event_type, events, density)
    at = data.draw(st.integers(0, len(value)))
    length = data.draw(st.integers(0, 8))
    check(value[:at] + data.draw(st.binary(max_size=8)) + value[at + length :])
