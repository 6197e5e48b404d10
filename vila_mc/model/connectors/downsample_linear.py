"""downsample_linear: 2x2 block -> 4e -> h. It keeps the features for the backward pass."""

from torch import Tensor

from vila_mc.kernels.ops import downsample_linear
from vila_mc.model.connectors.connector import Connector


class _DownsampleLinear(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        weights, has_cls = (self.fc1.weight, self.fc1.bias), self.class_tokens > 0
        features = self.to_all(features_npe)
        return self.gathered(downsample_linear(features, *weights, self.block, has_cls=has_cls))


CONNECTOR = _DownsampleLinear
