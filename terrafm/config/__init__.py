"""One typed tree of settings: YAML in, dotted overrides, errors that name the key.

The tree is the single place of every default. A run saves the tree it used as `config.yaml`,
which is enough to run it again.
"""

from terrafm.config.files import recipe_names
from terrafm.config.sections import (
    DataConfig,
    DistilConfig,
    HeadConfig,
    IngestConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TuneConfig,
    ValidationConfig,
)
from terrafm.config.tree import (
    Config,
    build_config,
    load_config,
    resume_policies,
    settings,
)

__all__ = [
    "Config",
    "DataConfig",
    "DistilConfig",
    "HeadConfig",
    "IngestConfig",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "TuneConfig",
    "ValidationConfig",
    "build_config",
    "load_config",
    "recipe_names",
    "resume_policies",
    "settings",
]
