"""Wrong input by the thousand: see `python -m benchmarks.fuzz --help`."""
