"""Bytes to texts: lines, frames of container runtimes, traces; and how far a file is done."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon_agents.logs.assembly import HELD, Assembly, Bounds
from streammon_agents.logs.containers import framing, origin, unframed, workload

WAIT = 10.0


def texts(
    data: bytes, *, container: str = "none", start: str | None = None, pieces: int = 10**9, **bounds: int
) -> list[str]:
    """The events in ``data``, read in so many bytes at a time."""
    assembly = Assembly(0, Bounds(**bounds), container=container, multiline_start=start)
    found = []
    for at in range(0, len(data), pieces):
        assembly.feed(data[at : at + pieces], 0.0)
        found += [pile.text for pile in assembly.ready(0.0)]
    found += [pile.text for pile in assembly.end(0.0)]
    assert assembly.position == assembly.read == len(data)
    return found


PYTHON = """\
2026-11-29 17:20:29,123 ERROR failed
Traceback (most recent call last):
  File "a.py", line 1, in f
    raise KeyError("x")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 3, in g
    f()
ValueError: no
2026-11-29 17:20:30,000 INFO next
"""
ALONE = """\
2026-11-29 17:20:29,123 INFO all is well
Traceback (most recent call last):
  File "a.py", line 1, in f
KeyError: 'x'
"""
JAVA = """\
2026-11-29 17:20:29.000 ERROR 1 --- [main] a.B : failed
java.lang.IllegalStateException: bad
\tat a.B.c(B.java:1)
\t... 12 more
Caused by: java.io.IOException: gone
\tat a.B.d(B.java:2)
2026-11-29 17:20:30.000  INFO 1 --- [main] a.B : next
"""
GO = """\
2026/11/29 17:20:29 working
panic: runtime error: invalid memory address or nil pointer dereference
[signal SIGSEGV: segmentation violation code=0x1 addr=0x0 pc=0x1]

