"""Measure the layers of a network."""
