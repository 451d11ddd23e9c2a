"""The statistics live through training."""
