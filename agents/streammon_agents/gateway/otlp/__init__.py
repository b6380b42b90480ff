"""OTLP: what services send that speak OpenTelemetry, over HTTP and over gRPC.

::

    HTTP POST /v1/traces … ──► http ─┐                 ┌─► spans    model calls, requests  ──► inference events
                                     ├─► intake ─► read┼─► metrics  one event a label set  ──► resource events
    gRPC …Service/Export ────► rpc ──┘                 └─► logs     one event a record     ──► log events

``intake`` is what both ways have in common: it makes room, reads, hands over, and answers once the events are durable.
The readers are pure but for what `metrics` has to remember. ``docs/otlp.md`` says what becomes what.

Everything here needs the extra ``streammon[otlp]``; import it where it is used.
"""
