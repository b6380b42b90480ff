"""Backtests and unit tests: what rules would have told, had they run.

* `running`: the rules task itself, from nothing, over base windows; rollups are made anew. With ``by``: `by_groups`.
* From where: `log`, a log, one process a core; `columns`, numbers of windows side by side; `numbers_csv`, of a file;
  `unit`, series that are made up in a file of tests.
* `judging`: what a person would have got of it, how two sets of rules differ, and how one fares against `incidents`.

All of it is pure: the same windows give the same bytes. What it cannot know: who acknowledged what, and an alert that
had been firing for longer than rules look back.
"""
