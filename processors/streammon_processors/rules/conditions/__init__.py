"""Conditions: what a rule may say in `expr` and `clear`, read, checked, and evaluated over columns.

`cel` reads the language into a checked tree; `expression` evaluates such trees for many windows at once, and says in
words (`words`) why it came out so. `past` has the functions that look back, and `learning` those that learn a series:
`anomaly` and `forecast`, whose state is a row each (`rows`). `arguments` checks what functions are given.
"""
