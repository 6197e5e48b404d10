"""Train a Llama-like SentencePiece tokenizer on plain text or raw JSON corpora."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vila_mc.config.load import ErrorRaisingParser
from vila_mc.data.ingest.corpus_text import TEXT_KEYS, read_sentences
from vila_mc.data.ingest.preprocess import expand_inputs
from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer
from vila_mc.errors import run_cli


def main(arguments: Sequence[str] = tuple(sys.argv[1:])) -> int:
    """Parse, call, print what was made."""
    parser = ErrorRaisingParser(description=__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="FILE",
        help="text files with a sentence per line, or .json, .jsonl, .jsonl.gz corpora, of which "
        f"the strings under {', '.join(TEXT_KEYS)} are used; glob patterns are fine",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="MODEL", help=".model to write"
    )
    parser.add_argument(
        "--vocab-size", type=int, default=32000, metavar="N", help="token ids (default: 32000)"
    )
    options = parser.parse_args(arguments)
    sentences = read_sentences(expand_inputs(options.input))
    used = train_tokenizer(sentences, options.output, options.vocab_size)
    made = Tokenizer(options.output)
    print(f"{options.output}: {made.vocab_size:,} tokens from {used:,} sentences")
    return 0


if __name__ == "__main__":
    run_cli(main)
