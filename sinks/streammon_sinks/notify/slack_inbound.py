"""What people press in Slack, as commands: "Acknowledge" and "Silence 1 h". Pure; the HTTP route is somebody else's.

Slack signs what it sends with the signing secret of the app; a request that is not signed by it, or older than five
minutes, is `Rejected`. The same press twice makes the same commands, under the same ids.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qs

import msgspec
from msgspec import Struct
from slack_sdk.signature import SignatureVerifier

from streammon.commands import Acknowledge, Command, Matcher, Silence
from streammon.errors import Reason, Rejected
from streammon_sinks.notify.secrets import SecretValue
from streammon_sinks.notify.slack import ACKNOWLEDGE, SILENCE
from streammon_sinks.notify.told import line

SILENCE_S: Final = 3600.0
MAX_BODY_BYTES: Final = 1_048_576


class _User(Struct):
    id: str
    username: str = ""


class _Action(Struct):
    action_id: str = ""
    action_ts: str = ""
    value: str = ""


class _Interaction(Struct):
    type: str
    user: _User
    actions: list[_Action] = []


class _Now:
    """slack_sdk's clock."""

    def __init__(self, unix_s: float) -> None:
        self._unix_s = unix_s

    def now(self) -> float:
        return self._unix_s


def slack_commands(headers: Mapping[str, str], body: bytes, secret: SecretValue, now: float) -> list[Command]:
    """The commands of one request of Slack; none for what is not a button of ours.

    Raises:
        Rejected: it is not signed, too old, or nothing that Slack sends.
    """
    if len(body) > MAX_BODY_BYTES:
        raise Rejected(Reason.TOO_LARGE, "Slack sends less than 1 MiB")
    if not _signed(headers, body, secret, now):
        raise Rejected(Reason.REFUSED, "not signed with the channel's signing_secret within the last 5 minutes")
    pressed = _interaction(body)
    return [command for action in pressed.actions for command in _commands(action, pressed.user, now)]


def _signed(headers: Mapping[str, str], body: bytes, secret: SecretValue, now: float) -> bool:
    verifier = SignatureVerifier(secret.reveal(), _Now(now))  # type: ignore[arg-type]  # it asks for its own class
    try:
        return verifier.is_valid_request(body, dict(headers))
    except (ValueError, TypeError):  # a time that is no number, a body or a signature that is no text
        return False


def _interaction(body: bytes) -> _Interaction:
    try:
        (payload,) = parse_qs(body.decode(), strict_parsing=True, max_num_fields=10)["payload"]
        return msgspec.json.decode(payload, type=_Interaction)
    except (ValueError, KeyError, msgspec.DecodeError, RecursionError):
        raise Rejected(Reason.INVALID_EVENT, "not an interaction as Slack sends them") from None


def _commands(action: _Action, user: _User, now: float) -> list[Command]:
    if action.action_id not in (ACKNOWLEDGE, SILENCE):
        return []
    by = line(f"{user.username} ({user.id})" if user.username else user.id, 200) or "somebody"
    told = _seen(action.value)
    if action.action_id == SILENCE:
        return [_silence(_id(action, user), told, by, now)]
    return [
        Acknowledge(
            id=_id(action, user, alert_id),
            time_unix_s=now,
            by=by,
            via="slack",
            alert_id=alert_id,
            transition=transition,
        )
        for alert_id, transition in told
    ]


def _seen(value: str) -> list[tuple[str, int]]:
    try:
        told = msgspec.json.decode(value, type=list[tuple[str, int]])
    except msgspec.DecodeError:
        told = []
    if not told:
        raise Rejected(Reason.INVALID_EVENT, "a button of ours whose value names no alerts")
    return told


def _silence(command_id: str, told: list[tuple[str, int]], by: str, now: float) -> Silence:
    """Of these alerts and no others: what else their group is to hold, nobody has seen yet."""
    ids = [alert_id for alert_id, _ in told]
    one = Matcher(label="alert_id", operator="=", value=ids[0])
    any_of = Matcher(label="alert_id", operator="=~", value="|".join(map(re.escape, ids)))
    return Silence(
        id=command_id,
        time_unix_s=now,
        by=by,
        via="slack",
        matchers=[one if len(ids) == 1 else any_of],
        starts_unix_s=now,
        ends_unix_s=now + SILENCE_S,
    )


def _id(action: _Action, user: _User, *more: str) -> str:
    parts = msgspec.json.encode((action.action_id, action.action_ts, action.value, user.id, *more))
    return f"slack-{hashlib.blake2b(parts, digest_size=16).hexdigest()}"
