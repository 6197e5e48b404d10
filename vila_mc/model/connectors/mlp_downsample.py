"""mlp_downsample: 2x2 block -> LayerNorm(4e) -> h, GELU in the exact erf form, h -> h.

It keeps the features for the backward pass and a third of its hidden layer.
"""

from torch import Tensor

from vila_mc.kernels.ops import mlp_downsample
from vila_mc.model.connectors.connector import Connector


class _MlpDownsample(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        norm, fc1, fc2, is_whole = self.norm, self.fc1, self.fc2, self.shared_by is None
        # Where ranks share it, each one's gradients of features and norm are its part of sums, as
        # its output is; the second bias is added once.
        visual = mlp_downsample(
            self.to_all(features_npe),
            self.to_all(norm.weight),
            self.to_all(norm.bias),
            fc1.weight,
            fc1.bias,
            fc2.weight,
            fc2.bias if is_whole else None,
            self.block,
            has_cls=self.class_tokens > 0,
            eps=norm.eps,
        )
        summed = self.summed(visual)
        return summed if is_whole else summed + fc2.bias


CONNECTOR = _MlpDownsample
