"""Import of Prometheus' alerting rules, and a list of what was not translated.

`promql` reads expressions, `metrics` says which numbers of windows a metric is, `translation` makes rules of those that
mean the same, and `importing` reads files of them.
"""
