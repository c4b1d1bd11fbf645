"""Tables of encoders over a labelled set."""
