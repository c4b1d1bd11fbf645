"""Tiles to samples: the plan of an epoch, crops, micro-batches."""
