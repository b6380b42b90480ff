"""What the log says about remediations, for people: the topic `remediations` to its end, and orders about them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import aclosing, suppress
from typing import Final

import msgspec

from streammon.alert_log import READ_S, Person, Ready, Refusal, Why, record_of_command, short_ids, who
from streammon.broker import Broker
from streammon.broker.reading import read
from streammon.commands import Approve
from streammon.errors import Rejected, Retryable
from streammon.remediation import REMEDIATIONS, Remediation
from streammon.wire import read_message

MAX_REMEDIATIONS: Final = 100_000
_DECODER: Final = msgspec.json.Decoder(Remediation)


async def read_remediations(broker: Broker, *, within_s: float = READ_S) -> list[Remediation]:
    """Every transition in the log, in the order in which they were decided; the newest `MAX_REMEDIATIONS`.

    None of a log in which nobody has ever made the topic.

    Raises:
        Retryable: it took longer than ``within_s``.
    """
    if REMEDIATIONS not in await broker.topics():
        return []
    found: dict[int, Remediation] = {}
    try:
        async with asyncio.timeout(within_s), aclosing(read(broker, [REMEDIATIONS])) as batches:
            async for _, records in batches:
                for record in records:
                    with suppress(Rejected):
                        found[record.offset] = read_message(_DECODER.decode, record.value or b"")
                        if len(found) > MAX_REMEDIATIONS:
                            del found[next(iter(found))]
    except TimeoutError:
        raise Retryable(f"remediations were not read to their end within {within_s:g} s") from None
    return list(found.values())


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
