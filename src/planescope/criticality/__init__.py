"""What layers are worth to a network, and whether their weights tell."""
