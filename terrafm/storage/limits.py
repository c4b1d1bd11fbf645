"""Limits on what is read of files that others wrote; docs/security.md has the same table.

Each is far above what ordinary data needs, so that a file which meets one is damaged, is not what
its name says, or was made to exhaust the machine.
"""

DOCUMENT_BYTES = 64 << 20
"""A file that is read whole where nothing larger is expected: JSON, YAML, a manifest."""
LINES_BYTES = 512 << 20
"""A file of JSON lines, such as metrics.jsonl."""
WHOLE_FILE_BYTES = 16 << 30
"""A file of pixels or weights that is read whole."""
JSON_CONTAINERS = 2_000_000
"""Objects and arrays in a JSON text: an empty one takes 3 bytes of text and 72 of memory."""
JSON_VALUES = 16_000_000
"""Values of any kind in a JSON text."""

STAC_ITEMS = 100_000
"""Items of a search or file of STAC: a scene with its bands takes about 10 kB of memory."""

HARMLESS_BYTES = 256 << 20
"""A claim up to this is met, whatever the file: it costs a moment at worst."""
MOST_TIMES = 5000
"""Bytes that one byte of a file may stand for: a constant image shrinks to 1/400 to 1/1000."""
SUSPICIOUS_BYTES = 1 << 30
"""More than this is decoded only of a file that holds at least a sixteenth of it."""
USUAL_TIMES = 16
"""See `SUSPICIOUS_BYTES`: pixels and tables that were measured do not shrink further."""

RASTER_BANDS = 512
"""Bands of a GeoTIFF: the time to open one grows with the square of them."""
WINDOW_BYTES = 2 << 30
"""Memory of a window of a raster, at 9 bytes for each pixel of each band."""
WINDOW_SIDE = 4096
"""Side of a window that is embedded, pixels: 13 bands of it are within `WINDOW_BYTES`."""

TABLE_TIMES = 64
"""As `USUAL_TIMES`, of columns: many are sorted or constant."""
PARQUET_FOOTER_BYTES = 16 << 20
"""Footer of a Parquet file, which is decoded before anything else of it."""
PARQUET_CHUNKS = 1_000_000
"""Column chunks, of all columns and row groups of a Parquet file."""

ZIP_DIRECTORY_BYTES = 8 << 20
"""Directory of a zip: one of 10,000 files takes about 2 MiB."""
XML_BYTES = 8 << 20
"""Metadata of a product; the longest, of a tile with all its angles, takes about 1 MiB."""
XML_DEPTH = 40
"""Levels of elements in XML."""
XML_ELEMENTS = 200_000
"""Elements in XML."""

TAR_MEMBERS = 1_000_000
"""Members of a tar; a shard of TerraMesh has up to 10,240."""
SAMPLE_BYTES = 64 << 20
"""A sample in a tar, which is read whole; one of 13 bands and four dates takes about 8 MiB."""
ZARR_DIMENSIONS = 8
"""Dimensions of a Zarr array."""
ZARR_CHUNKS = 100_000
"""Chunks of a Zarr array."""

JPEG2000_TILE_PIXELS = 1 << 24
"""Pixels of a tile of a JPEG 2000, all components: the codec keeps books on blocks of 16."""
JPEG2000_TILES = 4096
"""Tiles of a JPEG 2000; a band of Sentinel-2 has 121."""
JPEG2000_COMPONENTS = 8
"""Components of a JPEG 2000."""
