"""Measurements of the program, alone and beside its peers; see docs/benchmarks.md."""
