"""Checkpoints and SavedModels of TensorFlow: where they keep their variables."""
