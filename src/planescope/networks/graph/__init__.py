"""The graph of a network: where each layer stands."""
