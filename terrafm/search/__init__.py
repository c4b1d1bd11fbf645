"""What looks alike: the nearest neighbours of a tile among embeddings, and pictures of them."""
