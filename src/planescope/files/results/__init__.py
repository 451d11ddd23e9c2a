"""Results as plain data: what they share, and the files that hold them."""
