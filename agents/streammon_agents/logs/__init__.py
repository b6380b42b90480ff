"""Log files and what containers say: see `streammon_agents.logs.source`."""
