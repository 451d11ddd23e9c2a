"""Files of PyTorch."""
