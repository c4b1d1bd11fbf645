"""All targets by name."""

from dataset_targets import Cells, Entries, Index, Manifest
from file_targets import Configuration, Embeddings, GeoTiff, Metadata, SmallRecords, Weights
from run_targets import Pointers, State, Tensors

TARGETS = {
    "manifest": Manifest, "index": Index, "cells": Cells, "entries": Entries, "state": State,
    "tensors": Tensors, "pointers": Pointers, "embeddings": Embeddings, "weights": Weights,
    "geotiff": GeoTiff, "configuration": Configuration, "metadata": Metadata, "small": SmallRecords,
}  # fmt: skip
