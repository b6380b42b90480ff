"""Secrets of the settings: given as they are, by the environment, or in a file of their own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from streammon.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import SecretStr


def secret(field: str, given: SecretStr | None, file: Path | None) -> str | None:
    """From the configuration or a file; None if neither is given. Raises ConfigError, naming the file."""
    if given is not None:
        return given.get_secret_value()
    return None if file is None else read_secret(f"{field}_file", file)


def read_secret(field: str, file: Path) -> str:
    """The content of a file, where the line end that editors put behind it does not count. Raises ConfigError."""
    try:
        content = file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{field} = {str(file)!r}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    if not content:
        raise ConfigError(f"{field} = {str(file)!r}: the file is empty")
    return content
