"""What flows through the engine and crosses package borders, in the order it does so.

raw files -> RawSample -> EncodedSample -> .bin/.idx -> Microbatch -> StepResult

What does not flow stands with what owns it: settings in ``config``, places in ``topology``, and
objects that a package lends, such as ``Tokenizer`` or ``VilaModel``.

Shape letters: b rows of a microbatch, s positions, n images, q visual tokens per image, y and x
pixels. Where images are cut into tiles, n counts tiles: each is an image to the vision tower. The
full legend is in docs/architecture.md.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

IGNORE_LABEL = -100
"""Label of a position that is not trained on, as in torch and transformers."""


@dataclass(frozen=True, slots=True)
class RawText:
    """A run of text of a raw sample. Directly behind another it goes on where that one ends."""

    text: str
    is_trained: bool
    """Whether the model learns to produce it."""
    ends_turn: bool = False
    """Whether an end-of-sequence token follows, trained like the text."""
    is_rendered: bool = False
    """Whether the tokenizer's own chat template wrote it: special tokens in it are read as such, it
    is tokenised together with its neighbours, and BOS is there if it is meant to be."""


@dataclass(frozen=True, slots=True)
class RawImage:
    """An image of a raw sample: a file, or encoded bytes that were read already."""

    source: Path | bytes
    name: str
    """What to call it in messages: the path, or the member of an archive."""
    sides: tuple[int, int] | None = None
    """Width and height in pixels, where it has been decoded already: training will be able to."""


@dataclass(frozen=True, slots=True)
class RawToken:
    """A token that no text of a record can spell: a template's own word."""

    name: str | None
    """As the tokenizer spells it; None for BOS, where the tokenizer has one."""
    is_trained: bool


RawPiece = RawText | RawToken | RawImage


@dataclass(frozen=True, slots=True)
class RawSample:
    """One record of a raw corpus in reading order. Templates are already applied."""

    pieces: tuple[RawPiece, ...]
    place: int | str
    """Line, element or member of its file, for messages."""
    template_words: tuple[str, ...] = ()
    """What of its texts a chat template wrote, special tokens left out."""


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Token ids of one run of text."""

    ids: "np.ndarray"
    """[tokens] integers; of a stored sample a view of the mapped file."""
    is_trained: bool


@dataclass(frozen=True, slots=True)
class ImagePiece:
    """An image file as it was. Up to 3 zero bytes follow it where it was stored."""

    data: "bytes | np.ndarray"
    """[bytes] uint8; of a stored sample a view of the mapped file."""
    name: str
    """What to call it in messages."""
    sides: tuple[int, int] | None = None
    """Width and height in pixels; None where nobody looked, or needs to."""


Piece = TextPiece | ImagePiece


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as it is stored: pieces in reading order, starting with the BOS token."""

    pieces: tuple[Piece, ...]
    noticed: tuple[str, ...] = ()
    """What may not be as it was meant, in the same words for every sample with it."""
    template_tokens: int = 0
    """Tokens of what a chat template wrote, special tokens left out."""


@dataclass(frozen=True, slots=True)
class Microbatch:
    """What one forward pass reads; identical on every rank of a tensor-parallel group.

    A row holds one sample or, packed, several after each other; each attends to itself alone, and
    its positions count from 0. Rows are padded at the end to the sequence length. Labels are
    already shifted: ``labels[i, j]`` is what position ``j`` should predict, never the first token
    of another sample.
    """

    tokens: "torch.Tensor"
    """[b, s] int64. Positions of visual tokens and padding hold 0."""
    labels: "torch.Tensor"
    """[b, s] int64, ``IGNORE_LABEL`` where nothing is trained."""
    images: "torch.Tensor"
    """[n, 3, y, x] uint8; n is 0 where there is no image or the stage does not see images."""
    image_starts: "torch.Tensor"
    """[n, 2] int64: row and first position of each image's q visual tokens, in image order; of each
    tile's, where images are cut."""
    num_samples: int
    """Samples of the global batch in this microbatch."""
    sample_lengths: tuple[tuple[int, ...], ...] = ()
    """Positions of each sample of each row, in order; what is left of a row is padding. Empty if
    unknown: then a row is one sample."""
    entries: tuple[tuple[int, ...], ...] = ()
    """Entry of data.blend that each sample of each row comes from. Empty if unknown."""
    substitutes: tuple[str, ...] = ()
    """Why images stand here as one colour: one message for each that could not be decoded."""

    def filled_positions(self) -> int:
        """Positions that hold a sample; all of them if the lengths are unknown."""
        if not self.sample_lengths:
            return self.tokens.numel()
        return sum(map(sum, self.sample_lengths))

    def entry_of_positions(self) -> "torch.Tensor":
        """[b, s] int64 entry of data.blend that each position comes from; -1 where none does."""
        import torch

        found = torch.full(self.tokens.shape, -1)
        for row, (entries, lengths) in enumerate(
            zip(self.entries, self.sample_lengths, strict=True) if self.entries else ()
        ):
            counts = torch.tensor(lengths, dtype=torch.int64)
            owners = torch.tensor(entries, dtype=torch.int64).repeat_interleave(counts)
            found[row, : len(owners)] = owners
        return found

    def is_packed(self) -> bool:
        """Whether a row holds more than one sample."""
        return any(len(row) > 1 for row in self.sample_lengths)

    def to(self, device: "torch.device") -> "Microbatch":
        """The same microbatch with its tensors on ``device``."""
        return Microbatch(
            tokens=sent(self.tokens, device),
            labels=sent(self.labels, device),
            images=sent(self.images, device),
            image_starts=sent(self.image_starts, device),
            num_samples=self.num_samples,
            sample_lengths=self.sample_lengths,
            entries=self.entries,
            substitutes=self.substitutes,
        )


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """A tensor on ``device``.

    On its way to a GPU it passes through page-locked memory: the copy of another would wait until
    the GPU has done all that was asked of it before.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step reports; the same on every rank but for ``bad_microbatches``."""

    loss: float
    """Mean over all trained positions of the global batch."""
    grad_norm: float
    """Global gradient norm before clipping."""
    learning_rate: float
    trained_tokens: int
    """Positions with a label in the global batch."""
    num_images: int
    """Images in the global batch; tiles, where images are cut."""
    num_samples: int
    """Samples in the global batch."""
    positions: int
    """Positions of the global batch that hold a sample."""
    pairs: int
    """Of these, how many attend to how many, added up over samples: what attention computes."""
    filled: float
    """Share of the global batch's positions that hold a sample; the others are padding."""
    substitutes: int
    """Images of the global batch that could not be decoded and were replaced."""
    should_stop: bool
    """Some rank was asked to stop."""
    skipped: bool = False
    """Loss or gradient was not finite, so no weight was changed."""
    overflowed: bool = False
    """It was skipped because the scaled gradients were too great for fp16; the next are scaled by
    less."""
    bad_microbatches: tuple[int, ...] = ()
    """Those of this rank's own whose loss was not finite; only the stage with the head knows."""
    loss_by_entry: tuple[float | None, ...] = ()
    """Mean over the trained positions of each entry of data.blend; None where there were none, or
    it was not finite."""

    def in_words(self) -> str:
        """Loss and gradient norm, for people."""
        return f"loss {self.loss:g}, gradient norm {self.grad_norm:g}"
