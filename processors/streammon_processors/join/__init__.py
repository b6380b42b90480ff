"""The join of predictions and labels. Start with `streammon_processors.join.task`."""

from streammon_processors.join.task import JoinTask

__all__ = ["JoinTask"]
