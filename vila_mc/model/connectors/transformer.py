"""transformer: layers as the tower's over the patches, then e -> h.

Each layer adds attention and a feed-forward layer four times as wide, with exact GELU, of what it
has normalised.

Source:
    VILA, arXiv 2312.07533, Table 1.
"""

from torch import Tensor

from vila_mc.model.connectors.connector import Connector


class _Transformer(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        tokens = self.patches(features_npe)
        for number in range(self.settings.layers or 0):
            at = f"blocks.{number}"
            normed = self.apply_norm(f"{at}.norm1", tokens)
            tokens = tokens + self.attend(f"{at}.attention", normed, normed)
            tokens = tokens + self.feed_forward(at, self.apply_norm(f"{at}.norm2", tokens))
        return self.apply_linear("fc", tokens)


CONNECTOR = _Transformer
