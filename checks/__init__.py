"""What holds planescope to its word: fuzzing, reliability, benchmarks."""
