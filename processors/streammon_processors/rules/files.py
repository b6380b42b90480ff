"""Rules from YAML files; an error names the file, line, column, rule, field and value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Final

from msgspec import Struct

from streammon.errors import ConfigError
from streammon.results import DISTRIBUTIONS
from streammon.yaml_files import load_yaml, place_of
from streammon_processors.rules.description import Rule, Rules
from streammon_processors.rules.levels import ServiceLevel

DEFAULT_RULES: Final = Path(__file__).with_name("default_rules.yaml")
"""Rules to begin with, for any service, host, model and job."""
_Keys = tuple[str, int]


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...] | None = None
    slos: tuple[ServiceLevel, ...] = ()

    def __post_init__(self) -> None:
        if self.rules is None and not self.slos:
            raise ValueError("`rules` or `slos` must be given")

    @property
    def all_rules(self) -> Iterator[tuple[_Keys, Rule]]:
        """Those that are written, and those that alert on its objectives, each with where it stands."""
        for number, rule in enumerate(self.rules or ()):
            yield ("rules", number), rule
        for number, level in enumerate(self.slos):
            yield from ((("slos", number), rule) for rule in level.rules)


def load_rules(files: Iterable[Path], distributions: Collection[str] = DISTRIBUTIONS) -> Rules:
    """The rules of all files. ``distributions``: those that windows have (``windows.inference_distributions``).

    Raises:
        ConfigError: naming the file, line and column, the rule, the field, its value, and what is allowed.
    """
    found: dict[str, tuple[Rule, Path]] = {}
    for file in files:
        for keys, rule in load_yaml(file, _File).all_rules:
            if rule.name in found:
                raise ConfigError(
                    f"{place_of(file, keys)}: rule {rule.name!r} is already in {found[rule.name][1]}; "
                    "names must be distinct"
                )
            if left_out := sorted(rule.distributions - set(distributions)):
                raise ConfigError(
                    f"{place_of(file, keys)}: rule {rule.name!r} asks for {left_out[0]!r}, which no window has: "
                    f"windows.inference_distributions lacks {left_out[0]}"
                )
            found[rule.name] = (rule, file)
    return Rules(tuple(rule for rule, _ in found.values()))


def load_slos(files: Iterable[Path]) -> tuple[ServiceLevel, ...]:
    """The service level objectives of all files. Raises ConfigError; `load_rules` finds more that can be wrong."""
    return tuple(level for file in files for level in load_yaml(file, _File).slos)


def refuse_incomplete(files: Iterable[Path]) -> None:
    """Raises ConfigError: a rule lacks what a person would want to know who is woken by it."""
    lacking = [
        f"{place_of(file, keys)}: rule {rule.name!r} lacks {', '.join(rule.missing)}"
        for file in files
        for keys, rule in load_yaml(file, _File).all_rules
        if rule.missing
    ]
    if lacking:
        raise ConfigError("whoever is woken needs to know what to do and whom to ask: " + "; ".join(lacking))
