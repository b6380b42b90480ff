"""Whose predictions and labels these are: how long one waits for the other, and the keys of their ids."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from streammon.events import EventType, record_key
from streammon.models import Models

KNOWN_MODELS = 10_000
"""Beyond so many at once, what is known of them is looked up anew."""
KEY_BYTES = 16


@dataclass(frozen=True)
class Model:
    """What holds for one model."""

    service: str
    model: str
    horizon_ms: int
    window_s: float
    slices: tuple[str, ...]
    salt: bytes

    def key(self, event_id: str) -> bytes:
        """Of everything that is known of an id: as good as the names themselves, and short."""
        return blake2b(event_id.encode(errors="surrogatepass"), digest_size=KEY_BYTES, salt=self.salt).digest()

    @property
    def record_key(self) -> bytes:
        return record_key(EventType.LABEL, (self.service, self.model))


class KnownModels:
    """Every model, as the file of models says."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._known: dict[tuple[str, str], Model] = {}
        policies = [each.labels for each in (*models.models, models.policy("", ""))]
        self.longest_s = max(policy.horizon_s for policy in policies)
        self.windows_s = sorted({policy.window_s for policy in policies})
        self.slices = tuple(dict.fromkeys(name for policy in policies for name in policy.slices))
        """Of any of them."""

    def of(self, service: str, model: str) -> Model:
        found = self._known.get((service, model))
        if found is None:
            if len(self._known) >= KNOWN_MODELS:
                self._known.clear()
            found = self._known[service, model] = self._look_up(service, model)
        return found

    def _look_up(self, service: str, model: str) -> Model:
        policy = self._models.policy(service, model).labels
        names = f"{len(service)}:{service}{model}".encode(errors="surrogatepass")
        salt = blake2b(names, digest_size=blake2b.SALT_SIZE).digest()
        return Model(service, model, round(policy.horizon_s * 1000), policy.window_s, policy.slices, salt)
