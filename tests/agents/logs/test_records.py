"""What becomes of a line: time, level, service, ids, error and fields, as real loggers write them."""

from __future__ import annotations

import io
import json
import logging
import math
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.events import EventType, Log
from streammon.wire import Density, decode, encode
from streammon_agents.logs.levels import LEVELS
from streammon_agents.logs.records import FUTURE_S, MAX_FIELDS, MAX_TEXT, Line, Reading, event
from streammon_agents.logs.redaction import redactor
from streammon_agents.logs.times import Zone, in_text, of_value

NOW = 1_795_972_900.0  # 2026-11-29T17:21:40Z
AT = 1_795_972_829.0  # 2026-11-29T17:20:29Z


def read(text: str, **reading: Any) -> dict[str, Any]:
    made = event(Line(text, NOW), Reading("shop", **reading))
    msgspec.convert(made, Log)
    return made


TEXTS = [
    ("2026-11-29 17:20:29,000 WARNING [x] slow", AT, "warn"),
    ("2026-11-29T18:20:29.000+01:00 ERROR boom", AT, "error"),
    ("[2026-11-29T17:20:29Z] fatal: no", AT, None),
    ("2026-11-29T17:20:29.123456789Z info", AT + 0.123456789, None),
    ("I1129 17:20:29.500000   12 main.go:3] hello", AT + 0.5, "info"),
    ("E1129 17:20:29.000000   12 main.go:3] bad", AT, "error"),
    ("Nov 29 17:20:29 host sshd[12]: Failed password", AT, None),
    ("2026/11/29 17:20:29 [crit] 12#0: *1 open() failed", AT, "fatal"),
    ("2026/11/29 17:20:29 main.go:3: started", AT, None),
    ("[Sun Nov 29 17:20:29.000000 2026] [core:error] [pid 3] no such file", AT, "error"),
    ("INFO:     Uvicorn running on http://x", NOW, "info"),
    ("WARNING:root:careful", NOW, "warn"),
    ("2026-11-29 17:20:29.000  INFO 1 --- [main] o.s.b.App : Started", AT, "info"),
    ("DEBUG -- no time", NOW, "debug"),
    ("an error of judgement", NOW, None),
    ("11-29 is no time", NOW, None),
    ("2026-13-45 99:99:99 nonsense", NOW, None),
]


@pytest.mark.parametrize(("text", "at", "level"), TEXTS)
def test_texts_have_times_and_levels(text: str, at: float, level: str | None) -> None:
    made = read(text)
    assert made["time_unix_s"] == pytest.approx(at, abs=1e-6)
    assert made.get("level") == level
    assert made["message"] == text
    assert made["service"] == "shop"
    assert made["category"] == "app"


def test_access_logs_give_status_and_user() -> None:
    made = read('10.0.0.1 - ann [29/Nov/2026:18:20:29 +0100] "GET /v1/predict?x=1 HTTP/1.1" 503 17 "-" "curl/8"')
    assert made["time_unix_s"] == AT
    assert (made["level"], made["outcome"], made["user"]) == ("error", "failure", "ann")
    assert made["fields"] == {
        "http.response.status_code": 503, "http.request.method": "GET", "url.path": "/v1/predict",
        "http.response.body.bytes": 17,
    }  # fmt: skip


