"""The product's readers of what is small: a run's folder, images, configuration, archives."""

import contextlib

from rasterio.errors import RasterioError

from terrafm.data.archive import BadCellError
from terrafm.errors import TerraFMError
from terrafm.storage.faults import one_line
from terrafm.train.run_folder import RunFolder


class All:
    """Calls every reader, whatever an earlier one refused, and ends with the first refusal."""

    def __init__(self):
        self._refused = None

    def __call__(self, reader, *arguments, **options):
        try:
            return reader(*arguments, **options)
        except (TerraFMError, BadCellError) as error:
            self._refused = self._refused or error
            return None

    def end(self):
        if self._refused is not None:
            raise self._refused


def read_run(uri, shown):
    """As checkpoint list, pictures, trackers, the driver and a sweep read a run's folder."""
    from terrafm.config import ValidationConfig
    from terrafm.pictures.training import _number, _read_metrics
    from terrafm.pictures.validation import _notes, _panels
    from terrafm.storage import join
    from terrafm.train.checkpoints import best, inventory
    from terrafm.train.checkpoints.store import list_checkpoints
    from terrafm.train.checkpoints.validations import ValidationLog, read_validations
    from terrafm.train.driver.checks import _recorded_fingerprint
    from terrafm.train.driver.events import read_events
    from terrafm.train.metrics.log import MetricsLog, read_metrics
    from terrafm.train.metrics.samples import append_quarantine
    from terrafm.train.metrics.trackers import TrackedRun
    from terrafm.train.run_folder import read_failure

    use = All()
    checkpoints = join(uri, "checkpoints")
    use(lambda: shown(inventory.render_list(inventory.list_run(uri))))
    held = use(best.held_reasons, checkpoints)
    if held is not None:
        {step for step, _ in list_checkpoints(checkpoints)} - held.keys()
    use(best.find_checkpoint, join(checkpoints, "best"))
    lines = use(read_validations, uri)
    chosen = use(best.read_best, checkpoints)
    if lines:
        _panels(dict.fromkeys(name for line in lines for name in line["metrics"]))
        _notes(lines, chosen)
        log = use(
            ValidationLog, uri, ValidationConfig(every_steps=2, metric="knn20/s1/accuracy"), 4
        )
        if log is not None:
            use(lambda: (log.best, log.due()))
    for line in use(_read_metrics, join(uri, "metrics.jsonl")) or ():
        int(line["step"]), [_number(value) for value in line.values()]
    for line in use(read_metrics, uri) or ():
        int(line["step"])
    use(lambda: MetricsLog(uri, 2, trackers=()).close())
    use(lambda: append_quarantine(uri, [{"tile": "a", "shard": "b", "cell": "c", "reason": "d"}]))
    read_events(uri)
    use(lambda: str(read_failure(uri)))
    use(TrackedRun(uri, 0).known_id, "mlflow")
    use(lambda: _read_dataset(RunFolder(uri).dataset))
    use(_recorded_fingerprint, uri)
    _read_trial(uri, use)
    use.end()


def _read_dataset(uri):
    from terrafm.storage import read_json

    read_json(uri, "it is made anew")


def _read_trial(uri, use):
    from tuning.trial import _began, read_scores

    use(_began, uri)
    for line in use(read_scores, uri) or ():
        line["step"] + 1


def begin_again(uri, depends):
    """The same request again."""
    from types import SimpleNamespace

    from terrafm.embed.request import begin

    begin(
        uri,
        SimpleNamespace(depends_on=lambda: depends, weights="w", source=SimpleNamespace(uri="d")),
    )


def read_geotiff(path):
    """As ingest, evaluation and embedding read one."""
    from terrafm.data.rasters.geotiff import read_whole
    from terrafm.data.rasters.opening import open_raster
    from terrafm.data.sources.raster import decode_geotiff, read_grid, read_patch

    use = All()
    with open(path, "rb") as file:
        content = file.read()

    def measured():
        raster = decode_geotiff(content, path)
        raster.claim()
        if len(raster.pixels) == 2:
            raster.measured("s1")

    use(measured)
    use(lambda: read_patch(path).claim())
    use(read_grid, path)
    use(read_whole, path)
    try:
        with open_raster(path):
            pass
    except (RasterioError, OSError, ValueError) as error:
        # As its callers do.
        use(_raise, TerraFMError(f"{path}: {one_line(error)}"))
    use.end()


def _raise(error):
    raise error


def read_configuration(folder):
    """As every verb reads its configuration, and ingest its legend."""
    from terrafm.config import load_config
    from terrafm.data.land.legend import read_legend

    use = All()
    for name in ("short.yaml", "whole.yaml"):
        config = use(load_config, str(folder / name), ["train.steps=3"])
        if config is not None:
            config.to_yaml()
    use(read_legend, str(folder / "legend.yaml"))
    use.end()


def read_archives(folder):
    """As ingest lists an archive and reads its cells, those of the quarantine included."""
    from terrafm.data.sources.bigearthnet import BigEarthNet
    from terrafm.data.sources.major_tom import MajorTom
    from terrafm.data.sources.ssl4eo_s12 import Ssl4eoS12

    use = All()
    for source in (
        Ssl4eoS12(str(folder / "archive"), ("s1",)),
        BigEarthNet(str(folder / "ben"), ("s2_l2a",)),
        MajorTom(str(folder / "major_tom"), ("s2_l2a",)),
    ):
        refs = use(source.cells) or ()
        for ref in refs[:3]:
            if any("://" in str(getattr(place, "uri", "")) for place in ref.location.values()):
                # The network is not asked here.
                continue
            if isinstance(source, Ssl4eoS12):
                use(source.read, ref)
            elif ref.modalities:
                # Their sample has no pixels.
                with contextlib.suppress(BadCellError):
                    source.read(ref)
    use.end()


def read_small(folder):
    """As leases, the local cluster, model cards and evaluation read theirs."""
    import os

    from terrafm.clusters import state
    from terrafm.eval.features.cache import read_features
    from terrafm.eval.features.job import _read_parts
    from terrafm.export.model_card import _model_index, _read_scores, _scores
    from terrafm.ray.parts import Part
    from terrafm.storage.lease_record import Holder

    use = All()
    holder = Holder.read((folder / "lease").read_bytes())
    if holder is not None:
        str(holder), holder.runs_here()
    os.environ[state.FOLDER_VARIABLE] = str(folder)
    cluster = use(state.read)
    if cluster is not None:
        cluster.keeper, cluster.family()
        state.runs_at("127.0.0.1:6379")
    scores = str(folder / "scores.json")
    found = use(_read_scores, scores) or {}
    _model_index("terrafm_tiny", found)
    use(_scores, scores, found)
    use(read_features, str(folder / "features.parquet"))
    _read_parts(str(folder), [Part(0, 0, 3)])
    use.end()
