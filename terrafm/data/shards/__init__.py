"""The dataset on its storage: written, committed, read by byte range, checked."""
