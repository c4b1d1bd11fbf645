"""The objective: teacher-student cross-entropy with dual centering."""

from terrafm.losses.centering import DualCentering as DualCentering
from terrafm.losses.dino import DINOLoss as DINOLoss

__all__ = ["DINOLoss", "DualCentering"]
