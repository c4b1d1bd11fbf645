"""The training step, its engine, and the run around them."""
