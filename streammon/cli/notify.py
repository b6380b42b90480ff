"""``streammon notify``: whom to tell about alerts, and the telling; ``streammon notify test`` tries a channel.

Without a file alerts are printed. With one, three stages run side by side in each process, as consumer groups that
share the work with every other process of the kind::

    gather (alerts, commands → pages) → decide (pages → notifications) → deliver, a group a channel

A changed file is gone by at once, a bad one is refused and the old one kept: see `streammon.reloading`.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from streammon.broker import Broker
from streammon.cli.base import app, command, together
from streammon.cli.roles import opened
from streammon.clock import system_clock
from streammon.config import Settings
from streammon.errors import ConfigError, Rejected, Retryable
from streammon.ping import Flow, ping_url, pinging
from streammon.reloading import reloading
from streammon.secret_files import secret
from streammon.telemetry import log
from streammon.topics import TopicSpec

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

    from streammon.alert_log import AlertLog
    from streammon.notifications import Notification
    from streammon_processors.notifier import Plan
    from streammon_processors.task import Processor
    from streammon_sinks.notify.channel import Channel
    from streammon_sinks.notify.channels import Channels
    from streammon_sinks.notify.secrets import SecretValue
    from streammon_sinks.web.commands import Groups

notify_app = typer.Typer(help="Tell people about alerts.")
app.add_typer(notify_app, name="notify")

NotifyFile = Annotated[
    Path | None,
    typer.Option("--notify", help="YAML file with channels and routes; without one, alerts are printed."),
]
Parts = Sequence[Coroutine[Any, Any, None]]


def with_notify(settings: Settings, file: Path | None) -> Settings:
    """The settings with the notifier's file from the command line, if one was given."""
    if file is None:
        return settings
    return settings.model_copy(update={"notify": settings.notify.model_copy(update={"file": file})})


@command(notify_app, bare=True)
async def notify(settings: Settings, stop: asyncio.Event, notify: NotifyFile = None) -> None:
    """Tell people about alerts: who, when and how stands in the file; without one, alerts are printed.

    Several may run: they share the work, and none tells what another has told.
    """
    settings = with_notify(settings, notify)
    ping_url(settings.ping)  # a wrong one is found before anything is started
    async with notifier(settings) as telling:
        callbacks = Callbacks.of(settings, telling.channels)
        routes = callbacks.late_routes()
        if routes and settings.metrics_port is None:
            log.warning("no --metrics-port: what people press in Slack and PagerDuty does not come here")
        async with opened(
            settings,
            stop,
            telling.processors,
            role="notify",
            details=telling.details,
            topics=telling.topics,
            routes=routes,
        ) as broker:
            await together(
                stop,
                *telling.parts(broker, stop, "notify-console"),
                *callbacks.parts(broker, stop),
                pinging(settings.ping, Flow(broker, settings.ping.stale_s), stop=stop),
            )


@command(notify_app, "test")
async def notify_test(
    settings: Settings,
    channel: Annotated[str, typer.Argument(metavar="CHANNEL", help="Name of a channel in the file.")],
    notify: NotifyFile = None,
) -> int:
    """Send a notification that is marked as a test through a channel; exit status 1 if it does not arrive."""
    settings = with_notify(settings, notify)
    if settings.notify.file is None:
        raise ConfigError("no channels: name the file with --notify or in notify.file")
    async with notifier(settings, only=channel) as telling:
        return await _try_out(telling, channel)


async def _try_out(telling: Notifier, name: str) -> int:
    from streammon_sinks.notify.channels import described

    if name not in telling.channels:
        raise ConfigError(f"there is no channel {name!r}; there are: {', '.join(telling.channels)}")
    what = f"{name} ({described(telling.channels[name])})"
    channel = telling.opener(name, telling.channels)()
    try:
        await channel.deliver(_trial(name), {})
    except Rejected as error:
        print(f"{what} refused it: {error.detail}")
        return 1
    except Retryable as error:
        print(f"{what} did not take it: {error}\nstreammon would try again; this test does not")
        return 1
    finally:
        await channel.close()
    print(f'{what} took it: look for "{_trial(name).alerts[0].summary}"; end there what has to be ended')
    return 0


