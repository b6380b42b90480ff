"""numpy, imported by the first thing that computes with it.

An agent observes, packs and sends without computing, and numpy would take a quarter of its memory. Therefore the
modules that agents share with processors write::

    from streammon.lazy_numpy import NDArray, np

`np` is an empty module until one of its names is asked for; it then takes all of numpy's and is as fast as numpy
itself. What would ask for one while a module is imported has to wait, too: constants become cached functions, and
aliases are quoted (``Floats: TypeAlias = "NDArray[np.float64]"``). Annotations are never evaluated here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray
else:
    np = ModuleType("numpy")
    ArrayLike = NDArray = Any  # for annotations alone

__all__ = ["ArrayLike", "NDArray", "import_within", "np"]

Around = Callable[[], AbstractContextManager[object]]


def import_within(around: Around) -> None:
    """When the time comes, import numpy within such a context: in an environment of a program's choice."""
    vars(np)["__getattr__"] = partial(_of_numpy, around)  # what Python asks for a name that a module has not got


def _of_numpy(around: Around, name: str) -> Any:
    with around():
        import numpy
    vars(np).update(vars(numpy))  # its own `__getattr__` included, in place of this
    return getattr(numpy, name)


import_within(nullcontext)
