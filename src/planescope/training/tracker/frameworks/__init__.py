"""A `Tracker` in the frameworks that train: Lightning, Hugging Face, Keras."""
