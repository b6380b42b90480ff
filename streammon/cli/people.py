"""Commands with which people act on alerts, and look back: ack, silence, unsilence, alerts, silences, audit, report.

All of them read the log itself, so they see the same on Kafka and beside a running ``streammon up``. What was ordered
is a record on `commands`; what it has done is seen on `alerts` a moment later, with ``streammon alerts`` or ``audit``.
"""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from typer.core import TyperGroup

from streammon.broker import Broker, connect
from streammon.cli.base import Output, OutputOption, app, command, print_json, print_rows
from streammon.cli.data import clock_time, moment
from streammon.cli.roles import RESULTS_FILE, rules_app
from streammon.config import Settings
from streammon.durations import roughly, seconds
from streammon.errors import ConfigError
from streammon.topics import DAY_S
from streammon.visible import visible

if TYPE_CHECKING:
    from streammon.alert_log import AlertLog, Person, Quiet, Ready, Refusal
    from streammon.audit import Entry
    from streammon.commands import Matcher
    from streammon.fatigue import Fatigue, Quantiles, RuleFatigue
    from streammon.results import Alert

NoteOption = Annotated[str | None, typer.Option(help="What you want to say to it.", show_default=False)]
ByOption = Annotated[str | None, typer.Option(help="Who you are.", show_default="your login")]


@asynccontextmanager
async def _reading(settings: Settings, *, keep_transitions: bool = False) -> AsyncIterator[tuple[Broker, AlertLog]]:
    from streammon.alert_log import read_alert_log

    broker = await connect(settings)
    try:
        yield broker, await read_alert_log(broker, keep_transitions=keep_transitions)
    finally:
        await broker.close()


def _person(by: str | None, note: str | None) -> Person:
    from streammon.alert_log import Person
    from streammon.commands import MAX_BY, MAX_NOTE

    said = note and _text("--note", note, MAX_NOTE)
    return Person(by=_text("--by", by or _login(), MAX_BY), via="cli", note=said, now_unix_s=time.time())


def _text(option: str, text: str, most: int) -> str:
    """What fits into a command: one that nobody can read would be given, and do nothing."""
    if len(text) > most:
        raise ConfigError(f"{option} has {len(text)} characters; at most {most} are kept")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{option} is not text in UTF-8: {text[:80]!r}") from None
    return text


def _login() -> str:
    with suppress(KeyError, OSError):  # a container may have no name for its user
        return getpass.getuser()
    raise ConfigError("--by is not given, and this user has no login name: say who you are")


async def _give(broker: Broker, orders: Iterable[Ready | Refusal]) -> tuple[list[Ready], int]:
    """Write those that make sense, say why the others do not; the exit status."""
    from streammon.alert_log import Ready

    given = list(orders)
    ready = [each for each in given if isinstance(each, Ready)]
    refused = [each for each in given if not isinstance(each, Ready)]
    if ready:
        await broker.append([each.record for each in ready])
    for refusal in refused:
        print(
            visible(f"streammon: {refusal.detail}"), file=sys.stderr
        )  # which names people by what they call themselves
    return ready, 1 if refused else 0


# --- ack, silence, unsilence ----------------------------------------------------------------------------------------


