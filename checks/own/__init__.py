"""Resets of networks and data that are somebody else's, held against plain loops."""
