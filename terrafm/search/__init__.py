"""What looks alike: the nearest neighbours of a tile among embeddings, and pictures of them."""

from terrafm.verb_package import make_callable

make_callable(__name__)
