"""Networks, data and the training loop."""
