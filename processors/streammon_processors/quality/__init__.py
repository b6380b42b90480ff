"""How good predictions were: `outcomes` to `quality`. What each measure means is in `docs/quality.md`.

From the top: `task` decides when what is published, of `models`, which hold what is known of each version and slice.
That is `sums`, which add; `measures` reads them, with `intervals`; `estimate` says what may be said without labels.
"""

from streammon_processors.quality.task import QualityTask

__all__ = ["QualityTask"]
