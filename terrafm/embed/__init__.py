"""An archive's embeddings: one vector per tile as GeoParquet, patches as GeoTIFFs."""

from terrafm.verb_package import make_callable

make_callable(__name__)
