"""``streammon query loop``: how models are trained anew, and whether it helped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from streammon.alert_log import short_ids
from streammon.broker import connect
from streammon.cli.base import Output, print_json, print_rows
from streammon.cli.data import clock_time
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.visible import visible

if TYPE_CHECKING:
    from streammon.results import Comparison, Loop

COLUMNS = ("id", "model", "state", "since", "reason", "versions", "difference", "detail")
SHARES = ("accuracy", "estimated_accuracy", "error_rate", "slow_rate")
"""Measures that are told in per cent."""


async def show_loops(
    settings: Settings, labels: Mapping[str, str], id_: str | None, limit: int, output: Output
) -> None:
    """All that the log knows, the newest last; or one in full."""
    from streammon.remediation_log import read_loops

    broker = await connect(settings)
    try:
        found = await read_loops(broker)
    finally:
        await broker.close()
    ids = short_ids(found)
    if id_ is not None:
        found = {each: found[each] for each in _matching(found, id_)}
    shown = [each for each in found.values() if all(getattr(each, name) == value for name, value in labels.items())]
    shown = shown[-limit:]
    if output is Output.JSON:
        for loop in shown:
            print_json(loop)
    elif id_ is not None:
        for loop in shown:
            print("\n".join(map(visible, in_full(loop, ids[loop.id]))))
    else:
        print_rows([_row(each, ids[each.id]) for each in shown], COLUMNS, output, empty="no model was trained anew")


def check_labels(labels: Mapping[str, str]) -> None:
    """Raises ConfigError: loops are not told apart by these."""
    if unknown := labels.keys() - {"service", "model", "state", "outcome", "action"}:
        raise ConfigError(
            f"--where names {sorted(unknown)[0]!r}; retrainings have service, model, action, state and outcome"
        )


def _matching(found: Mapping[str, Loop], text: str) -> list[str]:
    ids = [text] if text in found else [each for each in found if text and each.startswith(text)]
    if len(ids) != 1:
        raise ConfigError(
            f"--id {text[:80]!r} begins {', '.join(ids[:5])}: give more of it"
            if ids
            else f"no retraining {text[:80]!r}; `streammon query loop` lists those there are"
        )
    return ids


def state_of(loop: Loop) -> str:
    """In words: what it is in, or how it ended and why."""
    if loop.outcome is None:
        return loop.state.replace("_", " ")
    why = f" ({loop.why.replace('_', ' ')})" if loop.why else ""
    return f"closed: {loop.outcome.replace('_', ' ')}{why}"


def _row(loop: Loop, short: str) -> dict[str, Any]:
    compared = loop.comparison
    more = f" and {len(loop.reasons) - 1} more" if len(loop.reasons) > 1 else ""
    return {
        "id": short,
        "model": f"{loop.service}/{loop.model}",
        "state": state_of(loop),
        "since": clock_time(loop.times.get(loop.state, loop.time_unix_s)),
        "reason": loop.reasons[0].rule + more if loop.reasons else "",
        "versions": _versions(loop),
        "difference": _difference(compared) if compared else "",
        "detail": loop.detail or "",
    }


def _versions(loop: Loop) -> str:
    return (
        " → ".join(each or "?" for each in (loop.old_version, loop.new_version))
        if loop.new_version
        else (loop.old_version or "")
    )


def _difference(compared: Comparison) -> str:
    low, high = compared.interval.low, compared.interval.high
    share = compared.measure in SHARES
    numbers = [f"{100 * each:+.2f}" if share else f"{each:+.4g}" for each in (compared.difference, low, high)]
    unit = " points" if share else ""
    return f"{compared.measure.replace('_', ' ')} {numbers[0]} ({numbers[1]} to {numbers[2]}){unit}"


def in_full(loop: Loop, short: str) -> Iterator[str]:
    """One retraining for people, a line at a time."""
    yield f"{loop.service}/{loop.model}, action {loop.action}: {state_of(loop)}"
    yield f"id {loop.id} ({short})"
    if loop.detail:
        yield loop.detail
    if _versions(loop):
        yield f"version {_versions(loop)}"
    if loop.run_id:
        yield f"run {loop.run_id} of {loop.job}"
    yield ""
    yield "Asked for by"
    for reason in loop.reasons:
        over = f", over since {clock_time(reason.ended_unix_s)}" if reason.ended_unix_s is not None else ""
        yield f"  {clock_time(reason.time_unix_s)}  {reason.rule}: {reason.summary}{over}"
    yield ""
    yield "States"
    for state, at in loop.times.items():
        by = f" by {loop.by}" if loop.by and state == "approved" else ""
        yield f"  {clock_time(at)}  {state.replace('_', ' ')}{by}"
    if loop.deadline_unix_s is not None:
        yield f"  {clock_time(loop.deadline_unix_s)}  given up, if it is still {loop.state.replace('_', ' ')}"
    for compared in filter(None, (loop.comparison, *loop.guards)):
        yield ""
        yield from _compared(compared)


def _compared(compared: Comparison) -> Iterator[str]:
    share = compared.measure in SHARES
    old, new = (f"{100 * each:.2f} %" if share else f"{each:.4g}" for each in (compared.old, compared.new))
    ways = {
        "side_by_side": f"in {compared.windows} windows of both",
        "before_after": f"in {compared.windows} windows of the new one, and before them of the old",
    }
    yield f"{compared.measure.replace('_', ' ').capitalize()}: {old} → {new}"
    yield f"  {_difference(compared)}, at every look with 95 %"
    yield f"  of {compared.old_count} and {compared.new_count} predictions, {ways[compared.way]}"
    if compared.measure == "estimated_accuracy":
        yield "  an estimate by confidence, no measurement"
