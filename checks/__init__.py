"""Checks that hold planescope to its word: fuzzing, reliability, benchmarks."""
