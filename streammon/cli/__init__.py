"""The command line: one place where components are put together.

Every command takes ``--config``, ``--bootstrap`` or ``--data-dir`` and reads ``STREAMMON_*``; `command` adds them.
Exit status: 0 done, 1 failed, 2 bad configuration (the message names the field and the value), 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys

from streammon.errors import ConfigError, StreammonError


def main() -> None:
    """The ``streammon`` program."""
    _collect_garbage_rarely()
    _import_numpy()
    from streammon.cli import admin, data, replay, roles, up  # noqa: F401 - importing registers the commands
    from streammon.cli.base import EXTRAS, app

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


def _collect_garbage_rarely() -> None:
    """What is imported stays, and events come and go by thousands and are never cyclic.

    To look for cycles among them took a tenth of starting, and then a third of the time.
    """
    gc.set_threshold(200_000, 20, 50)


def _import_numpy() -> None:
    """Without the threads, one a core, that its OpenBLAS would start: nothing here does linear algebra, and they spin
    through 0.1 s of CPU time before they sleep.

    A variable that is set already is left alone; ours is not there any more for the programs that we start.
    """
    variable = "OPENBLAS_NUM_THREADS"
    if variable in os.environ:
        return
    os.environ[variable] = "1"
    import numpy  # noqa: F401 - it reads the variable now, and only now

    del os.environ[variable]
