"""A run that a Ray cluster cannot take is refused before anything is written."""

import pytest

from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.eval.validation import CheckpointValidation
from terrafm.train.driver.pretrain import pretrain

# The cluster of these tests has three CPUs and no GPU.
REFUSED = {
    "nobody reads data": (
        ["train.workers=3"],
        None,
        r"has 3 CPUs, and train.workers=3 .* leave none to read",
    ),
    "nobody reads data beside a validation": (
        ["train.workers=2", "validation.every_steps=2", "train.checkpoint_every=2"],
        CheckpointValidation,
        r"has 3 CPUs.* and validation.cpus=1 leave none to read",
    ),
    "no GPU": (
        ["train.gpu=yes", "train.workers=1"],
        None,
        "no machine of the Ray cluster has a GPU",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_one_line_and_leaves_nothing(kind, local_ray, small_dataset, tmp_path):
    settings, validate, said = REFUSED[kind]
    config = load_config("demo", ["train.global_batch=12", "train.steps=2", *settings])
    with pytest.raises(UsageError, match=said):
        pretrain(config, str(small_dataset), str(tmp_path / "run"), validate=validate)
    assert not (tmp_path / "run").exists()
