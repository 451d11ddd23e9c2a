"""TensorFlow's own formats: frozen graphs, checkpoints and SavedModels.

No TensorFlow is needed, and nothing of a graph is run: its operations are followed by their names
(`network`), and its weights are read when they are measured.
"""
