"""Drift: profiles of inputs and outputs against their reference, tested window by window.

`statistics` (what a test says of counts), `chances` (exact ones), `multiplicity` (many tests, and the budget), `sample`
(what is tested), `compare` (which tests, and which of them are drift), `past` (references made of earlier windows),
`usual` (how far automatic references are off by themselves), `task` (the processor).
"""

from streammon_processors.drift.task import DriftTask, each_test, test_time

__all__ = ["DriftTask", "each_test", "test_time"]
