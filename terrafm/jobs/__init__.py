"""Verbs as jobs on a Ray cluster: packed, submitted, followed, stopped."""
