"""Named tensors to layers: which are weights, how their axes lie, with which norm."""
