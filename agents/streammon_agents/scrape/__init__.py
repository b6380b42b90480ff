"""Prometheus scraping: what services and exporters show on their pages of metrics becomes events."""
