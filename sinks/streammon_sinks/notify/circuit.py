"""When to try a channel again: sooner after a first failure, seldom once it has failed again and again."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from streammon.backoff import Backoff
from streammon.errors import Backpressure, Retryable


@dataclass(frozen=True)
class Patience:
    """How a channel in trouble is treated. All in seconds, but for ``failures``."""

    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.5, longest_s=10.0))
    failures: int = 5
    """So many failures in a row open the circuit: from then on there is a probe every ``probe_s``."""
    probe_s: float = 30.0
    failing_after_s: float = 60.0
    """A notification that has waited for so long since it was decided is `failing`: somebody else has to be told."""
    give_up_s: float = 86_400.0
    """One that is older is not delivered any more: it is `refused`, and told elsewhere."""


class Circuit:
    """Of one channel: closed while it works, open after `Patience.failures` failures in a row."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._failures = 0

    @property
    def is_open(self) -> bool:
        return self._failures >= self._patience.failures

    def worked(self) -> None:
        self._failures = 0

    def failed(self, error: Retryable) -> float:
        """Seconds until the next try: never earlier than the other side has asked for."""
        self._failures += 1
        asked_s = error.retry_after_s if isinstance(error, Backpressure) else 0.0
        return max(asked_s, self._pause_s())

    def _pause_s(self) -> float:
        if self.is_open:
            return self._patience.probe_s * random.uniform(0.8, 1.0)
        return self._patience.backoff.pause_s(self._failures - 1)
