"""From archive to crops: sources, ingest, shards, sampling, stream."""
