"""The section about what a run's encoder has learned."""

from __future__ import annotations

from terrafm.errors import TerraFMError, UsageError
from terrafm.pictures.learned import learned_pictures
from terrafm.report.blocks import Block, Picture, Section, Text
from terrafm.report.run_record import RunRecord
from terrafm.storage import join
from terrafm.train.metrics.trackers import TrackedPicture
from terrafm.train.run_folder import RunFolder, step_name


def learned_section(run: RunRecord, data: str | None, several: bool) -> Section:
    """The section with what a run's encoder sees.

    Args:
        run: with a checkpoint.
        data: URI of its dataset, where it no longer lies where the run says.
        several: the page has other runs too.
    """
    title = f"{run.name}: what it learned" if several else "What it learned"
    try:
        step, uri = newest_choice(run)
        where = data or run.dataset.get("uri")
        if not where:
            raise UsageError("the run does not say which dataset it trains on: give --data")
        fingerprint = None if data else run.dataset.get("fingerprint")
        found = learned_pictures(uri, str(where), fingerprint, run.config)
        blocks: list[Block] = [
            Text(
                "Each row is a sensor. Left: the tile. Middle: the three main directions of the "
                "patch tokens as colours, the same for all tiles of a sensor; patches of one "
                "colour are alike to the encoder. Right: the attention of the CLS token in the "
                "last block, mean over the heads; it looks where the picture is bright.",
                quiet=True,
            ),
            *map(_block, found.tiles),
            *map(_block, found.neighbours),
        ]
        if found.crops is not None:
            text = Text("What teacher and student are shown of a tile in one sample:")
            blocks += [text, _block(found.crops)]
    except (OSError, TerraFMError) as error:
        # A page without pictures is better than none.
        return Section(title, [Text(f"No pictures: {error}")])
    return Section(title, blocks, f"The teacher after {step:,} steps, on tiles of {where}.")


def _block(picture: TrackedPicture) -> Picture:
    return Picture(picture.title, picture.content, picture.alt, picture.note)


def newest_choice(run: RunRecord) -> tuple[int, str]:
    """Step and URI of the best checkpoint, or of the newest where none is the best.

    Raises:
        UsageError: there is none.
    """
    names = set(run.checkpoints)
    if run.best is not None and step_name(run.best["step"]) in names:
        name = step_name(run.best["step"])
    elif names:
        name = max(names)
    else:
        raise UsageError(f"{run.uri} has no checkpoint yet")
    return int(name.rpartition("_")[2]), join(RunFolder(run.uri).checkpoints, name)
