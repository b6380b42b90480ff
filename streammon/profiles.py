"""What goes into a model and comes out, in numbers that add: profiles, and the references they are held against.

A *target* is what drifts: ``features.NAME``, ``prediction`` or ``confidence``. A `Profile` says how the targets of one
model version were distributed in one window. A `Reference` says how they should be; it fixes the bins in which profiles
count numbers, so that a test compares like with like. References are versioned by their content and never change.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct, field

from streammon.results import Completeness, Count, Result
from streammon.sketch import Sketch

TargetKind = Literal["numeric", "categorical", "text"]
"""``text``: only its length is looked at, as a number."""

REFERENCES = "references"
PROFILES = "profiles"


class Numbers(Struct, kw_only=True, omit_defaults=True, gc=False):
    """Numeric values of one target. What adds: counts, sums, sketch; and bins of the same reference."""

    count: Count
    min: float
    max: float
    sum: float
    sum_of_squares: float
    """About the ``center`` of the reference where there is one, else about 0: large offsets cancel otherwise."""
    sketch: Sketch
    bins: list[int] | None = None
    """Values in ``(-inf, e0], (e0, e1], …, (en, inf)``, the edges being the reference's; None without a reference."""


class TargetProfile(Struct, kw_only=True, omit_defaults=True, gc=False):
    """One target in one window. ``missing``: events that lack it, or have null."""

    missing: Count = 0
    types: dict[str, int] = {}
    """How many values were ``number``, ``text`` or ``truth``; their sum and ``missing`` are the events."""
    numbers: Numbers | None = None
    values: dict[str, int] | None = None
    """Of categories, how many events had each; those that the reference knows, and the first others up to a cap."""
    other: Count = 0
    """Events with a category beyond the cap."""


class CoMoments(Struct, kw_only=True, gc=False):
    """What a correlation of two declared targets is made of, over the events that have both; adds."""

    count: Count
    mean_x: float
    mean_y: float
    m2_x: float
    m2_y: float
    c_xy: float


class Profile(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="profile"):
    """The targets of one model version in one window ``[start, end)``.

    ``part`` and ``revision`` as in `streammon.results.Window`: late events are in supplements, and everything adds, as
    long as ``reference`` is the same.
    """

    service: str
    model: str
    model_version: str | None = None
    part: Literal["main", "late"]
    revision: Count
    start_unix_s: float
    end_unix_s: float
    size_s: float
    partition: Count
    count: Count
    completeness: Completeness
    reference: str | None = None
    """Id of the reference whose bins these are."""
    targets: dict[str, TargetProfile]
    pairs: dict[str, CoMoments] = field(default_factory=dict)
    """By ``X,Y`` of the declared pairs."""
    left_out: Count = 0
    """Targets beyond the cap."""


class TargetReference(Struct, kw_only=True, omit_defaults=True, gc=False):
    """How one target should be."""

    kind: TargetKind
    count: Count
    missing: Count = 0
    types: dict[str, int] = {}
    edges: list[float] | None = None
    """Of numbers: ascending; the bins are between them, and one below and one above. The first is just below the
    smallest value and the last is the largest, so that in ``bins`` these two are empty."""
    bins: list[int] | None = None
    center: float = 0.0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    values: dict[str, int] | None = None
    other: Count = 0
    distinct: Count = 0


class Reference(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="reference"):
    """How the targets of a model should be distributed.

    On the topic `references`, under `reference_key`, in the partition of ``service/model``.
    """

    id: str
    """Made of its content: another reference has another id."""
    service: str
    model: str
    model_version: str | None = None
    """Of which version it is; None: of all that have none of their own."""
    origin: str
    """Where it comes from, for people: ``file train.parquet``, ``log 10:00 to 12:00``, ``first 1000 events``."""
    made_unix_s: float
    since_unix_s: float = 0.0
    """The event time in its partition when it came: windows that start later are counted in its bins."""
    automatic: bool = False
    """Nobody asked for it: of the first events of a version. One that somebody published goes before."""
    sample_size: Count
    targets: dict[str, TargetReference]
    pairs: dict[str, CoMoments] = field(default_factory=dict)


def reference_key(reference: Reference) -> bytes:
    """Its key on the topic `references`: with its id, so that compaction keeps older ones, too."""
    return f"{reference.service}/{reference.model}/{reference.id}".encode()