def _trial(channel: str) -> Notification:
    """A notification about nothing, which says so."""
    from streammon.notifications import Notification
    from streammon.results import Alert

    now, id_ = system_clock(), f"test-{secrets.token_hex(8)}"
    alert = Alert(
        id=id_,
        rule="notify-test",
        rule_version="",
        state="firing",
        severity="info",
        labels={"channel": channel},
        value=None,
        condition="somebody ran `streammon notify test`",
        summary=f"TEST of channel {channel}: nothing is wrong",
        resolution_steps=["Nothing is to be done: this is a test"],
        started_unix_s=now,
        updated_unix_s=now,
        transition=1,
    )
    return Notification(
        id=id_,
        channel=channel,
        group=id_,
        group_labels={"channel": channel},
        cause="test",
        status="firing",
        alerts=[alert],
        created_unix_s=now,
    )


# --- the notifier -----------------------------------------------------------------------------------------------------


class Said(NamedTuple):
    """What the notifier's file says: to the decision, and to the delivery."""

    plan: Plan
    channels: Channels


@dataclass(frozen=True)
class Notifier:
    """What runs by the notifier's file, and anew when it has changed; without a file, alerts are printed."""

    settings: Settings
    session: aiohttp.ClientSession | None = None
    channels: Channels = field(default_factory=dict)
    """As the file said at the start."""

    @property
    def processors(self) -> Sequence[Processor]:
        """The stages before the delivery, by what the file says now."""
        if self.session is None:
            return ()
        from streammon_processors.builtin import gather_processor, notify_processor

        return gather_processor(self.settings), notify_processor(self.settings)

    @property
    def topics(self) -> list[TopicSpec]:
        """Where the channels remember."""
        return _channel_topics(self.channels)

    @property
    def details(self) -> Mapping[str, str]:
        return {"channels": " ".join(self.channels)} if self.channels else {}

    def parts(self, broker: Broker, stop: asyncio.Event, console_group: str) -> Parts:
        """All that is to be run, side by side. ``console_group``: of those who print, where there is no file."""
        file = self.settings.notify.file
        if file is None:
            return [_printing(broker, console_group, stop)]

        async def run(said: Said, over: asyncio.Event) -> None:
            await self._run(broker, said, over)

        return [reloading("notify.file", [file], self.read, run, stop=stop)]

    def read(self, only: str | None = None) -> Said:
        """Raises ConfigError: the file is wrong, or a secret of a channel, of ``only`` that one, is not there."""
        from streammon_processors.notifier import load_plan
        from streammon_sinks.notify.channels import load_channels

        file = self.settings.notify.file
        assert file is not None, "asked for only where there is one"
        said = Said(load_plan(file), load_channels(file))
        for name in said.channels if only is None else said.channels.keys() & {only}:
            self.opener(name, said.channels)()  # it holds nothing yet that has to be closed
        return said

    def opener(self, name: str, channels: Channels) -> Callable[[], Channel]:
        from streammon_sinks.notify.channels import open_channel

        session = self.session
        assert session is not None, "there is one where there are channels"
        return lambda: open_channel(name, channels[name], session)

    async def _run(self, broker: Broker, said: Said, over: asyncio.Event) -> None:
        """The stages by what the file says, until it says something else."""
        from streammon_processors.builtin import gather_processor, notify_processor
        from streammon_processors.runtime import run_processor

        await broker.create_topics(_channel_topics(said.channels), if_permitted=True)
        stages = gather_processor(self.settings), notify_processor(self.settings, said.plan)
        await together(
            over,
            *(run_processor(broker, each, self.settings, stop=over) for each in stages),
            *(self._delivering(broker, name, said.channels, over) for name in said.channels),
        )

    async def _delivering(self, broker: Broker, name: str, channels: Channels, over: asyncio.Event) -> None:
        from streammon_sinks.notify.circuit import Patience
        from streammon_sinks.notify.deliver import deliver_notifications

        asked = self.settings.notify
        patience = Patience(failing_after_s=asked.failing_after_s, give_up_s=asked.give_up_s)
        await deliver_notifications(broker, name, self.opener(name, channels), stop=over, patience=patience)


async def _printing(broker: Broker, group: str, stop: asyncio.Event) -> None:
    from streammon_sinks.delivery import deliver
    from streammon_sinks.notify.console import ConsoleNotifier

    await deliver(broker, group, ["alerts", "evidence"], ConsoleNotifier(sys.stdout), stop=stop)


