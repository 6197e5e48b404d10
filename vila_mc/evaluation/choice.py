"""How the next token of an answer is chosen."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vila_mc.errors import ConfigError

_LEAST_TEMPERATURE = 1e-100
"""Below it logits would overflow; the likeliest token is certain long before."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Greedy, drawn at random, or by beam search.

    Raises:
        ConfigError: a value is out of range, or two exclude each other.
    """

    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the likeliest."""
    top_p: float = 1.0
    """Draw from the fewest likeliest tokens whose probabilities reach this sum."""
    beams: int = 1
    """Beginnings of an answer that are kept at a time."""
    length_penalty: float = 1.0
    """Ended answers of beams compete by their log-likelihood over their length to this power: 0
    does not mind length, 1 takes the mean of a token."""
    seed: int = 0
    """What is drawn for a prompt follows from it and from the prompt, whatever else is asked."""

    def __post_init__(self) -> None:
        problems = {
            f"temperature is {self.temperature}, not from 0 to 100": not 0
            <= self.temperature
            <= 100,
            f"top_p is {self.top_p}, not above 0 and at most 1": not 0 < self.top_p <= 1,
            f"beams is {self.beams}, not from 1 to 64": not 1 <= self.beams <= 64,
            f"length_penalty is {self.length_penalty}, not from -10 to 10": not -10
            <= self.length_penalty
            <= 10,
            f"length_penalty is {self.length_penalty}, but there are no beams that it would weigh. "
            "Give several": self.length_penalty != 1 and self.beams == 1,
            f"beams is {self.beams} and temperature {self.temperature}: beam search draws nothing. "
            "Leave one of them out": self.beams > 1 and self.temperature > 0,
            f"top_p is {self.top_p} and temperature 0, which takes the likeliest token. Give a "
            "temperature": self.top_p < 1 and not self.temperature,
        }
        for problem, is_so in problems.items():
            if is_so:
                raise ConfigError(f"{problem}.")

    def generator(self, prompt: Sequence[int]) -> torch.Generator:
        """Where what is drawn for a prompt comes from. prompt: its token ids."""
        mixed = self.seed * 0x1_0000_0001 + zlib.crc32(repr(list(prompt)).encode())
        return torch.Generator().manual_seed(mixed % 2**63)

    def next_tokens(self, logits_bv: Tensor, generators: Sequence[torch.Generator]) -> list[int]:
        """A token for each row."""
        if not self.temperature:
            return logits_bv.argmax(-1).tolist()
        probabilities_bv = self.probabilities(logits_bv).cpu()
        return [
            int(torch.multinomial(row, 1, generator=generator))
            for row, generator in zip(probabilities_bv, generators, strict=True)
        ]

    def probabilities(self, logits_bv: Tensor) -> Tensor:
        """What tokens are drawn with, above temperature 0: [b, v]."""
        temperature = max(self.temperature, _LEAST_TEMPERATURE)
        probabilities_bv = (logits_bv.double() / temperature).softmax(-1)
        if self.top_p == 1:
            return probabilities_bv
        sorted_bv, order_bv = probabilities_bv.sort(-1, descending=True)
        before_bv = sorted_bv.cumsum(-1) - sorted_bv  # 0 for the likeliest, which always stays
        kept_bv = torch.where(before_bv < self.top_p, sorted_bv, 0.0)
        return torch.zeros_like(kept_bv).scatter_(-1, order_bv, kept_bv)


GREEDY = Choice()
