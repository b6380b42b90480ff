"""Whether a channel has the library that it needs: those of some channels are an extra."""

from __future__ import annotations

from importlib.util import find_spec

from streammon.errors import ConfigError


def check_installed(channel: str, module: str) -> None:
    """Raises ConfigError: ``module`` is not installed, and how to install it."""
    if find_spec(module) is None:
        raise ConfigError(f"channel {channel}: {module} is not installed; pip install 'streammon[notify]'")
