"""Scenes to cells: grids, which scenes are taken, their pixels in windows of a cell."""
