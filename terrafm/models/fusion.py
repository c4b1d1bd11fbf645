"""Modality tokens to one token per position: the projection (case N) and fusion before it."""

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
        self, tokens: Tensor, slot: Tensor, shape: tuple[int, int], value: BiaslessLinear
    ) -> Tensor:
        """Mixing weights of the modality tokens of a ragged batch.

        Args:
            tokens: (n, D') of all modalities.
            slot: (n,) int64, modality * P + position of each; none occurs twice.
            shape: number of modalities M, and of positions P; each is expected to have at least
                one modality.
            value: the value projection W_1.

        Returns:
            (n,), non-negative; they sum to 1 over the modalities of a position and are exactly 1
            where it has one modality.
        """
        queries = self.key(self.queries * self.scale, transposed=True)
        probes = torch.cat([queries, value(self.readout, transposed=True)])
        precision = torch.promote_types(tokens.dtype, torch.float32)
        probed = F.linear(tokens, probes).to(precision)
        scores, readout = torch.split(probed, [len(queries), 1], dim=1)
        modalities, positions = shape
        # A modality that is missing has a score so low that its attention is 0, and a readout of 0.
        lowest = scores.new_full((modalities * positions, len(queries)), torch.finfo(precision).min)
        scores = lowest.index_copy_(0, slot, scores).view(*shape, -1)
        readout = readout.new_zeros((modalities * positions, 1)).index_copy_(0, slot, readout)
        attention = scores.softmax(0)
        weights = (attention * readout.view(*shape, 1)).sum(0).softmax(-1)
        mixing = (attention * weights).sum(-1)
        present = mixing.new_zeros(modalities * positions).index_fill_(0, slot, 1.0).view(shape)
        mixing = torch.where(present.sum(0) == 1, present, mixing)
        return mixing.flatten().index_select(0, slot)
