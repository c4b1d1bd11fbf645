"""Features of frozen encoders: extracted, read out, cached, by many workers."""