@asynccontextmanager
async def notifier(settings: Settings, only: str | None = None) -> AsyncIterator[Notifier]:
    """The notifier that the settings describe. ``only``: the one channel that is wanted.

    Raises:
        ConfigError: the file is wrong, or a secret of a channel is not there; found before anything is started.
    """
    if settings.notify.file is None:
        yield Notifier(settings)
        return
    import aiohttp

    async with aiohttp.ClientSession() as session:
        telling = Notifier(settings, session)
        yield replace(telling, channels=telling.read(only).channels)


def notifier_topics(settings: Settings) -> list[TopicSpec]:
    """Where the channels of the notifier's file remember; none without a file."""
    if settings.notify.file is None:
        return []
    from streammon_sinks.notify.channels import load_channels

    return _channel_topics(load_channels(settings.notify.file))


def _channel_topics(channels: Channels) -> list[TopicSpec]:
    from streammon_sinks.notify.deliver import channel_topics

    return channel_topics(list(channels))


# --- what people press in Slack and PagerDuty -------------------------------------------------------------------------


@dataclass(frozen=True)
class Callbacks:
    """The call-backs whose secret is known: from the settings, or from the description of a channel."""

    slack: SecretValue | None
    pagerduty: SecretValue | None
    _handlers: dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Settings, channels: Channels) -> Callbacks:
        """Raises ConfigError: a secret cannot be read, or channels have different ones."""
        return cls(
            slack=_callback_secret(settings, "slack_signing_secret", channels, "signing_secret"),
            pagerduty=_callback_secret(settings, "pagerduty_signing_secret", channels, "webhook_secret"),
        )

    def routes(self, broker: Broker, people: AlertLog, groups: Groups) -> list[web.RouteDef]:
        from streammon_sinks.web.commands import callback_routes

        return callback_routes(broker, people, groups, slack=self.slack, pagerduty=self.pagerduty)

    def late_routes(self) -> list[web.RouteDef]:
        """Routes of a server that listens before there is a broker; until `parts` run, they answer 503."""
        if self.slack is None and self.pagerduty is None:
            return []
        from aiohttp import web

        async def answer(request: web.Request) -> web.StreamResponse:
            if handler := self._handlers.get(request.path):
                return await handler(request)
            return web.Response(status=503, headers={"Retry-After": "1"})

        from streammon_sinks.web.commands import CALLBACKS

        wanted = {"slack": self.slack, "pagerduty": self.pagerduty}
        return [web.post(f"{CALLBACKS}/{name}", answer) for name, given in wanted.items() if given is not None]

    def parts(self, broker: Broker, stop: asyncio.Event) -> Parts:
        """What has to run beside the late routes."""
        if self.slack is None and self.pagerduty is None:
            return []
        from streammon.alert_log import AlertLog, follow
        from streammon_sinks.web.commands import Groups

        people, groups = AlertLog(), Groups()
        self._handlers.update({route.path: route.handler for route in self.routes(broker, people, groups)})
        return [follow(broker, people, stop=stop), *self.following(broker, groups, stop)]

    def following(self, broker: Broker, groups: Groups, stop: asyncio.Event) -> Parts:
        """PagerDuty speaks of groups."""
        from streammon.alert_log import follow

        return [follow(broker, groups, topics=groups.TOPICS, stop=stop)] if self.pagerduty else []


def _callback_secret(settings: Settings, name: str, channels: Channels, kind: str) -> SecretValue | None:
    from streammon_sinks.notify.channels import secrets_of
    from streammon_sinks.notify.secrets import SecretValue

    callbacks = settings.callbacks
    if given := secret(f"callbacks.{name}", getattr(callbacks, name), getattr(callbacks, f"{name}_file")):
        return SecretValue(given)
    found = {each: where.read(f"channel {each}: {kind}") for each, where in secrets_of(channels, kind)}
    if len({each.reveal() for each in found.values()}) > 1:
        raise ConfigError(
            f"channels {', '.join(found)} have different {kind}s, but their calls come to one address: use one app for "
            f"them, or set callbacks.{name} to the one whose calls come here"
        )
    return next(iter(found.values()), None)