def test_logfmt_is_read_like_json() -> None:
    made = read('time="2026-11-29T17:20:29Z" level=warning msg="disk \\"x\\" is full" trace_id=4bf9 n=3')
    assert (made["time_unix_s"], made["level"], made["message"]) == (AT, "warn", 'disk "x" is full')
    assert (made["trace_id"], made["fields"]) == ("4bf9", {"n": "3"})


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (  # pino
            {"level": 50, "time": 1795972829000, "pid": 7, "msg": "no", "reqId": 5, "err": {"type": "TypeError",
             "message": "x of undefined", "stack": "TypeError: x\n    at f"}},
            {"level": "error", "message": "no", "request_id": "5", "fields": {"pid": 7},
             "error": {"type": "TypeError", "message": "x of undefined", "stack": "TypeError: x\n    at f"}},
        ),
        (  # zap
            {"level": "dpanic", "ts": 1795972829.0, "caller": "a.go:1", "msg": "no", "error": "bad",
             "stacktrace": "s"},
            {"level": "fatal", "message": "no", "error": {"message": "bad", "stack": "s"},
             "fields": {"caller": "a.go:1"}},
        ),
        (  # ECS, with and without dots
            {"@timestamp": "2026-11-29T17:20:29.000Z", "log.level": "WARN", "message": "no", "service": {"name": "pay",
             "version": "2"}, "trace.id": "ab", "span": {"id": "cd"},
             "http": {"request": {"id": "r1", "method": "GET"}},
             "event": {"category": ["iam"], "action": "grant", "outcome": "success"}, "user": {"name": "ann"}},
            {"level": "warn", "message": "no", "service": "pay", "trace_id": "ab", "span_id": "cd", "request_id": "r1",
             "category": "authorization", "operation": "grant", "outcome": "success", "user": "ann",
             "fields": {"service": {"version": "2"}, "http": {"request": {"method": "GET"}}}},
        ),
        (  # OpenTelemetry
            {"timeUnixNano": "1795972829000000000", "severityNumber": 17, "body": "no", "traceId": "ab", "spanId": "cd",
             "attributes": {"exception.type": "E", "k": 1}, "resource": {"service.name": "pay"}},
            {"level": "error", "message": "no", "trace_id": "ab", "span_id": "cd", "service": "pay",
             "error": {"type": "E"}, "fields": {"attributes": {"k": 1}}},
        ),
        (  # logback, logstash
            {"@timestamp": "2026-11-29T18:20:29.000+01:00", "level": "ERROR", "logger_name": "a.B", "message": "no",
             "stack_trace": "java.lang.IllegalStateException: bad\n\tat a.B.c(B.java:1)\n"},
            {"level": "error", "message": "no", "fields": {"logger_name": "a.B"},
             "error": {"type": "java.lang.IllegalStateException", "message": "bad",
                       "stack": "java.lang.IllegalStateException: bad\n\tat a.B.c(B.java:1)\n"}},
        ),
        (  # Serilog
            {"@t": "2026-11-29T17:20:29Z", "@l": "Warning", "@m": "no", "@x": "s"},
            {"level": "warn", "message": "no", "error": {"stack": "s"}},
        ),
        (  # GELF has syslog's levels
            {"timestamp": 1795972829.0, "level": 3, "short_message": "no", "_x": 1},
            {"level": "error", "message": "no", "fields": {"_x": 1}},
        ),
        ({"time": AT, "log_type": "audit", "event": "no"}, {"message": "no", "category": "audit"}),
        ({"time": AT, "level": "purple", "message": "no"}, {"message": "no", "fields": {"level": "purple"}}),
        ({"time": AT, "message": {"a": 1}, "event": "no"}, {"message": "no", "fields": {"message": {"a": 1}}}),
    ],
)  # fmt: skip
def test_json_of_many_loggers(line: dict[str, Any], expected: dict[str, Any]) -> None:
    made = read(json.dumps(line))
    assert made == {"time_unix_s": AT, "service": "shop", "category": "app", **expected}


def test_what_structlog_and_pythons_logging_write_here_is_understood() -> None:
    out = io.StringIO()
    processors = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso"),
                  structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]  # fmt: skip
    log = structlog.wrap_logger(structlog.PrintLogger(out), processors=processors)  # type: ignore[arg-type]
    log.warning("order placed", request_id="r1", amount=5)
    made = event(Line(out.getvalue().rstrip("\n"), time.time() + 1), Reading("shop"))
    assert made["time_unix_s"] == pytest.approx(time.time(), abs=5)
    assert {**made, "time_unix_s": 0} == {
        "time_unix_s": 0, "service": "shop", "category": "app", "message": "order placed", "level": "warn",
        "request_id": "r1", "fields": {"amount": 5},
    }  # fmt: skip
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    formatter.converter = time.gmtime
    text = formatter.format(logging.LogRecord("a", logging.CRITICAL, "f", 1, "no %s", ("way",), None))
    made = event(Line(text, time.time() + 1), Reading("shop"))
    assert made["level"] == "fatal"
    assert made["time_unix_s"] == pytest.approx(time.time(), abs=5)


def test_python_writes_nan_where_json_has_none() -> None:
    made = read(json.dumps({"message": "epoch", "loss": math.nan, "lr": [math.inf, 0.1]}))
    assert made["message"] == "epoch"
    assert made["fields"] == {"loss": "nan", "lr": ["inf", 0.1]}


