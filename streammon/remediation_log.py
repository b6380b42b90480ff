"""What the log says about remediations and retrainings, for people: their topics to the end, and orders about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Final

import msgspec

from streammon.alert_log import READ_S, Person, Ready, Refusal, Why, record_of_command, short_ids, who
from streammon.broker import Broker, Record
from streammon.broker.reading import read
from streammon.commands import Approve
from streammon.errors import Rejected, Retryable
from streammon.remediation import REMEDIATIONS, Remediation
from streammon.results import Loop
from streammon.topics import LOOPS
from streammon.wire import read_message

MAX_REMEDIATIONS: Final = 100_000
_DECODER: Final = msgspec.json.Decoder(Remediation)
_LOOP: Final = msgspec.json.Decoder(Loop)


async def read_remediations(broker: Broker, *, within_s: float = READ_S) -> list[Remediation]:
    """Every transition in the log, in the order in which they were decided; the newest `MAX_REMEDIATIONS`.

    None of a log in which nobody has ever made the topic.

    Raises:
        Retryable: it took longer than ``within_s``.
    """
    found: dict[int, Remediation] = {}
    async for record in _records(broker, REMEDIATIONS, within_s):
        with suppress(Rejected):
            found[record.offset] = read_message(_DECODER.decode, record.value or b"")
            if len(found) > MAX_REMEDIATIONS:
                del found[next(iter(found))]
    return list(found.values())


async def read_loops(broker: Broker, *, within_s: float = READ_S) -> dict[str, Loop]:
    """Every retraining that the log still knows, as it is now, by id; the oldest first.

    Raises:
        Retryable: it took longer than ``within_s``.
    """
    found: dict[str, Loop] = {}
    async for record in _records(broker, LOOPS, within_s):
        if record.value is None:
            found.pop((record.key or b"").decode(errors="replace"), None)
            continue
        with suppress(Rejected):
            loop = read_message(_LOOP.decode, record.value)
            found[loop.id] = loop
    return dict(sorted(found.items(), key=lambda each: each[1].requested_unix_s))


async def _records(broker: Broker, topic: str, within_s: float) -> AsyncIterator[Record]:
    """All of a topic of one partition; none where nobody has ever made it."""
    if topic not in await broker.topics():
        return
    try:
        async with asyncio.timeout(within_s), aclosing(read(broker, [topic])) as batches:
            async for _, records in batches:
                for record in records:
                    yield record
    except TimeoutError:
        raise Retryable(f"{topic} were not read to their end within {within_s:g} s") from None


def newest(transitions: Iterable[Remediation]) -> dict[str, Remediation]:
    """The present state of each, by id."""
    return {each.id: each for each in transitions}


def approve(found: Mapping[str, Remediation], text: str, person: Person, *, approved: bool) -> Ready | Refusal:
    """Say yes or no to the one with this id, or the only one whose id begins so."""
    ids = [text] if text in found else sorted(id_ for id_ in found if text and id_.startswith(text))
    if not ids:
        return Refusal(Why.UNKNOWN, f"no remediation {text[:80]!r}; `streammon remediate list` lists those there are")
    if len(ids) > 1:
        return Refusal(Why.AMBIGUOUS, f"{text!r} begins {', '.join(ids[:5])}: give more of it")
    about = found[ids[0]]
    if about.state != "awaiting_approval":
        name = f"{short_ids(found)[about.id]} ({about.action})"
        return Refusal(Why.OVER, f"{name} does not wait for approval: it is {about.state.replace('_', ' ')}")
    command = Approve(target_id=about.id, approved=approved, id=person.new_id(), **who(person))
    return Ready(command, record_of_command(command, about.id))
