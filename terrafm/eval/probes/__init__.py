"""Probes on cached features: nearest neighbours and linear ones."""
