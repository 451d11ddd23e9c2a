"""Scores of `planescope sensitivity` held against labels, on networks that others trained."""
