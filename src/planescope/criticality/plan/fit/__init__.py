"""Layers of a changed network, fitted anew to what the whole one gives."""
