"""linear: e -> h."""

from torch import Tensor

from vila_mc.model.connectors.connector import Connector


class _Linear(Connector):
    def forward(self, features_npe: Tensor) -> Tensor:
        visual: Tensor = self.fc1(self.patches(features_npe))
        return visual


CONNECTOR = _Linear
