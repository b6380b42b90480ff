"""Incidents that are known to have been: a YAML or JSON file, ours or one of the Numenta Anomaly Benchmark.

Ours::

    incidents:
      - {name: bad deploy, from: 2026-01-31T12:00:00Z, to: 2026-01-31T13:00:00Z, labels: {service: shop}}

NAB's ``combined_windows.json``: the name of a CSV file, and from when to when it was not as usual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, field

from streammon.errors import ConfigError
from streammon.wire import MAX_TIME_UNIX_S
from streammon.yaml_files import load_yaml, place_of
from streammon_processors.rules.backtest.judging import Incident
from streammon_processors.rules.backtest.numbers_csv import utc


class _Incident(Struct, frozen=True, forbid_unknown_fields=True):
    from_: Any = field(name="from")
    to: Any
    labels: dict[str, str] = {}
    name: str = ""


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    incidents: tuple[_Incident, ...]


def load_incidents(file: Path, csv_names: Sequence[str] = ()) -> list[Incident]:
    """The incidents of a file. Those of NAB are about the series of the CSV files whose names end as theirs do.

    Raises:
        ConfigError: naming the place.
    """
    if (windows := _nab(file)) is not None:
        if not any(name.endswith(Path(key).name) for key in windows for name in csv_names):
            raise ConfigError(f"{file} is about other files than --csv: {', '.join(map(repr, windows)) or 'none'}")
        return [
            _made(file, (key, place), begin, end, {"file": name}, "")
            for key, pairs in windows.items()
            for name in csv_names
            if name.endswith(Path(key).name)
            for place, (begin, end) in enumerate(pairs)
        ]
    return [
        _made(file, ("incidents", place), each.from_, each.to, each.labels, each.name)
        for place, each in enumerate(load_yaml(file, _File).incidents)
    ]


def _nab(file: Path) -> Mapping[str, list[tuple[str, str]]] | None:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=dict[str, list[tuple[str, str]]])
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return None if "incidents" in found else found


def _made(
    file: Path, keys: Sequence[str | int], begin: object, end: object, labels: dict[str, str], name: str
) -> Incident:
    try:
        from_unix_s, to_unix_s = utc(str(begin)), utc(str(end))
    except ValueError as error:
        raise ConfigError(f"{place_of(file, keys)}: {error}; expected an ISO time or Unix seconds") from None
    if not 0 <= from_unix_s < to_unix_s < MAX_TIME_UNIX_S:
        raise ConfigError(f"{place_of(file, keys)}: it begins at {begin} and ends at {end}")
    return Incident(from_unix_s=from_unix_s, to_unix_s=to_unix_s, labels=labels, name=name)
