"""Scores that need no data, held against what resetting the layers costs."""
