"""Sweeps over the configuration."""
