"""``vila-mc tokenizer``: a tokenizer for those who have none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vila_mc.commands.command import Job, run_job
from vila_mc.config.options import Argument
from vila_mc.errors import say


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Train a Llama-like SentencePiece tokenizer on plain text or raw JSON corpora."""

    input: Annotated[tuple[str, ...], Argument("FILE")]
    """Text files with a sentence per line, or .json, .jsonl, .jsonl.gz corpora, of which the
    strings under text, text_list, caption, value, question, answer, content are used; glob
    patterns are fine."""
    output: Annotated[Path, Argument("MODEL")]
    """.model to write."""
    vocab_size: int = 32000
    """Token ids."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print what was made. Raises VilaError."""
    return run_job(Job(TokenizerOptions, _train), arguments, prog)


def _train(options: TokenizerOptions) -> int:
    from vila_mc.data.ingest.corpus_text import read_sentences
    from vila_mc.data.ingest.inputs import expand_inputs
    from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

    sentences = read_sentences(expand_inputs(options.input))
    used = train_tokenizer(sentences, options.output, options.vocab_size)
    made = Tokenizer(options.output)
    say(f"{options.output}: {made.vocab_size:,} tokens from {used:,} sentences")
    return 0
