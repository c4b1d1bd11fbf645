"""One module per archive layout."""
