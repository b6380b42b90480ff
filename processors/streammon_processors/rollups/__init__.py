"""Rollups: from base windows to longer, overlapping and busy ones, each the exact sum of what it is made of.

A `RollupTask` reads one partition of the topic `windows` and writes to the same partition of it. What it makes, a
`streammon_processors.shapes.plan` says: minutes of base windows, five minutes of minutes, and whatever hopping windows
and sessions the rules ask for. Each level reads the level below *from the log*, so that every number can be checked
against the records it is made of, and to continue an hour after a restart takes 12 records of a series, not 1,800.

When a rollup closes
--------------------
Of each source the task knows through which time all its windows have been seen:

* base windows: a main window that starts at t says that all which end by t are there, because they are published in
  order. A source that has gone silent says nothing more. Then broker time speaks: it has come as far as its watermark
  has, plus the broker time since that last moved, less `PATIENCE_S`. Gaps in which nothing was written into the
  partition, by nobody, hardly count: then the processors stood still, and not the source.
* rollups: as far as they were published *and have been read back*.

A rollup is published when all that it is made of has been seen, and never changes. What comes later, or is itself a
supplement of something closed, becomes a supplement (``part`` "late", ``revision`` 1, 2, …), published together with
the next rollup or `PATIENCE_S` later. So the parts of all rollups of one length add up to the base windows, exactly.

A *session* begins with a window that holds events, and ends when the series has been silent for ``gap_s``. It is cut
after `MAX_SESSION_S`. Late windows that do not fall into an open session are a supplement, with their own bounds.

Recovery
--------
As of `streammon_processors.event_windows`: the snapshot is taken where something is published and holds no sums;
`offsets` names the first record of the oldest rollup that was open, and what is read again up to the published place
only rebuilds these.
"""

from __future__ import annotations

from streammon_processors.rollups.task import PATIENCE_S, RollupTask

__all__ = ["PATIENCE_S", "RollupTask"]
