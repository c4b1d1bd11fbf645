"""What the benchmarks are made of: test tiles, feeds of batches, formats of other libraries."""
