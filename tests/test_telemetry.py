"""What is logged, in a process of its own: loggers are global."""

from __future__ import annotations

import subprocess
import sys

SERVE_GARBAGE = """
import asyncio
from aiohttp import web
from streammon.telemetry import MALFORMED, configure_logging, serve_http

async def main():
    configure_logging()
    async with serve_http(web.Application(), "127.0.0.1", 0, setting="port") as port:
        for header in (b"Content-Length: t0ps3cret", b"Authorization: t0ps3cret\\x00"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n" + header + b"\\r\\n\\r\\n")
            assert b" 400 " in await reader.readline()
            writer.close()
    [metric] = MALFORMED.collect()
    print(next(sample.value for sample in metric.samples if sample.name.endswith("_total")))

asyncio.run(main())
"""


def test_malformed_http_is_counted_and_never_quoted_in_the_log() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SERVE_GARBAGE], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2.0\n", "")
