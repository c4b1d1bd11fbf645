"""An archive's embeddings: one vector per tile as GeoParquet, patches as GeoTIFFs."""
