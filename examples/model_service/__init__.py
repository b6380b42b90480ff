"""A model service to watch: real predictions, real load, and real trouble every few minutes. See README.md."""
