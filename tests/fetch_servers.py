"""Fetch the real servers before the tests, so that a slow download shows its progress and times out no test."""

from __future__ import annotations

import os
import sys

from streammon.errors import StreammonError
from streammon.servers import RECIPES, prepare


def main() -> int:
    for name in RECIPES:
        try:
            prepare(name, lambda message: print(message, file=sys.stderr, flush=True))
        except StreammonError as error:
            print(f"{name}: {error}", file=sys.stderr)
            if os.environ.get("STREAMMON_REQUIRE_SERVERS") == "1":
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
