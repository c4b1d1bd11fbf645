"""Checkpoints: their format, the writer beside the training, which of them stay, their verbs."""
