"""Linear layers with GELU between, over patches or folded blocks of them, with norms or without."""

from torch import Tensor

from vila_mc.kernels.ops import downsample_gather
from vila_mc.model.connectors.connector import Connector


class _Mlp(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        if self.block == 1:
            return self.mlp(self.patches(features_npe))
        return self.mlp(downsample_gather(features_npe, self.block, has_cls=self.class_tokens > 0))


CONNECTOR = _Mlp
