"""pooling: patches pooled to side x side, then e -> h, GELU in the exact erf form, h -> h.

Source:
    LLaVA-OneVision, arXiv 2408.03326, section 3.2, which pools so what is seen of a video.
"""

from functools import cache

import torch
from torch import Tensor

from vila_mc.config.connectors import Pooling
from vila_mc.model.connectors.connector import Connector


class _Pooling(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        assert self.settings.pooling is not None
        assert self.settings.side is not None
        patches = self.patches(features_npe)
        grid = round(patches.shape[1] ** 0.5)
        weights_tg = pooling_weights(self.settings.pooling, grid, self.settings.side)
        weights_tg = weights_tg.to(patches.device)
        # One product for each axis: on a GPU the gradients of torch's own poolings add up in an
        # order that changes from run to run. In fp32, as those compute, whatever the format is.
        rows = patches.float().reshape(len(patches), grid, grid, -1)
        pooled = torch.einsum("ty,nyxe->ntxe", weights_tg, rows)
        pooled = torch.einsum("ux,ntxe->ntue", weights_tg, pooled)
        return self.mlp(pooled.flatten(1, 2).to(patches.dtype))


@cache
def pooling_weights(pooling: Pooling, grid: int, side: int) -> Tensor:
    """What each of ``side`` tokens takes of each of ``grid`` patches, along one axis.

    Args:
        pooling: average: all patches that a token's share of the grid touches, equally. bilinear:
            the two whose centres are nearest to the centre of that share, by how near they are.
        grid: patches.
        side: tokens, at most as many.

    Returns:
        [side, grid] fp32; rows add up to 1.
    """
    weights = torch.zeros(side, grid)
    for token in range(side):
        if pooling == "average":
            first, end = token * grid // side, -(-(token + 1) * grid // side)
            weights[token, first:end] = 1 / (end - first)
        else:
            centre = max((token + 0.5) * grid / side - 0.5, 0)
            first = int(centre)
            weights[token, first] += 1 - (centre - first)
            weights[token, min(first + 1, grid - 1)] += centre - first
    return weights


CONNECTOR = _Pooling
