"""The SDK: what runs inside a service and reports its calls. `streammon_agents.sdk.monitor` tells the story."""

from streammon_agents.sdk.monitor import Call, Monitor
from streammon_agents.sdk.trace import http_headers, kafka_headers, traced

__all__ = ["Call", "Monitor", "http_headers", "kafka_headers", "traced"]
