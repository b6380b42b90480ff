"""Text of others on a terminal: shown, and not obeyed."""

from __future__ import annotations


def visible(text: str) -> str:
    """Text that can neither move the cursor nor begin a line."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
