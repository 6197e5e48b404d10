"""Datasets as earlier versions of vila_mc wrote them."""

import json
from pathlib import Path

from vila_mc.files import sha256_of


def make_old(prefix: Path, version: int) -> Path:
    """Turn a set with images into one of format version 1 or 2: the index ends with the modes."""
    file, index = Path(f"{prefix}.manifest.json"), Path(f"{prefix}.idx")
    facts = json.loads(file.read_text())
    index.write_bytes(index.read_bytes()[: -8 * facts["images"]])
    facts |= {"format_version": version, "idx_sha256": sha256_of(index)}
    if version == 1:
        facts.pop("bin_sha256")
    file.write_text(json.dumps(facts))
    return prefix
