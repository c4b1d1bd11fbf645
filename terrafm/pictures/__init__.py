"""Pictures of datasets, samples and runs."""
