"""A model that reads prompts once, and then token after token."""

from collections.abc import Sequence

import torch
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from torch import Tensor

from vila_mc.config.model import ModelConfig
from vila_mc.data.batches.collate import collate, positions_of
from vila_mc.data.images import DEFAULT_MAX_PIXELS
from vila_mc.data.ingest.encode import encode_sample
from vila_mc.data.sources.records import RejectionError
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import ConfigError, DataError
from vila_mc.flow import IGNORE_LABEL, Microbatch, Piece, RawPiece, RawSample
from vila_mc.model.kv_cache import KeyValueCache
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.agreement import chosen_by_first


def encode_prompt(pieces: Sequence[RawPiece], tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Token ids and images of a prompt. Raises DataError: it cannot be used."""
    sample = RawSample(pieces=tuple(pieces), place="prompt")
    try:
        return encode_sample(sample, tokenizer, DEFAULT_MAX_PIXELS).pieces
    except RejectionError as error:
        raise DataError(f"a prompt cannot be used: {error}") from None


def encoded_positions(pieces: Sequence[Piece], shape: ModelConfig) -> int:
    """Positions that a prompt takes in the sequence."""
    return sum(positions_of(piece, shape) for piece in pieces)


class Decoder:
    """Prompts of any lengths that a model has read, each a row to go on with.

    Tensor-parallel ranks do the same together: each keeps the keys and values of its own heads, and
    all get the same logits.

    Args:
        model: a whole model in evaluation mode, or this rank's part of one.
        prompts: what ``encode_prompt`` gives for each.
        room: most positions that will be read behind a prompt.

    Raises:
        ConfigError: prompts and room do not fit the model's positions.
        DataError: an image cannot be decoded.
    """

    def __init__(self, model: VilaModel, prompts: Sequence[Sequence[Piece]], room: int) -> None:
        shape = model.run_config.model
        lengths = [encoded_positions(pieces, shape) for pieces in prompts]
        longest, limit = max(lengths), shape.language.max_positions
        if longest + room > limit:
            raise ConfigError(
                f"a prompt of {longest} positions and {room} new tokens exceed "
                f"model.language.max_positions {limit}. Shorten one of them."
            )
        self.model = model
        self.device = next(model.parameters()).device
        self.cache = KeyValueCache.of(len(prompts), longest + room, self.device)
        batch = collate([[pieces] for pieces in prompts], shape, longest, needs_images=True)
        self.cache.wanted = torch.tensor([length - 1 for length in lengths], device=self.device)
        self.logits_bv = self._read(batch.to(self.device), lengths)[:, 0]
        """Of the token that follows each row. [b, v]"""

    def agree(self, tokens: Sequence[int]) -> list[int]:
        """What the first of the tensor-parallel ranks has chosen, on all of them.

        They choose from equal logits, but a GPU may add the same numbers in another order each
        time.
        """
        return chosen_by_first(tokens, self.model.groups.tp, self.device)

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Read one more token in each row. Returns the logits of those that follow: [b, v]."""
        self.cache.wanted = None
        batch = self._text([[token] for token in tokens])
        self.logits_bv = self._read(batch, [1] * len(tokens))[:, 0]
        return self.logits_bv

    def read_ahead(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Logits behind each token of a run of text per row, padded to the longest: [b, s, v].

        The runs are read at once; none must be empty.
        """
        self.cache.wanted = None
        longest = max(map(len, rows))
        padded = [[*row, *[0] * (longest - len(row))] for row in rows]
        return self._read(self._text(padded), [len(row) for row in rows])

    def take(self, rows: Sequence[int]) -> None:
        """Go on with these rows, in this order; one may be taken several times."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.device)
        self.cache.take(chosen)
        self.logits_bv = self.logits_bv[chosen]

    def _read(self, batch: Microbatch, lengths: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            shard: Tensor = self.model(batch, with_loss=False, cache=self.cache)  # [b, s, v/tp]
            self.cache.advance(lengths)
            logits_bsv: Tensor = gather_from_tensor_model_parallel_region(
                shard, group=self.model.groups.tp
            )
        return logits_bsv.float()

    def _text(self, tokens: Sequence[Sequence[int]]) -> Microbatch:
        ids = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        size = self.model.run_config.model.vision.image_size
        return Microbatch(
            tokens=ids,
            labels=torch.full_like(ids, IGNORE_LABEL),
            images=torch.empty((0, 3, size, size), dtype=torch.uint8, device=self.device),
            image_starts=torch.empty((0, 2), dtype=torch.int64, device=self.device),
            num_samples=len(ids),
        )
