"""One of two gloo ranks, each with half of the batch: python two_ranks.py FOLDER RANK CENTERING."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from terrafm.losses import DINOLoss


def main(folder: Path, rank: int, centering: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    batch = {name: torch.from_numpy(v) for name, v in np.load(folder / "batch.npz").items()}
    student, teacher = (batch[n].chunk(2, dim=1)[rank] for n in ("student", "teacher"))
    high = batch["high"].chunk(2)[rank]
    criterion = DINOLoss(student.shape[-1], centering=centering)
    losses = [criterion(student, teacher, 0.04, high).item()]
    for _ in range(2):
        losses.append(criterion(student, teacher, 0.04, high, update_centers=False).item())
        criterion.update_centers()
    np.savez(
        folder / f"rank{rank}.npz",
        loss=losses,
        center=criterion.center.numpy(),
        center_high_frequency=criterion.center_high_frequency.numpy(),
        prototype_share=criterion.use.share.numpy(),
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
