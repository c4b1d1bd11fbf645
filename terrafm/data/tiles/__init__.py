"""Cells to tiles: cut, corrected, classified, selected, counted."""
