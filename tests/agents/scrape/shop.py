"""A Flask service with `prometheus_client`, as anybody writes one: it knows nothing of streammon.

python tests/agents/scrape/shop.py PORT
"""

from __future__ import annotations

import sys
from typing import Any

import prometheus_client
from flask import Flask, request
from prometheus_client import Counter, Gauge, Histogram, Summary
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import run_simple

client: Any = prometheus_client  # without types

ORDERS = Counter("orders", "Orders.", ["kind"])
PRICE = Histogram("price_eur", "Prices.", ["kind"], buckets=(1, 5, 10, 50, 100))
SIZE = Summary("order_size", "Pieces of an order.")
OPEN = Gauge("open_orders", "Orders that are not delivered yet.")

app = Flask(__name__)


@app.post("/order/<kind>")
def order(kind: str) -> str:
    ORDERS.labels(kind).inc()
    PRICE.labels(kind).observe(float(request.args["price"]))
    SIZE.observe(int(request.args["size"]))
    OPEN.inc()
    return "thanks"


if __name__ == "__main__":
    with_metrics = DispatcherMiddleware(app.wsgi_app, {"/metrics": client.make_wsgi_app()})
    run_simple("127.0.0.1", int(sys.argv[1]), with_metrics, threaded=True)
