"""How good the encoder is: datasets, protocols, baselines."""
