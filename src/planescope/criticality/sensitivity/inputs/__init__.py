"""Inputs to run a network on: synthetic pictures, or the user's with labels or without."""
