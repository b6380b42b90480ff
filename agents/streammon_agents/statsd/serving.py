"""The source ``statsd``: listens on UDP (if asked, on a Unix datagram socket and TCP), and publishes what it added up.

UDP promises nothing, so what is lost is made visible: packets that the kernel dropped because its buffer was full are
counted from ``/proc/net/udp``, and are a degraded state for `DROPS_SHOWN_S`. An address that cannot be had is a
degraded state as well, and is tried again at every flush. A packet is read whole, up to `MAX_PACKET` bytes; of a larger
one, which only a Unix socket can carry, the lines that are whole are taken. Over TCP, `MAX_CLIENTS` may be connected;
one that is silent for `SILENT_S`, or sends a line longer than a packet, is let go.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from streammon.clock import Clock, system_clock
from streammon.config import Settings, StatsdSettings
from streammon.events import EventType
from streammon.heartbeat import host_name
from streammon_agents.source import Finding, Outlet, until_beat_s
from streammon_agents.statsd.lines import Refusal
from streammon_agents.statsd.series import Aggregate

MAX_PACKET = 65_536
TURN_BYTES = 65_536
"""About what is read before others have their turn: 2 ms of work."""
PACKET_BYTES = 256
"""What a packet costs beside its bytes, as if it were bytes."""
LAST_TURNS = 100
"""How much is read at the end of what has come until then."""
MAX_CLIENTS = 200
SILENT_S = 600.0
DROPS_SHOWN_S = 60.0
EVENTS_AT_ONCE = 1000


def statsd_source(settings: Settings, clock: Clock = system_clock) -> Statsd:
    """As the settings have it."""
    return Statsd(settings.agent.statsd, host_name(settings), clock)


class Statsd:
    """A `streammon_agents.source.Source`. ``listening``: called with every port, once there is one."""

    def __init__(
        self,
        settings: StatsdSettings,
        host: str,
        clock: Clock = system_clock,
        listening: Callable[[int], None] = lambda port: None,
        procfs: Path = Path("/proc"),  # our own: it has the sockets of this process
    ) -> None:
        self._settings, self._listening, self._procfs = settings, listening, procfs
        self._aggregate = Aggregate(settings, host, clock)
        self._open: dict[str, socket.socket] = {}
        self._clients: dict[socket.socket, _Client] = {}
        self._dropped: Counter[str] = Counter()  # by socket, as far as it is told
        self._lossy_until = 0.0

    @property
    def name(self) -> str:
        return "statsd"

    def check(self) -> Iterable[Finding]:
        for what, opened in self._wanted().items():
            try:
                opened().close()
            except OSError as error:
                yield Finding(what, False, _said(error), "set agent.statsd to a free address, or stop who has it")
            else:
                self._remove(what)
                yield Finding(what, True, "StatsD and DogStatsD")

    async def run(self, out: Outlet) -> None:
        now = asyncio.get_running_loop().time
        started = now()
        try:
            while True:
                out.degraded(self._listen() or self._losses(out, now()))
                self._let_go(now())
                await asyncio.sleep(until_beat_s(now() - started, self._settings.flush_s))
                self._flush(out)
        finally:
            self._close()
            self._flush(out)

    def _flush(self, out: Outlet) -> None:
        resources, changes, refused = self._aggregate.flush()
        for start in range(0, len(resources), EVENTS_AT_ONCE):
            out.put(EventType.RESOURCE, resources[start : start + EVENTS_AT_ONCE])
        if changes:
            out.put(EventType.CHANGE, changes)
        for reason, inputs in refused.items():
            out.refuse(reason, inputs)

    # --- sockets ------------------------------------------------------------------------------------------

    def _wanted(self) -> dict[str, Callable[[], socket.socket]]:
        settings, wanted = self._settings, dict[str, Callable[[], socket.socket]]()
        if settings.port is not None:
            wanted[f"udp {settings.host}:{settings.port}"] = lambda: _udp(settings)
        if settings.socket_path is not None:
            wanted[f"unix {settings.socket_path}"] = lambda: _unix(settings)
        if settings.tcp_port is not None:
            wanted[f"tcp {settings.host}:{settings.tcp_port}"] = lambda: _tcp(settings)
        return wanted

    def _listen(self) -> str | None:
        """Open what is not open yet; why not, if that fails."""
        problems = []
        for what, opened in self._wanted().items():
            if what in self._open:
                continue
            try:
                self._open[what] = opened()
            except OSError as error:
                problems.append(f"cannot listen on {what}: {_said(error)}")
                continue
            read = self._accept if what.startswith("tcp") else self._receive
            asyncio.get_running_loop().add_reader(self._open[what], read, self._open[what])
            if not what.startswith("unix"):
                self._listening(self._open[what].getsockname()[1])
        return "; ".join(problems) or None

    def _receive(self, receiving: socket.socket) -> bool:
        """One turn; whether there may be more."""
        read = 0
        while read < TURN_BYTES:
            try:
                packet = receiving.recv(MAX_PACKET)
            except (BlockingIOError, InterruptedError):
                return False
            read += len(packet) + PACKET_BYTES
            if len(packet) == MAX_PACKET:  # and perhaps cut
                self._aggregate.refused[Refusal.OVERSIZED] += 1
                packet = packet[: packet.rfind(b"\n") + 1]
            self._aggregate.packet(packet)
        return True

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # it may be gone already
            client, _ = listening.accept()
            if len(self._clients) >= MAX_CLIENTS:
                self._aggregate.refused[Refusal.CONNECTIONS] += 1
                client.close()
                return
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            self._clients[client] = _Client(b"", loop.time())
            loop.add_reader(client, self._read, client)

    def _read(self, client: socket.socket) -> None:
        try:
            more = client.recv(MAX_PACKET)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            more = b""
        whole, _, rest = (self._clients[client].begun + more).rpartition(b"\n")
        self._aggregate.packet(whole)
        self._clients[client] = _Client(rest, asyncio.get_running_loop().time())
        if not more:
            self._aggregate.packet(rest)
            self._end(client)
        elif len(rest) > MAX_PACKET:
            self._aggregate.refused[Refusal.OVERSIZED] += 1
            self._end(client)

    def _let_go(self, now: float) -> None:
        for client in [client for client, (_, since) in self._clients.items() if now - since > SILENT_S]:
            self._end(client)

    def _end(self, client: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(client)
        client.close()
        del self._clients[client]

    def _losses(self, out: Outlet, now: float) -> str | None:
        """Count what the kernel dropped since the last time."""
        for what, receiving in self._open.items():
            if not what.startswith("udp"):
                continue  # their senders wait, or are told
            dropped = udp_drops(self._procfs, os.fstat(receiving.fileno()).st_ino)
            if dropped > self._dropped[what]:
                out.refuse(Refusal.KERNEL, dropped - self._dropped[what])
                self._lossy_until = now + DROPS_SHOWN_S
            self._dropped[what] = dropped
        if now < self._lossy_until:
            return "the kernel dropped packets of StatsD: raise net.core.rmem_max, or send fewer and larger packets"
        return None

    def _close(self) -> None:
        for client in list(self._clients):
            self._read(client)  # what came already, as below
            if client in self._clients:
                self._end(client)
        for what, opened in self._open.items():
            asyncio.get_running_loop().remove_reader(opened)
            turns = 0 if what.startswith("tcp") else LAST_TURNS
            while turns and self._receive(opened):
                turns -= 1
            opened.close()
            self._remove(what)
        self._open.clear()

    def _remove(self, what: str) -> None:
        if what.startswith("unix") and self._settings.socket_path is not None:
            self._settings.socket_path.unlink(missing_ok=True)


class _Client(NamedTuple):
    """A TCP connection: the line it has begun, and when it last said something."""

    begun: bytes
    since: float


def _udp(settings: StatsdSettings) -> socket.socket:
    [(family, *_, address), *_] = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_DGRAM)
    return _bound(socket.socket(family, socket.SOCK_DGRAM), address, settings)


def _tcp(settings: StatsdSettings) -> socket.socket:
    [(family, *_, address), *_] = socket.getaddrinfo(settings.host, settings.tcp_port, type=socket.SOCK_STREAM)
    opened = socket.create_server(address[:2], family=family, backlog=MAX_CLIENTS)
    opened.setblocking(False)
    return opened


def _unix(settings: StatsdSettings) -> socket.socket:
    path = settings.socket_path
    assert path is not None
    with suppress(FileNotFoundError):
        if stat.S_ISSOCK(path.stat().st_mode) and not _somebody_listens(path):
            path.unlink()  # left by a life before
    opened = _bound(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), str(path), settings)
    path.chmod(0o722)  # whoever is on this node may write, as to DogStatsD's
    return opened


def _bound(opened: socket.socket, address: Any, settings: StatsdSettings) -> socket.socket:
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, settings.receive_buffer_bytes)
        opened.bind(address)
    except OSError:
        opened.close()
        raise
    return opened


def _somebody_listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def udp_drops(procfs: Path, inode: int) -> int:
    """Packets that the kernel dropped for the socket, so far; 0 where that cannot be read."""
    for table in ("udp", "udp6"):
        with suppress(OSError, ValueError, IndexError):
            for line in (procfs / "self" / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if int(fields[9]) == inode:
                    return int(fields[12])
    return 0


def _said(error: OSError) -> str:
    number = error.errno or 0  # a name that is not found is below 0
    return os.strerror(number) if number > 0 else error.strerror or repr(error)
