"""Caffe networks."""
