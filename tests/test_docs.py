"""The pages: generated ones are up to date, links lead somewhere, examples work, quoted numbers are the code's."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import prometheus_client
import pytest

from streammon import telemetry, topics, wire
from streammon.broker.kafka import member
from streammon.config import Settings
from streammon.errors import Reason
from streammon.events import EventType
from streammon.models import COHORTS, DriftPolicy, ModelPolicy
from streammon.outcomes import MAX_TEXT_BYTES
from streammon.remediation import MOST_MODELS
from streammon.results import Completeness, Distribution, Quality, Window
from streammon.wire import plain
from streammon_agents.gateway import cloudevents, http, ndjson, pairs, payloads
from streammon_agents.gateway import events as gateway
from streammon_agents.gateway.otlp import http as otlp_http
from streammon_agents.gateway.otlp import intake as otlp_intake
from streammon_agents.gateway.otlp import logs, metrics, points, rpc, skim, spans, values
from streammon_agents.statsd import lines, series
from streammon_processors import aggregate, dedupe, event_windows, quality, revisions, rules, share, slos, windows
from streammon_processors.builtin import QUALITY_TICK_S, REMEDY_TICK_S
from streammon_processors.detectors import lengths, steps, watching
from streammon_processors.detectors import task as detecting
from streammon_processors.profiles import counting, edges, reading, references, sums, targets
from streammon_processors.remediation import comparing, retraining
from streammon_processors.remediation import decide as remedying
from streammon_processors.task import Task
from streammon_sinks import delivery
from streammon_sinks.notify import circuit, deliver, remembered
from streammon_sinks.remediation import command, execute
from tests.faults.harness import Scenario

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(page: str) -> str:
    """A page on one line, so that a sentence can be looked for across line breaks."""
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


# ---------------------------------------------------------------- generated pages


def test_generated_pages_are_as_the_script_makes_them() -> None:
    generated: dict[Path, str] = runpy.run_path(str(DOCS / "generate.py"))["generated"]()
    assert len(generated) == 2
    outdated = [name_of(path) for path, text in generated.items() if path.read_text(encoding="utf-8") != text]
    assert not outdated, "run `python docs/generate.py` and commit what it writes"


# ---------------------------------------------------------------- links

_FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown viewer makes of the headings."""
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in _HEADING.findall(prose(page))}