goroutine 1 [running]:
main.(*Server).handle(0xc000, {0x1, 0x2})
\t/src/main.go:12 +0x1d
created by main.main
\t/src/main.go:5 +0x2a
exit status 2
2026/11/29 17:20:30 started
"""
PEM = "key:\n-----BEGIN " + "PRIVATE KEY-----\nabc\ndef\n-----END " + "PRIVATE KEY-----\nnext\n"


BEHIND = "12:00 INFO got -----BEGIN RSA " + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nab+/\n-----END RSA x-----\n"
RAISED = (
    "Traceback (most recent call last):\n  File\nE: -----BEGIN " + "PRIVATE KEY-----\nab12\n-----END x-----'\nnext\n"
)
ENDLESS = "no -----BEGIN " + "PRIVATE KEY-----\n12:00 one\n12:01 two\n"


@pytest.mark.parametrize("pieces", [1, 7, 10**9])
@pytest.mark.parametrize(
    ("text", "beginnings"),
    [
        (BEHIND, ["12:00 INFO"]),
        (RAISED, ["Traceback", "next"]),
        (ENDLESS, ["no", "12:00", "12:01"]),
        (PYTHON, ["2026-11-29 17:20:29", "2026-11-29 17:20:30"]),
        (ALONE, ["2026-11-29 17:20:29", "Traceback"]),
        (JAVA, ["2026-11-29 17:20:29", "2026-11-29 17:20:30"]),
        (GO, ["2026/11/29 17:20:29", "panic: ", "2026/11/29 17:20:30"]),
        (PEM, ["key:", "-----BEGIN", "next"]),
        ("one\n  and more\n\ttabbed\ntwo\n", ["one", "two"]),
        ('{"a": 1}\n  no part of it\n{"a": 2}\n', ['{"a": 1}', "  no part", '{"a": 2}']),
    ],
)
def test_traces_are_one_event(text: str, beginnings: list[str], pieces: int) -> None:
    found = texts(text.encode(), pieces=pieces)
    assert len(found) == len(beginnings)
    assert all(event.startswith(beginning) for event, beginning in zip(found, beginnings, strict=True))
    assert [line for event in found for line in event.split("\n") if line] == [
        line for line in text.split("\n") if line
    ]


def test_a_pattern_of_a_person_decides_alone() -> None:
    assert texts(b"> a\nb\n c\n> d\n", start="^> ") == ["> a\nb\n c", "> d"]
    assert texts(b"b\n> d\n", start="^> ") == ["b", "> d"]


def test_an_event_has_bounds() -> None:
    assert texts(b"a\n" + b" b\n" * 5, event_lines=3) == ["a\n b\n b", " b\n b\n b"]
    assembly = Assembly(0, Bounds(line_bytes=10))
    assembly.feed(b"a\n" + b" 345678\n" * 5, 0.0)
    [pile] = assembly.end(0.0)
    assert pile.text == "a\n 345678"
    assert pile.cut == 6 + 3 * 7


def test_long_lines_are_cut_and_said_so() -> None:
    for pieces in (1, 3, 1000):
        assembly = Assembly(0, Bounds(line_bytes=10))
        data = b"short\n" + b"x" * 105 + b"\r\nend\n"
        for at in range(0, len(data), pieces):
            assembly.feed(data[at : at + pieces], 0.0)
        piles = list(assembly.end(0.0))
        assert [(pile.text, pile.cut) for pile in piles] == [("short", 0), ("x" * 10, 96), ("end", 0)]


def test_what_may_go_on_waits_and_holds_the_position() -> None:
    assembly = Assembly(100, Bounds(multiline_s=1.0, partial_s=5.0))
    assembly.feed(b"one\n two\nthr", 0.0)
    assert (list(assembly.ready(0.9)), assembly.position, assembly.read) == ([], 100, 112)
    assert [pile.text for pile in assembly.ready(1.1)] == ["one\n two"]
    assert assembly.position == 109
    assert list(assembly.ready(4.9)) == []
    assert [pile.text for pile in [*assembly.ready(5.1), *assembly.ready(7.0)]] == ["thr"]
    assert assembly.position == 112
    assert not assembly.waits


def docker(text: str, stream: str = "stdout", time: str = "2026-11-29T17:20:29.5Z") -> bytes:
    return json.dumps({"log": text, "stream": stream, "time": time}, separators=(",", ":")).encode() + b"\n"


def cri(text: str, tag: str = "F", stream: str = "stdout") -> bytes:
    return f"2026-11-29T17:20:29.500000001Z {stream} {tag} {text}\n".encode()


@pytest.mark.parametrize("container", ["auto", "docker"])
def test_docker_lines_are_unpacked_and_parts_are_joined(container: str) -> None:
    data = docker("one\n") + docker("a" * 16) + docker("b" * 16) + docker("c\n") + docker("é\n")
    assert texts(data, container=container) == ["one", "a" * 16 + "b" * 16 + "c", "é"]


@pytest.mark.parametrize("container", ["auto", "cri"])
def test_cri_lines_are_unpacked_and_parts_are_joined(container: str) -> None:
    data = cri("one") + cri("a ", "P") + cri("e1", stream="stderr") + cri("b ", "P") + cri("", "F") + cri("two")
    assert texts(data, container=container) == ["one", "a b ", "e1", "two"]


def test_two_streams_in_one_file_do_not_spoil_each_others_traces() -> None:
    data = cri("ERROR no", stream="stderr") + cri("out 1") + cri("Traceback (most recent call last):", stream="stderr")
    data += cri('  File "x"', stream="stderr") + cri("out 2") + cri("ValueError: x", stream="stderr") + cri("out 3")
    assert texts(data, container="auto") == [
        'ERROR no\nTraceback (most recent call last):\n  File "x"\nValueError: x', "out 1", "out 2", "out 3",
    ]  # fmt: skip


def test_a_trace_that_never_ends_holds_others_up_to_a_bound() -> None:
    assembly = Assembly(0, Bounds(multiline_s=1000), container="cri")
    assembly.feed(cri("open", "P", stream="stderr"), 0.0)
    for at in range(HELD + 100):
        assembly.feed(cri(f"out {at}"), 0.0)
    assert len(list(assembly.ready(0.0))) >= 100


def test_lines_without_frames_among_framed_ones_are_kept() -> None:
    assert texts(cri("one") + b"naked\n" + cri("two"), container="auto") == ["one", "naked", "two"]
    assert texts(docker("one\n") + b"{broken\n", container="auto") == ["one", "{broken"]
    assert framing(b'{"log":"x","n":1}') == "none"


def test_a_hole_at_the_beginning_is_no_text() -> None:
    assert texts(b"\0" * 5000 + b"one\ntwo\n") == ["one", "two"]


@pytest.mark.parametrize(
    ("pod", "name"),
    [
        ("ranker-6d4b75cb6d-x2x7k", "ranker"), ("my-app-7c5ddbdf54-abcde", "my-app-7c5ddbdf54-abcde"),
        ("node-agent-4jx9w", "node-agent"), ("kafka-0", "kafka"), ("report-29012345-7xkcz", "report"),
        ("train-0-7xkcz", "train"), ("web", "web"), ("etcd-node-1.example.org", "etcd-node-1.example.org"),
    ],
)  # fmt: skip
def test_workloads_from_the_names_of_pods(pod: str, name: str) -> None:
    assert workload(pod) == name


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/var/log/pods/shop_ranker-6d4b75cb6d-x2x7k_0f1e-2/web/3.log", "ranker"),
        (f"/var/log/containers/kafka-0_infra_broker-{'a' * 64}.log", "kafka"),
        (f"/var/lib/docker/containers/{'b' * 64}/{'b' * 64}-json.log", "b" * 12),
        ("/var/log/nginx/error.log", "error"), ("/srv/shop.2026-11-29.log", "shop"), ("/srv/shop.log-20261129", "shop"),
        ("/var/log/syslog", "syslog"), ("/x/.log", ".log"), ("/x/1.log", "1"),
    ],
)  # fmt: skip
def test_services_from_the_names_of_files(path: str, service: str) -> None:
    assert origin(path).service == service


PARTS = [PYTHON, JAVA, GO, "x\n", "\0\n", " y\n", "é\xa0\n", "{}\n", "long " * 30 + "\n"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(PARTS), max_size=6) | st.binary(max_size=200).map(lambda raw: [raw.decode("latin-1")]),
    st.integers(1, 60),
    st.sampled_from(["none", "auto", "cri", "docker"]),
    st.sampled_from([None, "^x"]),
)
def test_in_whatever_pieces_it_comes_the_same_comes_out(
    parts: list[str], pieces: int, container: str, start: str | None
) -> None:
    data = "".join(parts).encode()
    whole = texts(data, container=container, start=start, line_bytes=100, event_lines=5)
    assert texts(data, container=container, start=start, pieces=pieces, line_bytes=100, event_lines=5) == whole


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_from_its_position_nothing_is_missing(data: st.DataObject) -> None:
    """Wherever a process ends: what it has handed out, and what the next one reads, is everything."""
    chance = random.Random(data.draw(st.integers(0, 2**32)))
    streams = chance.choices(["stdout", "stderr"], k=25)
    lines = [cri(f"{at} {'ERROR' if at % 3 else ''}", chance.choice("FFFP"), streams[at]) for at in range(20)]
    lines += [cri(f" more {at}", "F", streams[at]) for at in range(20, 25)]
    chance.shuffle(lines)
    content = b"".join(lines)
    first = Assembly(0, Bounds(), container="cri")
    first.feed(content[: data.draw(st.integers(0, len(content)))], 0.0)
    came = [pile.text for pile in first.ready(data.draw(st.sampled_from([0.0, WAIT])))]
    second = Assembly(first.position, Bounds(), container="cri")
    second.feed(content[first.position :], 0.0)
    came += [pile.text for pile in second.end(0.0)]
    said = {unframed(line.rstrip(b"\n"), "cri").text.decode().strip() for line in lines}
    assert all(any(text in event for event in came) for text in said)


def test_half_a_word_is_not_kept_where_something_is_cut() -> None:
    """Half of a secret would not be recognised."""
    [line] = texts(b"user=ann password=" + b"hunter2" * 3 + b"\n", line_bytes=25)
    assert line == "user=ann"
    assert texts(b"ERROR x\n  ok password=hunter2hunter2\n", line_bytes=30) == ["ERROR x\n  ok"]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=100) | st.sampled_from([docker("x\n")[:-1], cri("x")[:-1]]).flatmap(
    lambda line: st.integers(0, len(line)).map(lambda at: line[:at] + b"?" + line[at + 1 :])))  # fmt: skip
def test_broken_frames_raise_nothing(line: bytes) -> None:
    for kind in ("docker", "cri", framing(line)):
        assert isinstance(unframed(line, kind).text, bytes)
