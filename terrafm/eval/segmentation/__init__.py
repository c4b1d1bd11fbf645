"""Encoders scored on masks: probes of frozen patch maps."""
