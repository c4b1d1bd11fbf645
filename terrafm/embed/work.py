"""What a worker does: a part of the rows, from pixels to a Parquet file that waits for the others.

The parts that a plan has are small, so that little is lost with a worker; `packing` makes of them
the files that a reader wants.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.embed.dense import masked_patches, owned_block, write_blocks, write_tile
from terrafm.embed.dense_files import DenseStyle
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.quantisation import Range
from terrafm.embed.request import Request
from terrafm.embed.rows import part_bytes
from terrafm.embed.schema import PARTS, PartFile, part_name
from terrafm.embed.stac import RasterItems
from terrafm.errors import UsageError
from terrafm.eval.features.extraction import batches
from terrafm.models.encoder import Encoder
from terrafm.models.weights import load_encoder, state_fingerprint
from terrafm.ray.parts import Part, Work
from terrafm.storage import join, parse_json, read_bytes, write_bytes
from terrafm.storage.records import Count, validated

ENTRIES = "entries"
Vectors = NDArray[np.float32]
Blocks = dict[int, Vectors]


@dataclass(frozen=True)
class Entry:
    """What is kept of a finished part: the proof that it is whole.

    Attributes:
        file: its Parquet file; None where no image had a pixel.
        skipped: images without a pixel of the modalities.
        range: of its rows, where they will be quantised.
    """

    file: PartFile | None
    skipped: Count
    range: Range | None = None

    def to_json(self) -> str:
        """For a file beside the parts."""
        file = None if self.file is None else self.file.model_dump(mode="json")
        found = {"file": file, "skipped": self.skipped}
        if self.range is not None:
            found["range"] = asdict(self.range)
        return json.dumps(found)

    @classmethod
    def read(cls, output: str, name: str) -> "Entry | None":
        """The entry of a part that is finished; None where it is not."""
        try:
            return validated(parse_json(read_bytes(entry_uri(output, name))), cls)
        except (FileNotFoundError, ValueError):
            return None


def entry_uri(output: str, name: str) -> str:
    """Where a part's entry lies."""
    return join(output, ENTRIES, f"{name}.json")


@dataclass(frozen=True)
class OpenPartWork:
    """Opens weights and data in a worker.

    Attributes:
        request: what is made.
        output: URI of the folder.
        batch: images at once.
    """

    request: Request
    output: str
    batch: int

    @property
    def style(self) -> DenseStyle:
        """How patch embeddings are written."""
        return dense_style(self.request, self.output)

    def __call__(self, device: str) -> Work:
        """Loads the encoder.

        Raises:
            UsageError: the weights are no longer those that the job began with.
        """
        encoder = load_encoder(self.request.weights)
        if state_fingerprint(encoder) != self.request.model_fingerprint:
            raise UsageError(f"weights {self.request.weights} changed while they were used")
        # Tensor cores would round float32 to ten bits in the patch embedding.
        torch.backends.cudnn.allow_tf32 = False
        return PartWork(self, encoder.to(device), torch.device(device))


class PartWork:
    """Embeds parts."""

    def __init__(self, job: OpenPartWork, encoder: Encoder, device: torch.device) -> None:
        self.job, self.encoder, self.device = job, encoder, device

    def __call__(self, part: Part) -> Entry:
        """Writes the part's file, then its entry: a function of the part, whoever does it."""
        request, output = self.job.request, self.job.output
        rows = request.source.order[part.first : part.stop].tolist()
        embeddings, used, blocks = self._embed(rows)
        if request.dense and isinstance(request.source, GeoTiffWindows):
            write_blocks(output, part, blocks)
        seen = [at for at, names in enumerate(used) if names]
        file = None
        if seen:
            content = part_bytes(
                [request.source.place(rows[at]) for at in seen],
                [used[at] for at in seen],
                embeddings[seen],
                (request.model_fingerprint, request.source.fingerprint),
                request.modalities,
            )
            file = write_part(output, PARTS, part_name(part.number), content, len(seen))
        found = Range.of(embeddings[seen]) if request.quantise and seen else None
        entry = Entry(file, len(rows) - len(seen), found)
        write_bytes(entry_uri(output, part_name(part.number)), entry.to_json().encode())
        return entry

    @torch.inference_mode()
    def _embed(self, rows: Sequence[int]) -> tuple[Vectors, list[tuple[str, ...]], Blocks]:
        """Readouts (len(rows), D), the modalities of each (none: no pixel), and blocks by row."""
        request = self.job.request
        embeddings = np.zeros((len(rows), request.dim), np.float32)
        used: list[tuple[str, ...]] = [()] * len(rows)
        blocks: Blocks = {}
        for positions, pixels in batches(
            request.source,
            request.modalities,
            request.normalisation,
            request.size,
            self.job.batch,
            rows,
        ):
            # After normalisation 0 is a pixel without data.
            seen = torch.zeros(len(positions), dtype=torch.bool)
            for x in pixels.values():
                seen |= (x != 0).flatten(1).any(1)
            if not seen.any():
                continue
            moved = {name: x[seen].to(self.device) for name, x in pixels.items()}
            at = [position for position, has in zip(positions, seen.tolist(), strict=True) if has]
            if request.dense:
                cls_token, patches = self.encoder.forward_tokens(moved)
                vectors = request.readout.of_tokens(cls_token, patches)
                maps = masked_patches(patches, moved)
                for position, one in zip(at, maps, strict=True):
                    self._keep_patches(rows[position], one, blocks)
            else:
                vectors = request.readout.of(self.encoder, moved)
            embeddings[at] = vectors.cpu().numpy()
            for position in at:
                used[position] = tuple(moved)
        return embeddings, used, blocks

    def _keep_patches(self, row: int, patches: Vectors, blocks: Blocks) -> None:
        """A tile's patch map is a file; a window's waits for the mosaic."""
        request = self.job.request
        if isinstance(request.source, GeoTiffWindows):
            blocks[row] = owned_block(request.source, row, patches)
        else:
            place = request.source.place(row)
            write_tile(self.job.output, place, patches, self.job.style)


def dense_style(request: Request, output: str) -> DenseStyle:
    """How the patch embeddings of a request are written to a folder."""
    return DenseStyle(
        request.dense_format,
        request.quantise is not None,
        request.weights,
        request.source.uri,
        request.tags(),
        RasterItems.of(output, request),
    )


def write_part(output: str, folder: str, name: str, content: bytes, rows: int) -> PartFile:
    """Writes a file of rows, whole or invisible, over whatever an unfinished job left there."""
    file = f"{name}.parquet"
    write_bytes(join(output, folder, file), content)
    digest = hashlib.sha256(content).hexdigest()
    return PartFile(name=file, rows=rows, bytes=len(content), sha256=digest)
