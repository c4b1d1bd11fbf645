"""The encoder, its head, and its weights."""
