"""``streammon notify check`` and ``notify routes``: whether the notifier's file is good, and whom it tells about what.

Two rooms read the file: the processors its routes, the sinks its channels. Here both do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from streammon.cli.base import Output, OutputOption, command, print_json
from streammon.cli.notify import notify_app
from streammon.config import Settings
from streammon.durations import shown
from streammon.errors import ConfigError
from streammon.results import Severity

if TYPE_CHECKING:
    from streammon_processors.notifier import Plan
    from streammon_processors.notifier.description import Leaf, LookedAt
    from streammon_sinks.notify.channels import Channels

File = Annotated[Path, typer.Argument(help="The notifier's file.", show_default=False)]
Labels = Annotated[
    list[str] | None,
    typer.Argument(metavar="LABEL=VALUE...", help="Of an alert: severity=critical rule=slow service=shop."),
]


@command(notify_app, "check")
def notify_check(settings: Settings, file: File) -> None:
    """Read a notifier's file and say what is wrong with it, or what it holds. Secrets are not looked at."""
    from streammon_sinks.notify.channels import CONSOLE

    plan, channels = _read(file)
    routes, named = list(plan.root.all()), [name for name in channels if name != CONSOLE]
    print(f"{_count(named, 'channel')}, {_count(routes, 'route')}, all good")
    if unused := [name for name in named if not any(each.tells(name) for each in routes)]:
        print(f"told by no route, only when others fail: {', '.join(unused)}")


@command(notify_app, "routes")
def notify_routes(settings: Settings, file: File, labels: Labels = None, output: OutputOption = Output.TABLE) -> None:
    """Say which channels an alert with these labels reaches, and why."""
    plan, channels = _read(file)
    alert = dict(map(_label, labels or ()))
    if output is Output.JSON:
        for each in plan.routes_of(alert):
            print_json(_row(each, alert))
        return
    for looked_at in plan.root.looked_at(alert):
        print("\n".join(_explained(looked_at, alert, channels)))
    for inhibition in plan.inhibited_by(alert):
        equal = "".join(f", {name}={alert.get(name, '')!r}" for name in inhibition.equal)
        print(f"nobody is told while another alert fires with {' '.join(inhibition.source)}{equal}")
    if "severity" not in alert:
        print("no severity=… was given: every alert has one")


def _read(file: Path) -> tuple[Plan, Channels]:
    """Raises ConfigError, with the place in the file."""
    from streammon_processors.notifier import load_plan
    from streammon_sinks.notify.channels import load_channels

    return load_plan(file), load_channels(file)


def _label(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"{text!r} is no label; write LABEL=VALUE, such as service=shop")
    if name == "severity" and value not in get_args(Severity):
        raise ConfigError(f"severity={value}: no alert has that; there are {', '.join(get_args(Severity))}")
    return name, value


def _row(leaf: Leaf, alert: Mapping[str, str]) -> dict[str, Any]:
    return {
        "route": _name(leaf),
        "channels": list(leaf.to),
        "grouped_by": leaf.group_labels(alert),
        "group_wait_s": leaf.group_wait_s,
        "group_interval_s": leaf.group_interval_s,
        "repeat_interval_s": leaf.repeat_interval_s,
        "escalate": [{"after_s": after_s, "channels": list(to)} for after_s, to in leaf.escalate],
        "fallback": leaf.fallback,
        "mute": list(leaf.mute),
        "active": list(leaf.active),
    }


def _explained(looked_at: LookedAt, alert: Mapping[str, str], channels: Channels) -> Iterator[str]:
    leaf, unmatched = looked_at
    if unmatched:
        because = ", ".join(f"{each.label} is {alert.get(each.label, '')!r}" for each in unmatched)
        yield f"passed over: {_name(leaf)}, because {because}"
        return
    yield f"route {_name(leaf)}"
    yield f"  tells {_channels(leaf.to, channels)}"
    for after_s, to in leaf.escalate:
        yield f"  and when nobody acknowledges for {shown(after_s)}: {_channels(to, channels)}"
    grouped = " ".join(f"{name}={value}" for name, value in leaf.group_labels(alert).items())
    yield f"  together with what else has {grouped or 'come by this route'}"
    waits = f"{shown(leaf.group_wait_s)} after the first, changes at most every {shown(leaf.group_interval_s)}"
    yield f"  {waits}, again every {shown(leaf.repeat_interval_s)}"
    if leaf.fallback:
        yield f"  where a channel fails: {_channels((leaf.fallback,), channels)}"
    yield from (f"  but not in {name}" for name in leaf.mute)
    if leaf.active:
        yield f"  but only in {' or '.join(leaf.active)}"


def _name(leaf: Leaf) -> str:
    """The matchers on the way to a route."""
    return leaf.name.removeprefix("/") or "at the top"


def _channels(names: Iterable[str], channels: Channels) -> str:
    from streammon_sinks.notify.channels import described

    return ", ".join(f"{name} ({described(channels[name])})" for name in names) or "nobody"


def _count(things: Sized, name: str) -> str:
    count = len(things)
    return f"{count} {name}{'' if count == 1 else 's'}"
