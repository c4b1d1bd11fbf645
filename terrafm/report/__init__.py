"""Self-contained pages about runs, datasets, embeddings and sweeps: `terrafm report`."""

from terrafm.verb_package import make_callable

make_callable(__name__)
