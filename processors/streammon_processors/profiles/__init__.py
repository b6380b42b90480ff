"""Profiles: how the inputs and outputs of each model version are distributed, window by window, in numbers that add.

* `targets` makes columns of what events hold.
* `counting` counts them: a profile is what one window holds of one model version.
* `sample` makes a reference of events, and `edges` the bins in which numbers are counted from then on.
* `references` knows which reference holds for which window, and collects the first events of new versions.
* `task` puts these together.
* `reading` makes samples of files and of the log.
"""

from streammon_processors.profiles.task import ProfileTask

__all__ = ["ProfileTask"]
