"""KoLeo: keeps the embeddings of a batch apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-8


def koleo_loss(features: Tensor, sample_weight: Tensor) -> Tensor:
    """Kozachenko-Leonenko estimator of (negative) entropy, for every row.

    -log d_b, where d_b is the distance of the row's nearest neighbour in the batch on the unit
    sphere (Sablayrolles et al., arXiv 1806.03198, as DINOv2 has it, arXiv 2304.07193). The
    neighbour is chosen without gradient, the distance has one on both sides.

    Args:
        features: (B, D) of one crop.
        sample_weight: (B,) rows of weight 0 are nobody's neighbour and get 0.

    Returns:
        (B,) float32; 0 for all where fewer than two rows have a weight.
    """
    present = sample_weight > 0
    with torch.autocast(features.device.type, enabled=False):
        points = F.normalize(features.float(), dim=-1, eps=_EPSILON)
        with torch.no_grad():
            similarity = points @ points.T
            similarity.fill_diagonal_(-torch.inf)
            similarity.masked_fill_(~present, -torch.inf)
            best, neighbour = similarity.max(dim=-1)
        distance = F.pairwise_distance(points, points[neighbour], eps=_EPSILON)
        alone = ~present | (best == -torch.inf)
        return -(distance + _EPSILON).log().masked_fill(alone, 0.0)
