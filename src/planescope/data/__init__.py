"""Inputs in batches: published sets by name, folders, whatever a user hands over."""
