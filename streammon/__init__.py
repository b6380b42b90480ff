"""streammon: event-streaming monitoring of machine-learning systems.

This package is the shared vocabulary of agents, processors and sinks; it imports none of them (the command line
alone does).
"""

__version__ = "0.1.0"
