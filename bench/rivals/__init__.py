"""streammon beside what one would use instead: the same job, the same log, one exact answer. See `__main__`."""
