"""The command line: one place where components are put together.

Every command takes ``--config``, ``--bootstrap`` or ``--data-dir`` and reads ``STREAMMON_*``; `command` adds them.
Exit status: 0 done, 1 failed, 2 bad configuration (the message names the field and the value), 130 interrupted.
"""

from __future__ import annotations

import sys

from streammon.cli.base import EXTRAS, app
from streammon.errors import ConfigError, StreammonError

__all__ = ["app", "main"]


def main() -> None:
    """The ``streammon`` program."""
    from streammon.cli import admin, data, replay, roles, up  # noqa: F401 - importing registers the commands

    try:
        app()
    except StreammonError as error:
        print(f"streammon: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        needed = f"this needs {error.name}, which is not installed: pip install 'streammon[{EXTRAS[error.name]}]'"
        print(f"streammon: {needed}", file=sys.stderr)
        sys.exit(2)
