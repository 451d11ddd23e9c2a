"""Measure how the hyperplanes of a trained network face its data, from a checkpoint alone."""