@command(app)
async def ack(
    settings: Settings,
    alert_ids: Annotated[
        list[str], typer.Argument(metavar="ALERT_ID...", help="Ids, or their first digits.", show_default=False)
    ],
    note: NoteOption = None,
    by: ByOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Acknowledge alerts: say that somebody works on them, so that nobody else is called.

    One that gets worse afterwards fires anew. `streammon alerts` shows the ids.
    """
    from streammon.alert_log import acknowledge

    person = _person(by, note)
    async with _reading(settings) as (broker, log):
        ready, status = await _give(broker, [acknowledge(log, each, person) for each in dict.fromkeys(alert_ids)])
        for each in ready:
            alert = log.alerts[each.command.alert_id].alert  # type: ignore[union-attr]  # what `acknowledge` gives
            text = f"acknowledged {_short(log, alert)} {alert.rule}: {alert.summary}"
            _tell(each, text, output)
    return status


def _tell(order: Ready, text: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(order.command)
    else:
        print(visible(text))


def _short(log: AlertLog, alert: Alert) -> str:
    from streammon.alert_log import short_ids

    return short_ids(log.alerts)[alert.id]


@command(app)
async def silence(
    settings: Settings,
    matchers: Annotated[
        list[str],
        typer.Argument(
            metavar="MATCHER...",
            help='Labels such as service=shop or model=~"rank.*"; rule, severity and alert_id are labels too.',
            show_default=False,
        ),
    ],
    for_: Annotated[str, typer.Option("--for", help="How long: 90s, 2h, 3d …", show_default=False)],
    note: NoteOption = None,
    by: ByOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Send no notifications about alerts with these labels for a while. All the matchers have to match."""
    from streammon import alert_log
    from streammon.alert_log import Quiet
    from streammon.commands import Silence

    person = _person(by, note)
    order = alert_log.silence(_matchers(matchers), _duration(for_), person)
    if isinstance(order, alert_log.Refusal):
        where = "MATCHER" if order.why is alert_log.Why.TOO_LARGE else f"--for is {for_!r}"
        raise ConfigError(f"{where}: {order.detail}")
    async with _reading(settings) as (broker, log):
        ready, status = await _give(broker, [alert_log.if_obeyed(log, order, person.now_unix_s)])
        for each in ready:
            assert isinstance(each.command, Silence)
            now = sum(map(Quiet(each.command).matches, log.active()))
            _tell(each, f"silenced {_silenced(each.command)}: {now} active alert{'s' * (now != 1)} now", output)
    return status


def _silenced(command_: Any) -> str:
    return f"{_matched(command_)} until {clock_time(command_.ends_unix_s)}, as {command_.id}"


def _matched(command_: Any) -> str:
    return ", ".join(map(str, command_.matchers))


def _matchers(texts: Sequence[str]) -> list[Matcher]:
    from streammon.alert_log import MAX_MATCHERS_BYTES
    from streammon.commands import matcher

    try:
        return [matcher(_text("MATCHER", text, MAX_MATCHERS_BYTES)) for text in texts]
    except (ValueError, msgspec.DecodeError) as error:
        raise ConfigError(f"MATCHER: {error}") from None


def _duration(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise ConfigError(f"--for: {error}") from None


@command(app)
async def unsilence(
    settings: Settings,
    silence_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids, or how they begin.", show_default=False)
    ],
    note: NoteOption = None,
    by: ByOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """End silences before their time. `streammon silences` shows the ids."""
    from streammon import alert_log

    person = _person(by, note)
    async with _reading(settings) as (broker, log):
        orders = [alert_log.unsilence(log, each, person) for each in dict.fromkeys(silence_ids)]
        ready, status = await _give(broker, orders)
        for each in ready:
            id_ = each.command.silence_id  # type: ignore[union-attr]  # what `unsilence` gives
            found = log.find_silence(id_)
            assert not isinstance(found, alert_log.Refusal)
            _tell(each, f"lifted {id_}: {_matched(found.silence)}", output)
    return status


# --- alerts, silences -----------------------------------------------------------------------------------------------

_ALERT_COLUMNS = ("id", "state", "severity", "rule", "labels", "since", "by", "silenced", "summary")


@command(app)
async def alerts(
    settings: Settings,
    all_: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the alerts that are active now, who has acknowledged them, and which are silenced."""
    from streammon.alert_log import short_ids

    async with _reading(settings) as (_, log):
        now = time.time()
        found = log.active()
        if all_:
            found = [
                kept.alert for kept in log.alerts.values() if kept.alert.state == "pending" or kept.alert.has_fired
            ]
        found.sort(key=lambda alert: (alert.state == "resolved", -alert.started_unix_s, alert.id))
        ids, quiet = short_ids(log.alerts), log.active_silences(now)
        rows = [_alert_row(log, alert, quiet) for alert in found]
        if output is Output.TABLE:
            rows = [row | _for_people(row, ids[row["id"]], now) for row in rows]
        print_rows(rows, _ALERT_COLUMNS, output, empty="no alerts" if all_ else "no active alerts")


def _alert_row(log: AlertLog, alert: Alert, silences: Sequence[Quiet]) -> dict[str, Any]:
    given = log.acknowledgement(alert)
    by = given and {"by": given.by, "time_unix_s": given.time_unix_s, "note": given.note}
    silenced = next((quiet.silence.id for quiet in silences if quiet.matches(alert)), None)
    return msgspec.to_builtins(alert) | {"acknowledged": by, "silenced": silenced}  # type: ignore[no-any-return]


def _for_people(row: dict[str, Any], short: str, now_unix_s: float) -> dict[str, Any]:
    ended = row.get("ended_unix_s")
    lasted = roughly((ended or now_unix_s) - row["started_unix_s"])
    return {
        "id": short,
        "labels": _labels(row["labels"]),
        "since": f"{clock_time(row['started_unix_s'])} ({lasted})",
        "by": (row["acknowledged"] or {}).get("by", ""),
        "silenced": row["silenced"] or "",
    }


def _labels(labels: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


@command(app)
async def silences(
    settings: Settings,
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show the silences: about what, who made them, and until when."""
    async with _reading(settings) as (_, log):
        now = time.time()
        found = log.silences() if all_ else log.active_silences(now)
        row = _silence_json if output is Output.JSON else _silence_row
        columns = ("id", "state", "matchers", "until", "by", "note", "matches")
        print_rows([row(quiet, log, now) for quiet in found], columns, output, empty="no silences")


def _silence_json(quiet: Quiet, log: AlertLog, now_unix_s: float) -> dict[str, Any]:
    lifted = quiet.lifted and {"by": quiet.lifted.by, "time_unix_s": quiet.lifted.time_unix_s}
    about = {"matchers": [str(matcher) for matcher in quiet.silence.matchers], "state": quiet.state(now_unix_s)}
    matches = sum(map(quiet.matches, log.active()))
    plain: dict[str, Any] = msgspec.to_builtins(quiet.silence)
    return plain | about | {"lifted": lifted, "matches": matches}


def _silence_row(quiet: Quiet, log: AlertLog, now_unix_s: float) -> dict[str, Any]:
    from streammon.alert_log import short_ids

    lifted = f" (lifted by {quiet.lifted.by})" if quiet.lifted else ""
    ids = short_ids(each.silence.id for each in log.silences())
    return {
        "id": ids[quiet.silence.id],
        "state": quiet.state(now_unix_s),
        "matchers": _matched(quiet.silence),
        "until": clock_time(quiet.ends_unix_s) + lifted,
        "by": quiet.silence.by,
        "note": quiet.silence.note or "",
        "matches": sum(map(quiet.matches, log.active())),
    }


# --- why ------------------------------------------------------------------------------------------------------------


@command(app)
async def why(
    settings: Settings,
    alert_id: Annotated[str, typer.Argument(help="Id of an alert, or its first digits.", show_default=False)],
    output: OutputOption = Output.TABLE,
) -> int:
    """Show what may be behind an alert: likely causes with their reasons, what moved with it, and what led to it.

    `streammon diagnose`, which `up` runs too, finds it within seconds of the firing.
    """
    from streammon.alert_log import Kept
    from streammon.evidence import read_evidence, story

    async with _reading(settings) as (broker, log):
        found = log.find(alert_id)
        if not isinstance(found, Kept):
            print(f"streammon: {found.detail}", file=sys.stderr)
            return 1
        evidence = await read_evidence(broker, found.alert.id, found.partition)
    if evidence is None:
        print(
            f"streammon: nothing is known about {alert_id}: it has not fired, or `diagnose` does not run",
            file=sys.stderr,
        )
        return 1
    if output is Output.JSON:
        print_json(evidence)
    else:
        print("\n".join(story(found.alert, evidence)))
    return 0


# --- audit ----------------------------------------------------------------------------------------------------------


class _ListsByItself(TyperGroup):
    """``streammon audit`` is ``streammon audit list``; other questions to the audit have names of their own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


audit_app = typer.Typer(cls=_ListsByItself, help="What people did: every acknowledgement, silence and approval.")
app.add_typer(audit_app, name="audit")


@command(audit_app, "list")
async def audit_list(
    settings: Settings,
    alert: Annotated[
        str | None, typer.Option(metavar="ALERT_ID", help="Only about this alert.", show_default=False)
    ] = None,
    by: Annotated[str | None, typer.Option(help="Only by this person.", show_default=False)] = None,
    from_: Annotated[str, typer.Option("--from", help="Start: a time, or an age such as 7d.")] = "30d",
    to: Annotated[str | None, typer.Option("--to", help="End, likewise.", show_default="now")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List who told streammon what, when, by which way, what became of it, and what streammon did by itself."""
    from streammon.audit import audit, states_of
    from streammon.remediation_log import read_remediations

    first, last = moment("--from", from_), moment("--to", to) if to else time.time() + DAY_S
    async with _reading(settings, keep_transitions=True) as (broker, log):
        states = states_of((_stored(settings) or {}) | (log.transitions or {}))
        wanted = _alert_id(log, alert)
        remediations = await read_remediations(broker)
        entries = [each for each in audit(log, states, remediations) if first <= each.taken_unix_s < last]
    entries = [each for each in entries if wanted in (None, each.target) and by in (None, each.by)]
    rows = map(msgspec.to_builtins, entries) if output is Output.JSON else map(_entry_row, entries)
    columns = ("time", "by", "via", "what", "target", "rule", "outcome", "note")
    print_rows(rows, columns, output, empty="nobody did anything")


def _alert_id(log: AlertLog, text: str | None) -> str | None:
    """An abbreviated id in full; one that is no longer in the log as it is, because its commands may be."""
    from streammon.alert_log import Kept, Why

    if text is None:
        return None
    found = log.find(text)
    if not isinstance(found, Kept) and found.why is Why.AMBIGUOUS:
        raise ConfigError(f"--alert: {found.detail}")
    return found.alert.id if isinstance(found, Kept) else text


def _entry_row(entry: Entry) -> dict[str, Any]:
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    target = entry.target if entry.what == "silence" else entry.target[:12]
    return (
        plain
        | {"time": clock_time(entry.taken_unix_s), "note": entry.note or "", "target": target}
        | {"rule": entry.rule or ""}
    )


def _stored(settings: Settings) -> dict[tuple[str, int], Alert] | None:
    """Every transition that the results under --data-dir keep; None without any results."""
    from streammon_sinks.sqlite import ResultStore

    path = settings.data_dir / RESULTS_FILE
    if not path.exists():
        return None
    store = ResultStore.open(path, read_only=True)
    try:
        return {(alert.id, alert.transition): alert for alert in store.alert_history()}
    finally:
        store.close()


# --- rules report ---------------------------------------------------------------------------------------------------


@command(rules_app, "report")
async def rules_report(
    settings: Settings,
    from_: Annotated[str, typer.Option("--from", help="Start: a time, or an age such as 7d.")] = "7d",
    to: Annotated[str | None, typer.Option("--to", help="End, likewise.", show_default="now")] = None,
    flap: Annotated[str, typer.Option(help="Firing again so soon after a resolve is flapping.")] = "10m",
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what each rule asked of people: how often it fired and flapped, and whether anybody acted on it.

    Reads the history under --data-dir (`up`, `sink sqlite`), or what compaction has left in the topic `alerts`.
    """
    from streammon.fatigue import fatigue

    first, last = moment("--from", from_), moment("--to", to) if to else time.time()
    if last <= first:
        raise ConfigError(f"--to is {to!r}, which is not after --from {from_!r}")
    try:
        flap_s = seconds(flap)
    except ValueError as error:
        raise ConfigError(f"--flap: {error}") from None
    async with _reading(settings, keep_transitions=True) as (_, log):
        commands = [told.command for told in log.told.values()]
        stored = _stored(settings)
        known = log.transitions or {} if stored is None else stored
    report = fatigue(known.values(), commands, first, last, flap_s)
    source = "the topic alerts" if stored is None else str(settings.data_dir / RESULTS_FILE)
    _print_report(report, source, output)


def _print_report(report: Fatigue, source: str, output: Output) -> None:
    if output is Output.JSON:
        plain: dict[str, Any] = msgspec.to_builtins(report)
        print_json(plain | {"source": source})
        return
    columns = (
        "rule", "a day", "firings", "episodes", "flap", "lasted p50", "p90", "ack p50", "ack p90", "acted on",
        "firing now", "noisiest",
    )  # fmt: skip
    print_rows(map(_rule_row, report.rules), columns, output, empty="no rule fired")
    print(f"{clock_time(report.from_unix_s)} to {clock_time(report.to_unix_s)}, read from {source}")
    if report.known_since_unix_s is not None and report.known_since_unix_s > report.from_unix_s:
        print(f"the history begins at {clock_time(report.known_since_unix_s)}: numbers a day are too low")
    if guessed := sum(rule.guessed for rule in report.rules):
        print(f"{guessed} episode{'s' * (guessed != 1)} without the firing, which compaction took: see --help")


def _rule_row(rule: RuleFatigue) -> dict[str, Any]:
    lasted, waited = rule.firing_s, rule.acknowledge_s
    noisy = rule.noisiest[0] if rule.noisiest else None
    return {
        "rule": rule.rule,
        "a day": f"{rule.alerts_per_day:.2f}",
        "firings": rule.firings,
        "episodes": rule.episodes,
        "flap": f"{rule.flap_score:.0%}",
        "lasted p50": _length(lasted, "median"),
        "p90": _length(lasted, "p90"),
        "ack p50": _length(waited, "median"),
        "ack p90": _length(waited, "p90"),
        "acted on": "" if rule.acted_on_share is None else f"{rule.acted_on_share:.0%}",
        "firing now": rule.firing_now,
        "noisiest": f"{_labels(noisy.labels)} ({noisy.firings}×)" if noisy else "",
    }


def _length(quantiles: Quantiles | None, name: str) -> str:
    return roughly(getattr(quantiles, name)) if quantiles else ""
