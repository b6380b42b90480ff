"""Prometheus scraping: what services and exporters show on their pages of metrics becomes events.

| module | does |
|---|---|
| `jobs` | what is scraped, as Prometheus' ``scrape_configs`` say it |
| `discovery`, `kubernetes` | which targets there are |
| `relabel`, `targets` | what they are called, and which of them are wanted |
| `fetching` | one page, within its bounds |
| `text`, `protobuf` over `pages` | what a page says |
| `accounts`, `native` | what pages add up to |
| `scraper` | the source: all of it on the beat |
"""
