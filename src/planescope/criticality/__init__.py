"""The worth of layers to a network, and its prediction from their weights."""