def leads_somewhere(page: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    return path.is_relative_to(ROOT) and path.exists() and (not anchor or anchor in anchors(path))


def broken_links(page: Path) -> list[str]:
    relative = [link for link in _LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)]
    return [link for link in relative if not leads_somewhere(page, link)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = DOCS / "index.md"
    assert "operations.md" in _LINK.findall(prose(page))
    (copy := tmp_path / "index.md").write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    assert "operations.md" in broken_links(copy)


# ---------------------------------------------------------------- examples


def blocks(page: Path, kind: str) -> list[str]:
    return [body for info, body in _FENCE.findall(page.read_text(encoding="utf-8")) if info.strip() == kind]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_the_pages_compiles(page: Path) -> None:
    for source in blocks(page, "python"):
        compile(source, name_of(page), "exec")


def test_protocols_on_the_page_are_those_of_the_code() -> None:
    shown: dict[str, Any] = {"__name__": "page"}
    for source in (each for each in blocks(DOCS / "component-contract.md", "python") if "(Protocol)" in each):
        exec(compile(source, "component-contract.md", "exec"), shown)
    for protocol in (Task, delivery.Sink):
        assert members(shown[protocol.__name__]) == members(protocol)


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


def rows_of(value: str) -> list[dict[str, Any]]:
    return [
        batch.rows.event(row)
        for batch in wire.decode(EventType.INFERENCE, value.encode())
        for row in range(len(batch.rows))
    ]


def test_the_four_densities_on_the_page_hold_the_same_events() -> None:
    wholes = blocks(DOCS / "wire.md", "json inference")
    parts = blocks(DOCS / "wire.md", "json inference part")
    events = [event for part in parts for event in rows_of(part)]
    assert len(events) == 2
    assert len(wholes) == 3
    assert [rows_of(whole) for whole in wholes] == [events] * 3


# ---------------------------------------------------------------- what must not be left out


def test_every_reason_is_explained() -> None:
    page = text_of("docs/wire.md")
    assert [reason for reason in Reason if f"| `{reason}` |" not in page] == []


def test_every_field_of_a_window_is_explained() -> None:
    page = text_of("docs/windows.md")
    names = [*Window.__struct_fields__, *Completeness.__struct_fields__]
    assert [name for name in names if f"`{name}`" not in page] == []
    assert "{" + ", ".join(Distribution.__struct_fields__) + "}" in page


def test_every_field_of_quality_is_explained() -> None:
    page = text_of("docs/quality.md")
    assert [name for name in Quality.__struct_fields__ if f"`{name}`" not in page and f'"{name}"' not in page] == []


def test_numbers_of_the_gateway_and_of_statsd_are_those_of_the_code() -> None:
    page = text_of("docs/gateway.md")
    assert f"| a body that never ends | {http.BODY_S:g} s |" in page
    assert f"texts of up to {payloads.MAX_TEXT} characters" in page
    assert f"At most {payloads.MAX_INSTANCES:,}; further ones" in page
    assert f"(`application/cloudevents-batch+json`, at most {cloudevents.MAX_BATCH:,})" in page
    assert f"(and {pairs.MAX_BYTES // 2**20} MiB)" in page
    page = text_of("docs/statsd.md")
    assert f"at most {series.MAX_MEMBERS:,} are told apart" in page
    assert f"| a long name or many tags | {lines.MAX_KEY_BYTES:,} bytes |" in page
    assert all(f"`{reason}`" in page for reason in lines.Refusal)


def declared_metrics() -> set[str]:
    modules = (
        telemetry,
        gateway,
        http,
        otlp_intake,
        delivery,
        deliver,
        execute,
        rules.task,
        slos.task,
        quality.models,
        watching,
    )
    collectors = [each for module in modules for each in vars(module).values()]
    kinds = (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)
    return {metric.name for each in collectors if isinstance(each, kinds) for metric in each.describe()}


def test_metrics_on_the_page_exist() -> None:
    shown = re.findall(r"^\| `(streammon_\w+)`", (DOCS / "operations.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    assert {name.removesuffix("_total") for name in shown} <= declared_metrics()


def test_retention_on_the_page_is_that_of_the_topics() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    for spec in topics.topic_specs(partitions=1):
        name = "state.…" if spec.name.startswith("state.") else spec.name
        kept = "compacted" if spec.compact else f"| {(spec.retention_s or 0) / topics.DAY_S:g} day"
        assert re.search(rf"^\| .*`{re.escape(name)}`.*{re.escape(kept)}", page, re.MULTILINE), name


# ---------------------------------------------------------------- numbers

_SETTINGS, _PATIENCE, _DETECTORS = Settings(), circuit.Patience(), ModelPolicy()
QUOTED = [
    ("docs/otlp.md", f"last {spans.MAX_REMEMBERED:,} model calls"),
    ("docs/otlp.md", f"at most {logs.MAX_MESSAGE:,} characters, `fields` {logs.MAX_ENTRIES} entries"),
    ("docs/otlp.md", f"the body did not come within {otlp_http.BODY_S:g} s"),
    ("docs/otlp.md", f"`agent.otlp.max_message_bytes`, {_SETTINGS.agent.otlp.max_message_bytes >> 20} MiB"),
    ("docs/otlp.md", f"MiB; {skim.MAX_ITEMS:,} items; {values.MAX_ATTRIBUTES} attributes"),
    ("docs/otlp.md", f"`agent.otlp.max_in_flight_bytes`, {_SETTINGS.agent.otlp.max_in_flight_bytes >> 20} MiB"),
    ("docs/otlp.md", f"`agent.otlp.max_series`, {_SETTINGS.agent.otlp.max_series:,}"),
    ("docs/otlp.md", f"silent for {metrics.FORGET_S / 60:g} minutes is forgotten"),
    ("docs/otlp.md", f"more than {metrics.MAX_LABELS} on a point"),
    ("docs/otlp.md", f"over {points.MAX_EXPLICIT} explicit or {points.MAX_BUCKETS:,} exponential buckets"),
    ("docs/otlp.md", f"{otlp_http.MAX_CONNECTIONS}; HTTP closes one that is silent for {otlp_http.IDLE_S:g} s"),
    ("docs/otlp.md", f"calls by gRPC at one time | {rpc.MAX_CALLS:,}, and {rpc.MAX_STREAMS} on one connection |"),
    ("docs/windows.md", f"`windows.size_s` long ({_SETTINGS.windows.size_s:g} s)"),
    ("docs/windows.md", f"`windows.lateness_s` ({_SETTINGS.windows.lateness_s:g} s)"),
    ("docs/windows.md", f"`windows.max_future_s` ({_SETTINGS.windows.max_future_s:g} s)"),
    ("docs/windows.md", f"`windows.max_late_s` ({_SETTINGS.windows.max_late_s / 3600:g} h)"),
    ("docs/windows.md", f"`windows.idle_tick_s` ({_SETTINGS.windows.idle_tick_s:g} s)"),
    ("docs/windows.md", f"`windows.max_series` ({_SETTINGS.windows.max_series:,})"),
    ("docs/windows.md", f"about {event_windows.PENDING_LIMIT:,} late or refused events"),
    ("docs/windows.md", f"for {revisions.MAX_REVISIONS:,} pairs of window and series"),
    ("docs/windows.md", f"more than {windows.MAX_SERIES_BYTES:,} bytes"),
    ("docs/windows.md", f"{dedupe.MAX_STREAMS:,} are remembered in a partition, and {dedupe.MAX_GAPS} gaps"),
    ("docs/windows.md", f"{dedupe.MAX_GAPS} gaps of each, but {dedupe.MAX_GAPS_TOGETHER} of all"),
    ("docs/detectors.md", f"in steps of {lengths.STEP_S:g} s"),
    ("docs/detectors.md", f"after {steps.CLOSE_S:g} s of silence"),
    ("docs/detectors.md", f"at most {detecting.WINDOWS_BYTES // 1024} KiB of windows"),
    ("docs/detectors.md", f"{detecting.QUALITY_BYTES // 1024} KiB each of qualities and events"),
    ("docs/detectors.md", f"{_DETECTORS.max_false_alarms_per_month:g} # of all that looks for drift"),
    ("docs/detectors.md", f"effect: {_DETECTORS.detectors.effect:g} "),
    ("docs/windows.md", f"while windows are open, {event_windows.MAX_DUPLICATES:,} are remembered"),
    ("docs/remediation.md", f"more than {remedying.STALE_S:g} s before it was read"),
    ("docs/remediation.md", f"nobody was there to do it within {execute.LATE_S:g} s"),
    ("docs/remediation.md", f"| {remedying.MOST_OPEN} are open |"),
    ("docs/remediation.md", f"what is under way has {execute.GRACE_S:g} s to end"),
    ("docs/retraining.md", f"| `too_many` | {retraining.MOST_LOOPS} retrainings are open |"),
    ("docs/retraining.md", f"after {retraining.MOST_CLOSED} that have ended"),
    ("docs/retraining.md", f"at least {comparing.SHARE:.0%}".replace("%", " %")),
    ("docs/retraining.md", f"the last {command.SAID_CHARACTERS} characters that it said"),
    ("docs/retraining.md", f"One file trains at most {MOST_MODELS} models"),
    ("docs/retraining.md", f"a tick record is written to `remedies` every {REMEDY_TICK_S:g} s"),
    ("docs/delivering.md", f"`notify.failing_after_s` ({_SETTINGS.notify.failing_after_s:g} s)"),
    ("docs/delivering.md", f"`notify.give_up_s` ({_SETTINGS.notify.give_up_s / 86_400:g} d)"),
    ("docs/delivering.md", f"has failed {_PATIENCE.failures} times in a row"),
    ("docs/delivering.md", f"a probe every {0.8 * _PATIENCE.probe_s:g}–{_PATIENCE.probe_s:g} s"),
    ("docs/delivering.md", f"for {remembered.MOST_GROUPS:,} groups and {remembered.MOST_BYTES:,} bytes"),
    ("docs/operations.md", f"a seeded log of {Scenario('', (), 0).events:,} events for each kind"),
    ("docs/windows.md", " then ".join(f"`{name}`," for name in windows.SHED).rstrip(",")),
    ("docs/wire.md", f"{wire.MAX_EVENTS:,} events, and {wire.MAX_ENTRIES:,} entries"),
    ("docs/wire.md", f"At most {ndjson.MAX_ERRORS} `errors`"),
    ("docs/wire.md", f"`time_unix_s` below 0, or {wire.MAX_TIME_UNIX_S:.0e}".replace("e+", "e")),
    ("docs/operations.md", f"| events of a record | {wire.MAX_EVENTS:,} |"),
    ("docs/operations.md", f"`topics.partitions` ({_SETTINGS.topics.partitions})"),
    ("docs/operations.md", f"`kafka.session_timeout_s` ({_SETTINGS.kafka.session_timeout_s:g} s)"),
    ("docs/operations.md", f"has not polled for {member.MAX_POLL_S:g} s is dropped"),
    ("docs/operations.md", f"while more than {share.WAITING_BYTES // 1024**2} MiB of them wait"),
    ("docs/adr/0016-seldom-and-in-columns.md", f"**Blocks of {plain.BLOCK}.**"),
    ("docs/component-contract.md", f"about {share.BATCH_BYTES // 1024**2} MiB at once"),
    ("docs/component-contract.md", f"{share.FIRST_RECORDS} records at first"),
    ("docs/component-contract.md", f"less than {share.QUICK_S:g} s, to {share.BATCH_RECORDS:,}"),
    ("docs/windows.md", f"At most {aggregate.MAX_GAUGES:,} names"),
    ("docs/quality.md", f"all models together | {quality.models.MAX_SERIES} |"),
    ("docs/quality.md", f"{quality.models.MAX_VALUES} values of a slice and {quality.models.MAX_SLICES} slices"),
    (
        "docs/quality.md",
        f"| {quality.sums.MAX_CLASSES}; {quality.classes.MAX_NAME}, {MAX_TEXT_BYTES}, {MAX_TEXT_BYTES} characters",
    ),
    ("docs/quality.md", f"| {quality.task.MAX_BYTES // 1000} kB before compression"),
    ("docs/quality.md", f"of which {COHORTS} fill the horizon"),
    ("docs/quality.md", f"silent for {quality.clock.PATIENCE_S:g} s"),
    ("docs/quality.md", f"one in {QUALITY_TICK_S:g} s"),
    ("docs/quality.md", f"once {quality.estimate.LEAST} pairs were labelled"),
    ("docs/quality.md", f"until there are {quality.estimate.CELL:g} pairs in each"),
    ("docs/quality.md", f"{quality.estimate.MEMORY:,.0f} pairs: beyond that"),
    ("docs/quality.md", f"about the last {quality.series.NEWEST} cohorts"),
    (
        "docs/drift.md",
        f"| {targets.MAX_TARGETS} features of a model version, with names of {targets.MAX_NAME_CHARS} ch",
    ),
    ("docs/drift.md", f"says how many (up to {counting.MAX_LEFT_OUT:,})"),
    ("docs/drift.md", f"| {counting.MAX_VERSIONS} model versions in a window of a partition |"),
    ("docs/drift.md", f"a `sketch` of at most {counting.SKETCH_BUCKETS} buckets"),
    ("docs/drift.md", f"the first {counting.MAX_UNSEEN} others of at most {sums.MAX_CATEGORY_CHARS} characters"),
    ("docs/drift.md", f"at most {references.HELD_VALUES:,} values of versions that have not enough yet"),
    ("docs/drift.md", f"a version with fewer than {references.FEWEST} begins anew"),
    ("docs/drift.md", f"of {references.HELD_BYTES // 1_000_000} MB as JSON together"),
    ("docs/drift.md", f"A file may hold {reading.MAX_VALUES // 1_000_000} million values"),
    ("docs/drift.md", f"There are about {edges.BINS}, as even"),
    ("docs/drift.md", f"{DriftPolicy().reference.first:,} of them unless"),
    ("docs/agent.md", f"`agent.buffer_events` ({_SETTINGS.agent.buffer_events:,})"),
    ("docs/agent.md", f"`agent.buffer_bytes` ({_SETTINGS.agent.buffer_bytes // 1024**2} MiB)"),
    ("docs/agent.md", f"`agent.spool.max_bytes` ({_SETTINGS.agent.spool.max_bytes // 1024**3} GiB)"),
    ("docs/agent.md", f"`agent.spool.after_s` ({_SETTINGS.agent.spool.after_s:g} s)"),
    ("docs/agent.md", f"`agent.max_skew_s` ({_SETTINGS.agent.max_skew_s:g} s)"),
    ("docs/operations.md", f"`sqlite.max_rows` ({_SETTINGS.sqlite.max_rows:,})"),
    ("docs/operations.md", f"`embedded.max_bytes` ({_SETTINGS.embedded.max_bytes // 1024**3} GiB)"),
]


@pytest.mark.parametrize(("page", "sentence"), QUOTED)
def test_numbers_on_the_pages_are_those_of_the_code(page: str, sentence: str) -> None:
    assert sentence in text_of(page)
