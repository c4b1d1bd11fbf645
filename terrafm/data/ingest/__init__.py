"""Archive to dataset: cells are cut into tiles, selected, counted, written, appended."""
