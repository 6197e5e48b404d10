"""mlp2x_gelu: e -> h, GELU in the exact erf form, h -> h."""

from torch import Tensor
from torch.nn import functional as F

from vila_mc.model.connectors.connector import Connector


class _Mlp2xGelu(Connector):
    def forward(self, features_npe: Tensor) -> Tensor:
        visual: Tensor = self.fc2(F.gelu(self.fc1(self.patches(features_npe))))
        return visual


CONNECTOR = _Mlp2xGelu
