"""Benchmarks of the program, alone and against peers; see docs/benchmarks.md."""
