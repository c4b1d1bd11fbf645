"""Modality tokens to one token per position: the projection (case N) and fusion before it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class BiaslessLinear(nn.Linear):
    """A linear map without bias that can also be applied transposed.

    Both directions go through `forward`, because ZeRO stage 3 gathers a module's partitioned
    weight only around its forward.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, bias=False)

    def forward(self, x: Tensor, transposed: bool = False) -> Tensor:
        """Returns x W^T, or x W where transposed. Shape (..., dim) in and out."""
        return F.linear(x, self.weight.t() if transposed else self.weight)


class Projection(nn.Module):
    """Token of width D' to token of width D: proj1 -> LayerNorm -> proj2 -> proj3.

    Args:
        token_dim: D', width of a modality token.
        embed_dim: D, width of the transformer.
    """

    def __init__(self, token_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.proj1 = BiaslessLinear(token_dim)
        # torch's default eps of 1e-5, unlike the transformer's 1e-6, as the released weights
        # were trained.
        self.norm_input = nn.LayerNorm(token_dim)
        self.proj2 = nn.Linear(token_dim, token_dim)
        self.proj3 = nn.Linear(token_dim, embed_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps (..., D') to (..., D)."""
        projected: Tensor = self.proj3(self.proj2(self.norm_input(self.proj1(tokens))))
        return projected


class Fusion(nn.Module):
    """Cross-attention of learned queries over the modality tokens of one position.

    At a position n with tokens t_m, keys k_m = W_k t_m and values v_m = W_1 t_m (W_1 is the
    projection's proj1), query j gives z'_n[j] = sum_m a_jm v_m with
    a_j = softmax_m(q_j . k_m / sqrt(D')). The fused value is sum_j w_j z'_n[j] with
    w = softmax_j(z'_n[j] . p_r).

    Every step but the two softmaxes is linear, so the fused value is W_1 applied to
    sum_m c_m t_m with c_m = sum_j w_j a_jm. Hence this module returns only the mixing weights c,
    and W_1 is applied to one token per position instead of M; keys and values are never formed,
    since q_j . W_k t_m = (W_k^T q_j) . t_m and p_r . W_1 t_m = (W_1^T p_r) . t_m.

    Args:
        token_dim: D', width of a modality token.
        num_queries: N_q, shared by all positions.
    """

    def __init__(self, token_dim: int, num_queries: int) -> None:
        super().__init__()
        self.scale = token_dim**-0.5
        self.queries = nn.Parameter(torch.empty(num_queries, token_dim))
        self.key = BiaslessLinear(token_dim)
        self.readout = nn.Parameter(torch.empty(1, token_dim))

    def forward(
        self, tokens: Sequence[Tensor], image: Sequence[Tensor], size: int, value: BiaslessLinear
    ) -> list[Tensor]:
        """Mixing weights of the modality tokens of a ragged batch.

        Args:
            tokens: per modality (n_m, N, D').
            image: per modality (n_m,) int64, the image that each row belongs to; an image
                occurs at most once per modality.
            size: number of images; each is expected to have at least one modality.
            value: the value projection W_1.

        Returns:
            Per modality (n_m, N), non-negative; they sum to 1 over the modalities of an image
            and are exactly 1 where an image has one modality.
        """
        queries = self.key(self.queries * self.scale, transposed=True)
        probes = torch.cat([queries, value(self.readout, transposed=True)])
        positions, count = tokens[0].shape[1], len(tokens)
        precision = torch.promote_types(tokens[0].dtype, torch.float32)
        probed = [F.linear(t, probes).to(precision) for t in tokens]
        lowest = torch.finfo(precision).min
        dense = probed[0].new_full((count, size, positions, len(probes)), lowest)
        present = probed[0].new_zeros((count, size), dtype=torch.bool)
        for m, (rows, index) in enumerate(zip(probed, image, strict=True)):
            dense[m, index] = rows
            present[m, index] = True
        scores, readout = dense[..., :-1], dense[..., -1:]
        attention = scores.softmax(0)
        # A missing modality has attention 0, and must not bring 0 * lowest into the sum.
        readout = readout.masked_fill(~present[:, :, None, None], 0.0)
        weights = (attention * readout).sum(0).softmax(-1)
        mixing = (attention * weights).sum(-1)
        alone = (present.sum(0) == 1).view(1, size, 1)
        mixing = torch.where(alone, present.unsqueeze(-1).to(mixing.dtype), mixing)
        return [mixing[m, index] for m, index in enumerate(image)]
