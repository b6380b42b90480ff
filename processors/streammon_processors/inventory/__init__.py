"""The inventory: who fell silent, against who is expected.

``expected``  the file that says who should be there
``roster``    who is absent, and since when: pure, and judged by the time of the log
``absence``   what people are told of it: alerts
``service``   the Faust application that runs it
"""

from __future__ import annotations

from streammon_processors.inventory.expected import Expected, load_expected

__all__ = ["Expected", "load_expected"]
