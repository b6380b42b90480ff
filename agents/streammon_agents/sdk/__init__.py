"""The SDK: what runs inside a service and reports its calls. `streammon_agents.sdk.monitor` tells the story."""

from streammon_agents.sdk.monitor import Call, Monitor

__all__ = ["Call", "Monitor"]
