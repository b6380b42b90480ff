"""Commands about who is there: the inventory service, its file, and the list."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from streammon.broker import Record, connect
from streammon.broker.reading import read
from streammon.cli.base import Output, OutputOption, app, command, print_rows, together
from streammon.cli.roles import opened
from streammon.clock import system_clock
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.heartbeat import decode_heartbeat
from streammon.ping import ping_url, pinging
from streammon.topics import HEARTBEATS

inventory_app = typer.Typer(help="Who is there, and who fell silent.", no_args_is_help=True)
app.add_typer(inventory_app, name="inventory")


@command(inventory_app, "run")
async def inventory_run(
    settings: Settings,
    stop: asyncio.Event,
    expect: Annotated[Path | None, typer.Option(help="YAML file with who is expected.", show_default=False)] = None,
) -> None:
    """Tell on `alerts` who fell silent or never came. Several may run: one works, the others stand by."""
    if not settings.bootstrap:
        raise ConfigError(
            "the inventory needs Kafka: give --bootstrap HOST:PORT. The roles of `streammon up` are one process, "
            "which ping.url guards from outside"
        )
    from streammon_processors.inventory import load_expected
    from streammon_processors.inventory.service import OWN_BEAT_S, InventoryService

    expected = load_expected(expect or settings.inventory.file)
    ping_url(settings.ping)
    async with opened(settings, stop, role="inventory", beat_s=OWN_BEAT_S) as broker:
        service = InventoryService(broker, settings, expected)
        await together(stop, service.run(stop), pinging(settings.ping, service.healthy, stop=stop))


@command(inventory_app, "check")
def inventory_check(
    settings: Settings, file: Annotated[Path, typer.Argument(help="File with who is expected.", show_default=False)]
) -> None:
    """Read a file of expectations and say what is wrong with it, or how many it holds."""
    from streammon_processors.inventory import load_expected

    expectations = load_expected(file).expect
    components = sum(len(each.hosts) or each.at_least or 0 for each in expectations)
    print(f"{components} component{'' if components == 1 else 's'} of {len(expectations)} kinds expected, all good")


@command(inventory_app, "list")
async def inventory_list(settings: Settings, output: OutputOption = Output.TABLE) -> None:
    """List every component that has sent heartbeats, and how it is; works without the service, on both brokers."""
    broker = await connect(settings)
    try:
        async with aclosing(read(broker, [HEARTBEATS])) as batches:
            newest = {record.key: record async for _, records in batches for record in records}
    finally:
        await broker.close()
    columns = ("id", "role", "host", "state", "age_s", "version", "says")
    print_rows(_rows(newest, system_clock()), columns, output, empty="nobody has sent a heartbeat yet")


def _rows(newest: Mapping[bytes | None, Record], now: float) -> Iterator[dict[str, Any]]:
    from streammon_processors.inventory.roster import Seen

    for _, record in sorted(newest.items(), key=lambda item: item[0] or b""):
        try:
            heartbeat = decode_heartbeat(record.value or b"")  # of a tombstone, too: whoever it was is forgotten
        except msgspec.DecodeError:
            continue
        seen = Seen(heartbeat, record.timestamp / 1000)
        state = heartbeat.state if seen.is_alive(now) else seen.state(now)
        age_s = max(0.0, now - seen.at_unix_s)
        row = msgspec.to_builtins(heartbeat)
        says = "; ".join(f"{name}: {text}" for name, text in heartbeat.details.items())
        yield row | {"state": state, "age_s": round(age_s, 1), "details": heartbeat.details, "says": says}
