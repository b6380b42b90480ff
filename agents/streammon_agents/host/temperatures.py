"""Temperatures, where there are sensors: ``/sys/class/hwmon``, or the thermal zones if that has none."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from streammon_agents.host.patience import Patience
from streammon_agents.kernel_files import read_text
from streammon_agents.source import Measured

MOST = 64
"""Sensors looked at."""
_INPUT = re.compile(r"temp\d+_input")
_POSSIBLE = range(-50_000, 200_000)
"""Sensors without a connection tell of temperatures that no machine can have, in thousandths of a degree."""


class Sensor(NamedTuple):
    name: str
    input: str
    """Its file."""
    limit_celsius: float | None
    """At which it is critical."""


def sensors(sysfs: str) -> list[Sensor]:
    """Those of this machine, by name; two of one name get a number."""
    found = [*_hwmon(f"{sysfs}/class/hwmon")] or [*_zones(f"{sysfs}/class/thermal")]
    names: dict[str, Sensor] = {}
    for sensor in found[:MOST]:
        name, number = sensor.name, 2
        while name in names:
            name, number = f"{sensor.name} {number}", number + 1
        names[name] = sensor._replace(name=name)
    return [*names.values()]


def _hwmon(directory: str) -> Iterator[Sensor]:
    for chip in _names(directory):
        name = (read_text(f"{directory}/{chip}/name") or chip).strip()
        for input_ in filter(_INPUT.fullmatch, _names(f"{directory}/{chip}")):
            stem = f"{directory}/{chip}/{input_.removesuffix('_input')}"
            label = (read_text(f"{stem}_label") or os.path.basename(stem)).strip()
            yield Sensor(f"{name}/{label}", f"{stem}_input", _celsius(read_text(f"{stem}_crit")))


def _zones(directory: str) -> Iterator[Sensor]:
    for zone in _names(directory):
        if zone.startswith("thermal_zone"):
            name = (read_text(f"{directory}/{zone}/type") or zone).strip()
            yield Sensor(name, f"{directory}/{zone}/temp", None)


def _names(directory: str) -> list[str]:
    try:
        return sorted(os.listdir(directory), key=lambda name: (len(name), name))
    except OSError:
        return []


def _celsius(text: str | None) -> float | None:
    try:
        value = int(text or "")
    except ValueError:
        return None
    return value / 1000 if value in _POSSIBLE else None


class Temperatures:
    """Reads all sensors that there were at the start."""

    def __init__(self, sysfs: str, patience: Patience | None = None) -> None:
        self._sensors = {sensor.name: sensor for sensor in sensors(sysfs)}
        self._patience = patience or Patience("sensors")

    @property
    def hanging(self) -> list[str]:
        return self._patience.hanging

    def read(self) -> Mapping[str, tuple[float, float | None]]:
        """By sensor, what it shows and its limit."""
        asked = {name: lambda path=sensor.input: _celsius(read_text(path)) for name, sensor in self._sensors.items()}
        shown = self._patience.ask(asked)
        return {name: (celsius, self._sensors[name].limit_celsius) for name, celsius in shown.items()}


def measure(
    host: str, now: Mapping[str, tuple[float, float | None]], before: object, elapsed_s: float
) -> Iterator[Measured]:
    for name, (celsius, limit) in now.items():
        metrics = {"temperature_celsius": celsius}
        if limit is not None and limit > 0:
            metrics["temperature_limit_celsius"] = limit
        yield Measured("host", host, metrics, {"sensor": name})
