"""What a raster says of itself: bands by name, units, offsets and missing pixels, for all verbs."""