def test_traces_become_errors() -> None:
    made = read(
        'x ERROR failed\nTraceback (most recent call last):\n  File "a.py", line 1, in f\n    g()\na.B: no: way'
    )
    assert made["level"] == "error"
    assert (made["error"]["type"], made["error"]["message"]) == ("a.B", "no: way")
    assert made["error"]["stack"].startswith("Traceback")
    go = read("panic: nil map\n\ngoroutine 1 [running]:\nmain.f(0x1)\n\t/a.go:3 +0x1d")
    assert (go["error"]["type"], go["error"]["message"], go["level"]) == ("panic", "nil map", "error")
    java = read('Exception in thread "main" java.io.IOException: gone\n\tat a.B.c(B.java:1)')
    assert (java["error"]["type"], java["error"]["message"]) == ("java.io.IOException", "gone")


def test_the_settings_of_an_input_are_stronger_than_the_line_where_they_say_so() -> None:
    line = '{"message": "no", "service": "other", "category": "security"}'
    assert (read(line)["service"], read(line)["category"]) == ("other", "security")
    assert read(line, fixed_service=True)["service"] == "shop"
    assert read(line, category="audit")["category"] == "audit"
    assert read("x", usual_category="authentication")["category"] == "authentication"
    assert read(line, format="text")["message"] == line


def test_times_without_a_zone_are_utc_or_local() -> None:
    text = "2026-07-01 12:00:00"
    assert in_text(text, Zone()) == 1782907200.0
    assert in_text(text, Zone(local=True)) == datetime(2026, 7, 1, 12).timestamp()  # noqa: DTZ001 - local is meant


def test_a_year_that_is_not_said_is_the_nearest() -> None:
    january = datetime.fromisoformat("2027-01-01T00:10:00+00:00").timestamp()
    assert in_text("Dec 31 23:59:50 host x", Zone(now_unix_s=january)) == january - 610
    assert in_text("I0101 00:10:05.000000 1 a.go:1] x", Zone(now_unix_s=january)) == january + 5
    assert in_text("Feb 29 00:00:00 host x", Zone(now_unix_s=january)) is not None


@pytest.mark.parametrize("value", [1795972829, 1795972829000, 1795972829000000, 1795972829000000000, "1795972829.0"])
def test_numbers_are_times_in_whatever_unit(value: object) -> None:
    assert of_value(value, Zone()) == AT


def test_a_time_from_the_future_becomes_that_of_reading() -> None:
    made = event(Line("2026-11-29 18:20:29 INFO wrong zone", NOW), Reading("shop"))
    assert made["time_unix_s"] == NOW
    assert made["fields"]["log.claimed_time_unix_s"] == AT + 3600
    assert AT + 3600 > NOW + FUTURE_S


def test_what_is_large_is_bounded() -> None:
    many = read(json.dumps({"message": "m", **{f"k{at}": at for at in range(500)}}))
    assert len(many["fields"]) <= MAX_FIELDS + 1
    assert many["fields"]["log.cut_fields"] is True
    long = read(json.dumps({"message": "m", "k": "x" * 100_000, "user": "u" * 100_000, "n": 2**60}))
    assert len(long["fields"]["k"]) <= MAX_TEXT + 1
    assert len(long["user"]) <= MAX_TEXT
    assert long["fields"]["n"] == str(2**60)
    deep: Any = "x"
    for _ in range(50):
        deep = {"d": deep}
    assert len(json.dumps(read(json.dumps({"message": "m", "k": deep}))["fields"])) < 200
    wide = read(json.dumps({"message": "m", "k": [list(range(1000))] * 1000}))
    assert len(json.dumps(wide["fields"])) < 20_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=10), each, max_size=3),
    max_leaves=10,
)


def names() -> Iterator[str]:
    from streammon_agents.logs.records import NAMES

    for each in NAMES.values():
        yield from each
        yield from (name.partition(".")[0] for name in each)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=200)
    | st.dictionaries(
        st.sampled_from([*names(), "attributes", "resource"]) | st.text(max_size=5), JSON, max_size=6
    ).map(json.dumps)
    | st.sampled_from([text for text, *_ in TEXTS]).flatmap(
        lambda text: st.text(max_size=10).map(lambda more: text + more)
    )
)
def test_whatever_stands_in_a_line_it_becomes_a_valid_event(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    made = redactor().event(event(Line(text, NOW, cut_bytes=3, stream="stderr"), Reading("shop")))
    assert made.get("level") in (*LEVELS, None)
    [value] = encode(EventType.LOG, [made], Density.PACKED)
    [batch] = decode(EventType.LOG, value)
    assert not batch.rows.faults()
    assert batch.rows.event(0)["message"] == made["message"]
