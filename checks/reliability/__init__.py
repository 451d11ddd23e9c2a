"""Harnesses behind the figures of docs/reliability.md: the faults that planescope survives."""
