"""What the cache of keys and values is worth: 256 new tokens, beside reading all anew for each.

    python benchmarks/generation.py [--tokens 256] [--prompt 64] [--layers 8] [--width 512]

One process, an untrained model in fp32, both ways in turn, three times; the fastest of each. The
tokens of both must be the same.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where the tests are

from tests.support.tiny import tiny_run
from vila_mc.data.batches.collate import collate
from vila_mc.evaluation.decoder import Decoder
from vila_mc.flow import Piece, TextPiece
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import distributed

_ROUNDS = 3


def with_cache(model: VilaModel, prompt: tuple[Piece, ...], count: int) -> list[int]:
    """Greedy tokens, each read once."""
    decoder = Decoder(model, [prompt], count)
    tokens = [int(decoder.logits_bv[0].argmax())]
    while len(tokens) < count:
        tokens.append(int(decoder.read(tokens[-1:])[0].argmax()))
    return tokens


def anew(model: VilaModel, prompt: tuple[Piece, ...], length: int, count: int) -> list[int]:
    """Greedy tokens, all positions read for each."""
    batch = collate([[prompt]], model.run_config.model, length + count, needs_images=True)
    with torch.inference_mode():
        for at in range(length, length + count):
            tokens, labels = batch.tokens[:, :at], batch.labels[:, :at]
            logits_bsv = model(replace(batch, tokens=tokens, labels=labels), with_loss=False)
            batch.tokens[0, at] = logits_bsv[0, -1].argmax()
    return [int(token) for token in batch.tokens[0, length:]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("tokens", 256), ("prompt", 64), ("layers", 8), ("width", 512)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    language = dict(
        layers=given.layers,
        width=given.width,
        ffn=3 * given.width,
        heads=given.width // 64,
        kv_heads=given.width // 64,
        vocab_size=2000,
        max_positions=given.prompt + given.tokens,
    )
    config = tiny_run(model={"language": language})
    ids = torch.randint(5, 2000, (given.prompt,), generator=torch.Generator().manual_seed(1))
    prompt = (TextPiece(ids.numpy(), is_trained=False),)
    seconds: dict[str, list[float]] = {"cached": [], "anew": []}
    with distributed(config.parallel, seed=1) as ranks:
        model = build_stages(config, ranks)[0].eval()
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            cached = with_cache(model, prompt, given.tokens)
            middle = time.perf_counter()
            expected = anew(model, prompt, given.prompt, given.tokens)
            seconds["cached"].append(middle - start)
            seconds["anew"].append(time.perf_counter() - middle)
            assert cached == expected, "the cache changes tokens"
    ratios = sorted(b / a for a, b in zip(seconds["cached"], seconds["anew"], strict=True))
    fastest = {name: min(found) for name, found in seconds.items()}
    print(
        f"{given.tokens} tokens behind {given.prompt}: {fastest['cached']:.2f} s with the cache, "
        f"{fastest['anew']:.2f} s anew; {ratios[len(ratios) // 2]:.1f} times as fast (median of "
        f"{_ROUNDS}, {ratios[0]:.1f} to {ratios[-1]:.1f}), the same tokens"
    )


if __name__ == "__main__":
    main()
