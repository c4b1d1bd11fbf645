"""Layouts of labelled sets, one module each."""
