"""A Faust agent of one's own on the windows: it counts, by model, those in which p99 was over a second.

streammon's settings are read as every command reads them, so this is enough to run it:

    STREAMMON_BOOTSTRAP=HOST:PORT faust -A slow_models worker
"""

from __future__ import annotations

from typing import Any

from streammon.config import load
from streammon.results import Window
from streammon_processors.faust_app import create_app, topic

app = create_app("slow-models", load())
slow = app.Table("slow", default=int, use_partitioner=True)


@app.agent(topic(app, "windows"))
async def watch(stream: Any) -> None:
    async for event in stream.noack().events():
        window: Window = event.value
        if window.is_base and window.duration_s and window.duration_s.p99 > 1.0:
            slow[window.series["model"]] += 1
            print(f"{window.series['model']} was slow {slow[window.series['model']]} times", flush=True)
        event.ack()  # only now is the record done with
