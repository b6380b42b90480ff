"""The evidence of one alert: read from the log, and told in lines for people."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from typing import Final

import msgspec

from streammon.broker import Broker, TopicPartition
from streammon.broker.reading import read
from streammon.durations import roughly
from streammon.errors import Rejected, Retryable
from streammon.results import Alert, Evidence, Exemplar
from streammon.visible import visible
from streammon.wire import read_message

TOPIC: Final = "evidence"
READ_S: Final = 30.0
_SHOWN: Final = 5
_BARS: Final = "▁▂▃▄▅▆▇█"
_decode = msgspec.json.Decoder(Evidence).decode


async def read_evidence(broker: Broker, alert_id: str, partition: int, within_s: float = READ_S) -> Evidence | None:
    """What was found for an alert, which lies in the alert's partition; None: nothing was.

    Raises:
        Retryable: the topic was not read to its end within ``within_s``.
        ConfigError: the topic does not exist.
    """
    found: Evidence | None = None
    where = TopicPartition(TOPIC, partition)
    try:
        async with asyncio.timeout(within_s), aclosing(read(broker, [TOPIC])) as batches:
            async for place, records in batches:
                for record in records if place == where else ():
                    if record.key == alert_id.encode():
                        found = _newer(found, record.value)
    except TimeoutError:
        raise Retryable(f"{TOPIC} was not read to its end within {within_s:g} s") from None
    return found


def _newer(known: Evidence | None, value: bytes | None) -> Evidence | None:
    """A transition may be explained again after a newer one, as after a crash; and a forgotten alert is forgotten."""
    if value is None:
        return None
    with suppress(Rejected):
        told = read_message(_decode, value)
        return told if known is None or told.transition >= known.transition else known
    return known


def story(alert: Alert, evidence: Evidence) -> Iterator[str]:
    """All of it, line by line, fit for a terminal: names and texts are those of others."""
    return map(visible, _lines(alert, evidence))


def _lines(alert: Alert, evidence: Evidence) -> Iterator[str]:
    yield f"{alert.summary}"
    yield f"{alert.state} · {alert.severity} · {alert.rule} · {_labels(alert.labels)}"
    yield f"{alert.condition}; began {_clock(evidence.onset_unix_s)}, breached {_clock(alert.started_unix_s)}"
    yield ""
    yield "Likely causes" if evidence.causes else "Likely causes: none was found in the log"
    for number, cause in enumerate(evidence.causes[:_SHOWN], 1):
        yield f" {number}. {cause.what}"
        yield f"    {cause.why} (score {cause.score:.2f}, {_clock(cause.at_unix_s)})"
    if evidence.comoving:
        yield ""
        yield "Moved with it"
        for each in evidence.comoving[:_SHOWN]:
            yield f"  {each.correlation:+.2f}  {_lag(each.lag_s):>13}  {each.field}  {_labels(each.series)}"
    if values := [point.value for point in evidence.history if point.value is not None]:
        yield ""
        span = f"{min(values):.4g} to {max(values):.4g}"
        yield f"{evidence.field}, the last {len(values)} windows: {_curve(values)}  {span}"
    for slow in _exemplars(evidence):
        if slow.trace_id:
            yield f"trace {slow.trace_id}  {slow.duration_s:.3g} s"
    yield from (f"note: {note}" for note in evidence.notes)


def _exemplars(evidence: Evidence) -> list[Exemplar]:
    with suppress(msgspec.ValidationError):
        return msgspec.convert(evidence.window.get("exemplars", []), list[Exemplar])
    return []


def _labels(labels: Mapping[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in labels.items())


def _clock(unix_s: float) -> str:
    with suppress(ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{unix_s:g}"  # no time: others can write it


def _lag(lag_s: float) -> str:
    return "together" if not lag_s else f"{roughly(abs(lag_s))} {'before' if lag_s > 0 else 'after'}"


def _curve(values: list[float]) -> str:
    low, high = min(values), max(values)
    return "".join(_BARS[round((value - low) / ((high - low) or 1) * (len(_BARS) - 1))] for value in values)
