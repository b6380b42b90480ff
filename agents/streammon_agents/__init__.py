"""Agents: they observe and publish, never block what they watch, and count what they drop."""

from streammon_agents.sdk import Monitor

__all__ = ["Monitor"]
