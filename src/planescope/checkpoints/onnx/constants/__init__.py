"""Values of an ONNX graph that no input changes, computed as it is read."""
