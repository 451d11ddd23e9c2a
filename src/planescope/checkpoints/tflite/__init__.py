"""TensorFlow Lite models: a graph in a FlatBuffer, its weights often quantised.

The schema is TensorFlow's own, by the packages `flatbuffers` and `tflite`. What these read from a
damaged file is held against the file's size here.
"""
