"""The objective: teacher-student cross-entropy with dual centering, and what may join it."""

from terrafm.losses.centering import DualCentering as DualCentering
from terrafm.losses.dino import DINOLoss as DINOLoss
from terrafm.losses.features import feature_loss as feature_loss
from terrafm.losses.koleo import koleo_loss as koleo_loss
from terrafm.losses.masked_patch import MaskedPatchLoss as MaskedPatchLoss

__all__ = ["DINOLoss", "DualCentering", "MaskedPatchLoss", "feature_loss", "koleo_loss"]
