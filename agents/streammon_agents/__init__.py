"""Agents: they observe and publish, never block what they watch, and count what they drop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streammon_agents.sdk import Monitor

__all__ = ["Monitor"]


def __getattr__(name: str) -> Any:
    """`Monitor`, when it is asked for: the agent of a node, which lives here too, has no use for the SDK."""
    if name == "Monitor":
        from streammon_agents.sdk import Monitor

        return Monitor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
