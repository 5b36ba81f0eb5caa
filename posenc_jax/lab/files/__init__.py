"""Files of runs: paths, buckets, locks, and writes that happen completely or not at all."""
