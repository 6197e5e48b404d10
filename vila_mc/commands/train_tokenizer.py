"""``vila-mc tokenizer``: a tokenizer for those who have none."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from vila_mc.commands.command import Job, require_no_input, run_job
from vila_mc.config.options import Argument
from vila_mc.data.chat_templates import DEFAULT_TEMPLATE
from vila_mc.data.ingest.corpus_text import TEXT_KEYS
from vila_mc.errors import ConfigError, run_cli, say

_NAMED = 5
"""Files that a warning names."""


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions:
    """Train a Llama-like SentencePiece tokenizer on raw corpora and the words of a template."""

    input: Annotated[tuple[str, ...], Argument("FILE")]
    """What preprocessing reads: .json, .jsonl, .jsonl.gz, .jsonl.zst, .zip, .tar, .parquet, .txt,
    folders of them and glob patterns. Of records the strings under text, text_list, caption, value,
    question, answer, content are used, of text files every line."""
    output: Annotated[Path, Argument("MODEL")]
    """.model to write."""
    vocab_size: int = 32000
    """Token ids."""
    template: Annotated[str, Argument("NAME")] = DEFAULT_TEMPLATE
    """Chat template whose words are learnt: plain (none), vicuna_v1, llama_2, llama_3, chatml, or a
    YAML file."""
    keys: Annotated[tuple[str, ...], Argument("KEY")] = TEXT_KEYS
    """Keys or columns of records that hold text, in place of the usual ones."""
    overwrite: bool = False
    """Replace a tokenizer that is there."""


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Parse, call, print what was made. Raises VilaError."""
    return run_job(Job(TokenizerOptions, _train), arguments, prog)


def _train(options: TokenizerOptions) -> int:
    from vila_mc.data.chat_templates import Template, find_template
    from vila_mc.data.ingest.corpus_text import READ_IN_FOLDERS, read_sentences, with_template
    from vila_mc.data.ingest.inputs import expand_inputs
    from vila_mc.data.tokenizers.tokenizer import Tokenizer, train_tokenizer

    template = None if options.template == "tokenizer" else find_template(options.template)
    if not isinstance(template, Template):
        raise ConfigError(
            "template is tokenizer, which stands for what a tokenizer brings. Name another.",
            option="template",
        )
    files = expand_inputs(options.input, endings=READ_IN_FOLDERS)
    require_no_input(options.output, files)
    texts: Counter[Path] = Counter()
    sentences = read_sentences(files, options.keys, texts)
    train_tokenizer(
        with_template(sentences, template),
        options.output,
        options.vocab_size,
        template.special,
        overwrite=options.overwrite,
    )
    made = Tokenizer(options.output)
    if without := [file for file in files if not texts[file]]:
        names = ", ".join(map(str, without[:_NAMED])) + (", ..." if len(without) > _NAMED else "")
        say(
            f"warning: {len(without):,} of {len(files):,} files hold no text under "
            f"{', '.join(options.keys)}: {names}. See --keys.",
            to_stderr=True,
        )
    taken = len(made.encode(" ".join(template.own_text().split())))
    say(
        f"{options.output}: {made.vocab_size:,} tokens from {texts.total():,} texts; the words of "
        f"the template {options.template} take {taken}"
    )
    return 0


if __name__ == "__main__":
    run_cli(main)
