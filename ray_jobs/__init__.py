"""One thin module per job that a cluster runs."""
