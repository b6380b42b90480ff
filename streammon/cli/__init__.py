"""The command line: one place where components are put together.

Every command takes ``--config``, ``--bootstrap`` or ``--data-dir`` and reads ``STREAMMON_*``; `command` adds them.
Exit status: 0 done, 1 failed, 2 bad configuration (the message names the field and the value), 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from streammon.cli.base import app
from streammon.errors import ConfigError, StreammonError

__all__ = ["app", "main"]


def main() -> None:
    """The ``streammon`` program."""
    from streammon.cli import admin, data, roles, up  # noqa: F401 - importing registers the commands

    sys.exit(_status())


def _status() -> int:
    try:
        return int(app(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ConfigError as error:
        return _fail(str(error), 2)
    except StreammonError as error:
        return _fail(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:  # the reader of our output has had enough, as `| head` does
        sys.stderr.close()
        return 0


def _fail(message: str, status: int) -> int:
    print(f"streammon: {message}", file=sys.stderr)
    return status
