"""Containers: what each uses of what it may, read from cgroups (`docs/containers.md`).

`container_of` says which container a process is in; other sources label what they see with it.
"""

from streammon_agents.containers.identity import Container, container_of

__all__ = ["Container", "container_of"]
