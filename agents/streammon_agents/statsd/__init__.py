"""StatsD and DogStatsD: `lines` says what a line means, `series` adds lines up, `serving` listens."""
