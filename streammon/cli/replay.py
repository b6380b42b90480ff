"""``streammon replay``: what a processor says about a range of time, from the log alone."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from streammon.broker import connect
from streammon.cli.base import Output, OutputOption, app, command, print_json
from streammon.cli.data import as_text, moment, write_line
from streammon.cli.roles import ModelFile, RuleFiles, with_models, with_rules
from streammon.config import Settings
from streammon.errors import ConfigError

if TYPE_CHECKING:
    from streammon_processors.replay import Origin, Range, Replay, Replayed
    from streammon_processors.task import Processor
    from streammon_processors.verification import Judged, Verification

MAX_DIFFERENCES = 100
"""So many are told one by one; of the others, how many."""
MEANING = (
    "missing: the replay gives it, and it was not published; unexpected: the reverse; misplaced: not in this order. "
    "A replay uses the settings and rules of now: if others were used then, that is why"
)


@command(app)
async def replay(
    settings: Settings,
    from_: Annotated[
        str, typer.Option("--from", help="Start of the range: a time, or an age such as 2h.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", help="Its end, likewise, and not part of it.", show_default=False)],
    name: Annotated[str, typer.Argument(metavar="[PROCESSOR]", help="An installed processor, yours too.")] = "windows",
    verify: Annotated[bool, typer.Option("--verify", help="Compare with what was published instead.")] = False,
    envelope: Annotated[bool, typer.Option(help="Print topic, partition, key and headers too.")] = False,
    rules: RuleFiles = None,
    models: ModelFile = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Compute the results about a range of time once more from the log, and print them, one JSON document a line.

    Runs beside everything else: joins no group, writes nothing. With --verify it says how they compare with what was
    published, and the exit status is 1 if a result is missing, unexpected or out of order.
    """
    from streammon_processors import replay as replays
    from streammon_processors.verification import verify as verifying

    settings = with_models(with_rules(settings, rules), models)
    processor = _processor(name, settings)
    range_ = replays.Range(moment("--from", from_), moment("--to", to))
    if range_.from_unix_s >= range_.to_unix_s:
        raise ConfigError(f"--from {from_} is not before --to {to}")
    broker = await connect(settings)
    try:
        max_future_s = settings.windows.max_future_s
        if not verify:
            await _print_replay(await replays.prepare(broker, processor, range_, max_future_s=max_future_s), envelope)
            return 0
        return await _verify(await verifying(broker, processor, range_, max_future_s=max_future_s), output)
    finally:
        await broker.close()


def _processor(name: str, settings: Settings) -> Processor:
    from streammon_processors import registry

    processor = registry.processor(name, settings)
    if not processor.outputs:
        raise ConfigError(f"processor {name!r} does not say what it publishes: its Processor needs `outputs`")
    return processor


# --- printing ---------------------------------------------------------------------------------------------------


async def _print_replay(replay: Replay, envelope: bool) -> None:
    count = 0
    for number, origin in replay.origins.items():
        _say(_begins(number, origin))
        async with aclosing(replay.partition(number)) as results:
            async for result in results:
                count += 1
                write_line(_enveloped(result) if envelope else result.record.value or b"null")
        sys.stdout.flush()
    _say(f"{count} result{'s' * (count != 1)} of {replay.processor.name} {_between(replay.range)}")


def _enveloped(result: Replayed) -> bytes:
    topic, key, value, headers, partition = result.record
    return msgspec.json.encode(
        {
            "topic": topic,
            "partition": partition,
            **as_text("key", key),
            "headers": {name: content.decode(errors="replace") for name, content in headers},
            **as_text("value", value),
        }
    )


def _begins(number: int, origin: Origin) -> str:
    taken = f" of {_time(origin.taken_unix_s)}" if origin.taken_unix_s is not None else ""
    exact = "exact" if origin.exact else "not exact: retention has taken records that the processor had read"
    return f"partition {number}: from the {origin.beginning}{taken}; {exact}"


def _between(range_: Range) -> str:
    return f"from {_time(range_.from_unix_s)} to {_time(range_.to_unix_s)}"


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _say(line: str) -> None:
    print(f"replay: {line}", file=sys.stderr, flush=True)


# --- comparing --------------------------------------------------------------------------------------------------


async def _verify(verification: Verification, output: Output) -> int:
    from streammon_processors.verification import DIFFERENCES

    counts: Counter[str] = Counter()
    told: list[dict[str, Any]] = []
    for number, origin in verification.replay.origins.items():
        _say(_begins(number, origin))
        judged = await verification.partition(number)
        counts.update(each.verdict.value for each in judged)
        told += _rows(each for each in judged if each.verdict in DIFFERENCES)
    summary = _summary(verification.replay, counts) | {"differences": told[:MAX_DIFFERENCES]}
    if output is Output.JSON:
        print_json(summary)
    else:
        print(_text(summary))
        if told:
            _say(MEANING)
        if len(told) > MAX_DIFFERENCES:
            _say(f"{len(told) - MAX_DIFFERENCES} more differences are not listed")
    return 0 if summary["identical"] else 1


def _rows(differences: Iterable[Judged]) -> list[dict[str, Any]]:
    return [
        {
            "verdict": verdict.value,
            "topic": result.topic,
            "partition": result.partition,
            "time_unix_s": result.time_unix_s,
            **as_text("key", result.key),
        }
        for verdict, result in differences
    ]


def _summary(replay: Replay, counts: Counter[str]) -> dict[str, Any]:
    from streammon_processors.verification import DIFFERENCES, Verdict

    return {
        "processor": replay.processor.name,
        "from_unix_s": replay.range.from_unix_s,
        "to_unix_s": replay.range.to_unix_s,
        "identical": not any(counts[verdict.value] for verdict in DIFFERENCES),
        "exact": all(origin.exact for origin in replay.origins.values()),
        "counts": {verdict.value: counts[verdict.value] for verdict in Verdict},
        "beginnings": {str(number): origin.beginning.value for number, origin in replay.origins.items()},
    }


def _text(summary: dict[str, Any]) -> str:
    lines = [
        "  ".join(str(row.get(name, "")) for name in ("verdict", "topic", "partition", "time_unix_s", "key"))
        for row in summary["differences"]
    ]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in summary["counts"].items() if count)
    verdict = "identical" if summary["identical"] else "different"
    return "\n".join([*lines, f"{verdict}: {counts or 'nothing published, nothing expected'}"])
