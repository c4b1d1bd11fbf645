"""Labelled sets: how each is read, and whether weights fit it."""
