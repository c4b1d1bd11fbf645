"""One of two gloo ranks, each with half of the batch: python two_ranks.py FOLDER RANK CENTERING."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from terrafm.losses import DINOLoss


def learn_patches(criterion: DINOLoss, teacher: torch.Tensor) -> torch.Tensor:
    """Loss of each masked patch of a step, whose student says minus what the teacher says."""
    masked, center, weight = criterion.masked_patch, None, torch.ones(len(teacher))
    if criterion.centering == "sinkhorn":
        center = masked.batch_center([teacher[None]], 0.04, [None], [weight])
    losses = masked(-teacher, teacher, 0.04, center)
    masked.accumulate(teacher[None], None, weight)
    masked.update_centers()
    return losses


def main(folder: Path, rank: int, centering: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    batch = {name: torch.from_numpy(v) for name, v in np.load(folder / "batch.npz").items()}
    student, teacher = (batch[n].chunk(2, dim=1)[rank] for n in ("student", "teacher"))
    high = batch["high"].chunk(2)[rank]
    criterion = DINOLoss(student.shape[-1], centering=centering, masked_patch=True)
    losses = [criterion(student, teacher, 0.04, high).item()]
    for _ in range(2):
        losses.append(criterion(student, teacher, 0.04, high, update_centers=False).item())
        criterion.update_centers()
    patches = batch["patches"][(slice(0), slice(None))[rank]]
    patch_losses = [learn_patches(criterion, patches).tolist() for _ in range(2)]
    np.savez(
        folder / f"rank{rank}.npz",
        loss=losses,
        center=criterion.center.numpy(),
        center_high_frequency=criterion.center_high_frequency.numpy(),
        prototype_share=criterion.use.share.numpy(),
        patch_losses=patch_losses,
        patch_center=criterion.masked_patch.center.numpy(),
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
