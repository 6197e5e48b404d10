"""Was a model trained with the token ids of this tokenizer?"""

from vila_mc.checkpoint.manifest import Manifest
from vila_mc.data.tokenizers.tokenizer import Tokenizer
from vila_mc.errors import VilaError


def another_tokenizer(manifest: Manifest, tokenizer: Tokenizer) -> str | None:
    """One line if the model of a checkpoint learned from another tokenizer file than this.

    Args:
        manifest: of the checkpoint. One without datasets, as an import is, names a file.
        tokenizer: what the model is to be used with.

    Returns:
        None where the files are the same, or where it is not known any more.
    """
    learned = {record.tokenizer_sha256 for record in manifest.datasets} - {None}
    if not manifest.datasets and manifest.config.data.tokenizer is not None:
        try:
            learned = {Tokenizer(manifest.config.data.tokenizer).fingerprint()}
        except VilaError:  # it may lie elsewhere now
            learned = set()
    if not learned or tokenizer.fingerprint() in learned:
        return None
    return (
        f"the model learned with another tokenizer than {tokenizer.path}. Unless tokens it knows "
        "have the same ids there, what it learned of words is lost: use the one it was trained with"
    )
