"""mlp_downsample: 2x2 block -> LayerNorm(4e) -> h, GELU in the exact erf form, h -> h.

It keeps the features for the backward pass and a third of its hidden layer.
"""

from torch import Tensor

from vila_mc.kernels.ops import mlp_downsample
from vila_mc.model.connectors.connector import Connector


class _MlpDownsample(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        norm, fc1, fc2 = self.norm, self.fc1, self.fc2
        weights = norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias
        has_cls = self.class_tokens > 0
        return mlp_downsample(features_npe, *weights, self.block, has_cls=has_cls, eps=norm.eps)


CONNECTOR = _MlpDownsample
