"""Measurements of the program, by itself and beside its peers; see docs/benchmarks.md."""
