"""Network interfaces and TCP, from ``/proc/net``: of the host's network namespace if that can be seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from streammon_agents.kernel_files import number, rates, whole_lines
from streammon_agents.source import Measured

_RECEIVE, _TRANSMIT = (0, 1, 2, 3), (8, 9, 10, 11)
_RATES = (
    "receive_bytes_per_s", "receive_packets_per_s", "receive_errors_per_s", "receive_drops_per_s",
    "transmit_bytes_per_s", "transmit_packets_per_s", "transmit_errors_per_s", "transmit_drops_per_s",
)  # fmt: skip
_SAME = {name: name for name in _RATES}

_TCP_COUNTERS = {
    "Tcp.RetransSegs": "retransmits_per_s",
    "Tcp.OutSegs": "transmit_segments_per_s",
    "Tcp.InSegs": "receive_segments_per_s",
    "Tcp.InErrs": "receive_errors_per_s",
    "Tcp.OutRsts": "transmit_resets_per_s",
    "Tcp.EstabResets": "connection_resets_per_s",
    "Tcp.ActiveOpens": "opened_per_s",
    "Tcp.PassiveOpens": "accepted_per_s",
    "Tcp.AttemptFails": "failed_attempts_per_s",
    "TcpExt.ListenOverflows": "listen_overflows_per_s",
    "TcpExt.ListenDrops": "listen_drops_per_s",
    "TcpExt.TCPTimeouts": "timeouts_per_s",
}
_UDP_COUNTERS = {
    "Udp.InDatagrams": "receive_datagrams_per_s",
    "Udp.OutDatagrams": "transmit_datagrams_per_s",
    "Udp.NoPorts": "receive_no_port_per_s",
    "Udp.InErrors": "receive_errors_per_s",
    "Udp.RcvbufErrors": "receive_buffer_errors_per_s",
    "Udp.SndbufErrors": "transmit_buffer_errors_per_s",
}
_SOCKETS = {
    "tcp": {"TCP.inuse": "sockets", "TCP.tw": "time_wait", "TCP.orphan": "orphans", "TCP.alloc": "allocated"},
    "udp": {"UDP.inuse": "sockets"},
}


class Reading(NamedTuple):
    interfaces: dict[str, dict[str, int]]
    protocols: dict[str, int]
    """``Tcp.RetransSegs`` and others, of ``snmp`` and ``netstat``."""
    sockets: dict[str, int]


def parse_interfaces(data: bytes, wanted: Callable[[str], bool]) -> dict[str, dict[str, int]]:
    """``  eth0: 1296 17 0 …``: sixteen counters; by interface, those of `_RATES`."""
    found = {}
    for line in whole_lines(data):
        name, colon, rest = line.decode(errors="replace").rpartition(":")
        fields = rest.split()
        if colon and len(fields) >= 12 and wanted(name.strip()):
            counted = [number(fields[at]) for at in (*_RECEIVE, *_TRANSMIT)]
            found[name.strip()] = {
                metric: value for metric, value in zip(_RATES, counted, strict=True) if value is not None
            }
    return found


def parse_protocols(data: bytes | None) -> dict[str, int]:
    """Pairs of lines, the names and the numbers: ``Tcp: RtoMin …`` and ``Tcp: 200 …``; of them, those we tell."""
    found: dict[str, int] = {}
    for names, values in pairwise(whole_lines(data or b"")):
        if names[: names.find(b":")] == values[: values.find(b":")] and (columns := _columns(names)):
            fields = values.split()
            for at, name in columns:
                if at < len(fields) and (value := number(fields[at])) is not None:
                    found[name] = value
    return found


_TOLD = frozenset((*_TCP_COUNTERS, *_UDP_COUNTERS, "Tcp.CurrEstab"))


@lru_cache(maxsize=256)
def _columns(names: bytes) -> tuple[tuple[int, str], ...]:
    """Where in a line the numbers stand; the names are the same each time, and many."""
    kind, *columns = names.decode(errors="replace").split() or [""]
    told = ((at, f"{kind[:-1]}.{column}") for at, column in enumerate(columns, 1))
    return tuple((at, name) for at, name in told if name in _TOLD)


def parse_sockets(data: bytes | None) -> dict[str, int]:
    """``TCP: inuse 37 orphan 0 tw 1 alloc 44 mem 4``."""
    found: dict[str, int] = {}
    for line in whole_lines(data or b""):
        kind, _, rest = line.decode(errors="replace").partition(":")
        fields = rest.split()
        for name, text in zip(fields[::2], fields[1::2], strict=False):
            if (value := number(text)) is not None:
                found[f"{kind}.{name}"] = value
    return found


def measure(now: Reading, before: Reading | None, elapsed_s: float) -> Iterator[Measured]:
    for name, counters in now.interfaces.items():
        if metrics := rates(counters, before and before.interfaces.get(name), elapsed_s, _SAME):
            yield Measured("network", name, metrics)
    for protocol, counted in (("tcp", _TCP_COUNTERS), ("udp", _UDP_COUNTERS)):
        metrics = rates(now.protocols, before and before.protocols, elapsed_s, counted)
        metrics |= {ours: now.sockets[name] for name, ours in _SOCKETS[protocol].items() if name in now.sockets}
        if protocol == "tcp" and "Tcp.CurrEstab" in now.protocols:
            metrics["established"] = now.protocols["Tcp.CurrEstab"]
        if metrics:
            yield Measured("network", protocol, metrics, {"protocol": protocol})
