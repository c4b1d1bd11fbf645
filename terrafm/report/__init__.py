"""Self-contained pages about runs, datasets, embeddings and sweeps: `terrafm report`."""
