"""Data sets by name or in a folder: where they lie, and how their files are read."""
