"""Makes a small indexed corpus of coloured squares, for --smoke runs. It teaches nothing.

    python examples/synthetic_corpus.py OUT_DIR

Writes OUT_DIR/tokenizer.model and datasets of every kind, OUT_DIR/{pairs, interleaved,
conversations, text}.*, and clears checkpoints of earlier runs.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from vila_mc.config.options import ErrorRaisingParser
from vila_mc.data.ingest.preprocess import preprocess
from vila_mc.data.ingest.rejection import RejectionLimit
from vila_mc.data.sources.conversations import ConversationSource
from vila_mc.data.sources.image_files import ImageFolder
from vila_mc.data.sources.interleaved import InterleavedSource
from vila_mc.data.sources.pairs import PairSource
from vila_mc.data.sources.records import Source
from vila_mc.data.sources.text import TextSource
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.errors import ConfigError, run_cli

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 200), "grey": (128,) * 3}
NUM_RECORDS = 32
VOCABULARY = 320
MARKER = ".vila-smoke"


def main() -> int:
    """Parse, write, say what was written. Raises ConfigError."""
    parser = ErrorRaisingParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", metavar="OUT_DIR", type=Path)
    output = parser.parse_args().output
    if output.exists() and any(output.iterdir()) and not (output / MARKER).exists():
        raise ConfigError(
            f"{output} holds files that no smoke run wrote. Name another or an empty directory."
        )
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    (output / MARKER).touch()
    with tempfile.TemporaryDirectory() as folder:
        write_corpus(Path(folder), output)
    return 0


def write_corpus(raw: Path, output: Path) -> None:
    """Raw records and images in ``raw``, indexed datasets in ``output``."""
    for name, colour in COLOURS.items():
        Image.new("RGB", (80, 60), colour).save(raw / f"{name}.png")
    all_records = [records(index) for index in range(NUM_RECORDS)]
    for kind in all_records[0]:
        lines = (json.dumps(of[kind]) + "\n" for of in all_records)
        (raw / f"{kind}.jsonl").write_text("".join(lines))
    sentences = [of["pairs"]["caption"] for of in all_records]
    sentences += [sentence for of in all_records for sentence in of["interleaved"]["text_list"]]
    sentences += [of["text"]["text"] for of in all_records]
    tokenizer = output / "tokenizer.model"
    train_tokenizer(sentences, tokenizer, VOCABULARY)
    images = ImageFolder(raw)
    sources: dict[str, Source] = {
        "pairs": PairSource([raw / "pairs.jsonl"], images),
        "interleaved": InterleavedSource([raw / "interleaved.jsonl"], images),
        "conversations": ConversationSource([raw / "conversations.jsonl"], images),
        "text": TextSource([raw / "text.jsonl"]),
    }
    for kind, source in sources.items():
        preprocess(
            source,
            output / kind,
            "text" if kind == "text" else "multimodal",
            tokenizer,
            facts={"kind": kind},
            limit=RejectionLimit.parse("0"),
        )


def records(index: int) -> dict[str, dict[str, Any]]:
    """The ``index``-th record of every kind."""
    names = list(COLOURS)
    first, second = names[index % 4], names[(index // 4) % 4]
    turns = [
        {"from": "human", "value": "<image>\nWhich colour?"},
        {"from": "gpt", "value": f"It is {first}."},
    ]
    return {
        "pairs": {"image": f"{first}.png", "caption": f"a {first} square, number {index}"},
        "interleaved": {
            "text_list": [
                f"Here is a {first} square.",
                f"And here is a {second} one, number {index}.",
            ],
            "image_info": [
                {"image_name": f"{first}.png", "matched_text_index": 0, "matched_sim": 1.0},
                {"image_name": f"{second}.png", "matched_text_index": 1, "matched_sim": 1.0},
            ],
        },
        "conversations": {"id": str(index), "image": f"{first}.png", "conversations": turns},
        "text": {"text": f"Number {index} comes after {first} and before {second}."},
    }


if __name__ == "__main__":
    run_cli(main)
