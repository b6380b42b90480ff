"""Notifiers: sinks of the topic ``alerts`` that tell a person."""
