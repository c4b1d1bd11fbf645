"""A small believable Earth: landscapes, what optics and radar see of them, seeded."""
