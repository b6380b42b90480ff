"""The channels of the notifier's file: what each is, and how it is opened.

A new type is a module with its description, which opens it, and the name of that in `Description`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec import Struct

from streammon.errors import ConfigError
from streammon.yaml_files import load_yaml, place_of
from streammon_sinks.notify.alertmanager import Alertmanager
from streammon_sinks.notify.apprise import Apprise
from streammon_sinks.notify.channel import Channel
from streammon_sinks.notify.console import Console
from streammon_sinks.notify.email import Email
from streammon_sinks.notify.opsgenie import Opsgenie
from streammon_sinks.notify.pagerduty import PagerDuty
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.notify.slack import Slack
from streammon_sinks.notify.webhook import Webhook

if TYPE_CHECKING:
    import aiohttp

CONSOLE: Final = "console"
"""A channel that is always there, whether the file names it or not."""
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


Description = Alertmanager | Apprise | Console | Email | Opsgenie | PagerDuty | Slack | Webhook
"""What a channel may be, by its ``type``."""
Channels = Mapping[str, Description]


class _File(Struct, frozen=True, kw_only=True):
    """The channels in the file; the decision reads the rest of it, and refuses what it does not know."""

    channels: dict[str, Description] = {}


def load_channels(file: Path) -> Channels:
    """The channels by name, the console among them.

    Raises:
        ConfigError: naming the place in the file and what is wrong there.
    """
    channels = load_yaml(file, _File).channels
    for name in channels:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{place_of(file, ['channels', name])}: a channel cannot be named {name[:120]!r}: it becomes part of "
                "the names of a topic and a group; use letters, digits, - and _"
            )
    return {CONSOLE: Console(), **channels}


def open_channel(name: str, description: Description, session: aiohttp.ClientSession) -> Channel:
    """The channel itself. ``session`` stays the caller's.

    Raises:
        ConfigError: something that it needs, such as a secret, is not there.
    """
    return description.open(name, session)


def secrets_of(channels: Channels, field: str) -> Iterator[tuple[str, Secret]]:
    """Where the channels keep a secret of this kind, such as ``signing_secret``; those that have one."""
    for name, description in channels.items():
        secret: Any = getattr(description, field, None)
        if isinstance(secret, Secret) and not isinstance(description, Webhook):
            yield name, secret


def described(description: Description) -> str:
    """The type of a channel, as it stands in the file."""
    tag: str = msgspec.to_builtins(description)["type"]
    return tag
