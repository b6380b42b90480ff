"""The command line: one place where components are put together.

Every command takes ``--config``, ``--bootstrap`` or ``--data-dir`` and reads ``STREAMMON_*``; `command` adds them.
Exit status: 0 done, 1 failed, 2 bad configuration (the message names the field and the value), 130 interrupted.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from streammon.errors import ConfigError, StreammonError
from streammon.lazy_numpy import import_within, np


def main() -> None:
    """The ``streammon`` program."""
    _collect_garbage_rarely()
    _import_leanly()
    if sys.argv[1:2] == ["agent"]:  # which is on every node: 13 MB less
        from streammon.cli import roles  # noqa: F401
    else:
        _import_numpy()
        register_commands()
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


def register_commands() -> None:
    """Importing a module registers its commands."""
    from streammon.cli import (  # noqa: F401
        admin,
        calibrate,
        data,
        drift,
        imports,
        inventory,
        notify,
        notify_file,
        people,
        query,
        remediate,
        replay,
        roles,
        rules,
        slo,
        up,
    )


def _collect_garbage_rarely() -> None:
    """What is imported stays, and events come and go by thousands and are never cyclic.

    To look for cycles among them took a tenth of starting, and then a third of the time.
    """
    gc.set_threshold(200_000, 20, 50)


def _import_leanly() -> None:
    """Import what brings along more than is used here: together a quarter of a start.

    numpy's OpenBLAS starts a thread for each core, which spin through 0.1 s of CPU time before they sleep; nothing here
    does linear algebra. pydantic looks for plugins in all that is installed, and structlog for rich to draw with.
    """
    import_within(partial(_set, "OPENBLAS_NUM_THREADS"))
    with _set("PYDANTIC_DISABLE_PLUGINS"):
        import streammon.config  # noqa: F401 - pydantic reads it when the first model is made, and only then

    if "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]  # not to be found
        import structlog  # noqa: F401

        del sys.modules["rich"]


def _import_numpy() -> None:
    """Now, as `_import_leanly` wants it: processors import it by themselves."""
    np.ndarray  # noqa: B018


@contextmanager
def _set(name: str) -> Iterator[None]:
    """The environment with a variable set to 1, unless it is set already; the programs that we start do not see it."""
    if name in os.environ:
        yield
        return
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
