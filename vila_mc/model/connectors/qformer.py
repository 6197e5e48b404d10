"""qformer: learned queries that attend to each other and to the patches, then width -> h.

Each layer is that of BERT: what attention, cross-attention (every k-th layer) and a feed-forward
layer four times as wide, with exact GELU, add is normalised afterwards.

Source:
    BLIP-2, arXiv 2301.12597, section 3.1.
"""

from torch import Tensor

from vila_mc.model.connectors.connector import Connector


class _QFormer(Connector):
    def tokens_by_rows(self, features_npe: Tensor) -> Tensor:
        # Copied once here, and not by every product that reads them.
        patches = self.patches(features_npe).contiguous()
        queries = self.apply_norm("norm", self.queries.weight)
        tokens = queries.expand(len(patches), -1, -1).contiguous()
        every = self.settings.cross_attention_every or 1
        for number in range(self.settings.layers or 0):
            at = f"blocks.{number}"
            tokens = self._added(f"{at}.attention", tokens, tokens)
            if number % every == 0:
                tokens = self._added(f"{at}.cross", tokens, patches)
            tokens = self.apply_norm(f"{at}.norm", tokens + self.feed_forward(at, tokens))
        return self.apply_linear("fc", tokens)

    def _added(self, at: str, tokens: Tensor, seen: Tensor) -> Tensor:
        return self.apply_norm(f"{at}.norm", tokens + self.attend(at, tokens, seen))


CONNECTOR = _QFormer
