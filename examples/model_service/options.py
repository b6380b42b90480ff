"""What can be set on the command line. Imports nothing heavy, so that the processes start at once."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields

ABOUT = "A model service to watch: real predictions, real load, trouble and drift every few minutes."
ABOUT_LOAD = "Calls the model service as its users would, until told to stop."


@dataclass(frozen=True)
class Tuning:
    """When the first detector is tuned, in seconds since the start."""

    first_s: float = 45.0
    every_s: float = 180.0
    lasts_s: float = 30.0
    budget_s: float = 0.25
    """How long one round takes, and so how long predictions wait for it."""
    pause_s: float = 1.25
    """Between two rounds; with a round, less than a window, so that every window sees one."""


@dataclass(frozen=True)
class Times:
    """Something that happens again and again, in seconds since the start."""

    first_s: float
    every_s: float

    def number(self, elapsed_s: float) -> int | None:
        """How often it has happened before, when it has."""
        return None if elapsed_s < self.first_s else int((elapsed_s - self.first_s) / self.every_s)


DRIFT = Times(first_s=60.0, every_s=300.0)
"""When the pages change. Before that there is time for a reference."""
DEPLOY = Times(first_s=150.0, every_s=300.0)
"""When the next version takes over: long enough after a change that it is seen how bad the old one has become."""


def service_parser() -> argparse.ArgumentParser:
    """The options of the service, those of its load included."""
    parser = argparse.ArgumentParser(prog="python -m examples.model_service", description=ABOUT)
    parser.add_argument("--events", metavar="URL", help="where the events go: the address of `streammon up`")
    parser.add_argument("--host", default="127.0.0.1", help="address of the service (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="port of the service (default: a free one)")
    _add_load(parser)
    for field in fields(Tuning):
        option = f"--tuning-{field.name.removesuffix('_s')}"
        parser.add_argument(
            option,
            type=float,
            dest=field.name,
            default=field.default,
            metavar="SECONDS",
            help="default: %(default)s",
        )
    _add_times(parser, "deploy", DEPLOY, "a new version")
    return parser


def load_parser() -> argparse.ArgumentParser:
    """The options of the load."""
    parser = argparse.ArgumentParser(prog="python -m examples.model_service.load", description=ABOUT_LOAD)
    parser.add_argument("url", help="address of the service, http://HOST:PORT")
    _add_load(parser)
    return parser


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second (default: %(default)s)")
    parser.add_argument(
        "--label-delay",
        type=float,
        default=3.0,
        metavar="SECONDS",
        help="from an answer to its label, on average (default: %(default)s)",
    )
    _add_times(parser, "drift", DRIFT, "phishers change their pages")


def _add_times(parser: argparse.ArgumentParser, name: str, default: Times, what: str) -> None:
    for part, when in (("first", "until, the first time, "), ("every", "between two times that ")):
        parser.add_argument(
            f"--{name}-{part}",
            type=float,
            default=getattr(default, f"{part}_s"),
            metavar="SECONDS",
            help=f"{when}{what} (default: %(default)s)",
        )


def load_options(given: argparse.Namespace) -> list[str]:
    """What the service passes on to its load."""
    names = ("rate", "label_delay", "drift_first", "drift_every")
    return [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(given, name)))]


def drift_times(given: argparse.Namespace) -> Times:
    """When the pages change."""
    return Times(given.drift_first, given.drift_every)


def deploy_times(given: argparse.Namespace) -> Times:
    """When new versions take over."""
    return Times(given.deploy_first, given.deploy_every)


def tuning(given: argparse.Namespace) -> Tuning:
    """The times of tuning that were given."""
    return Tuning(**{field.name: getattr(given, field.name) for field in fields(Tuning)})
