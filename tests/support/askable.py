"""An untrained model to ask in every form, and pictures."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.tiny import tiny_run
from tests.support.tiny_data import VOCABULARY, random_sentences
from vila_mc.checkpoint.lazy import lazily
from vila_mc.checkpoint.manifest import DatasetRecord, Manifest
from vila_mc.checkpoint.stream_writer import write_weights_checkpoint
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.registry import FormatName
from vila_mc.data.chat_templates import Template
from vila_mc.data.tokenizers.tokenizer import train_tokenizer
from vila_mc.model.build import build_stages
from vila_mc.parallel.groups import distributed

BARE = Template(first="", next="and ", close=" ", end="")
"""Without words of its own, which would drown what an untrained model is asked."""
KINDS: tuple[FormatName, ...] = ("hf-vila", "hf-llava", "vila")


@dataclass(frozen=True)
class Askable:
    """An untrained model in every form, and pictures."""

    folder: Path

    def model(self, kind: str = "run") -> Path:
        return self.folder / kind

    def image(self, name: str = "red") -> str:
        return str(self.folder / f"{name}.png")


def make_askable(folder: Path, kinds: Sequence[FormatName] = KINDS) -> Askable:
    """Make one in an empty folder; ``kinds`` of exports beside its run."""
    train_tokenizer(random_sentences(200), folder / "t.model", VOCABULARY)
    for name, colour in (("red", (200, 30, 10)), ("blue", (10, 30, 220))):
        Image.new("RGB", (28, 28), colour).save(folder / f"{name}.png")
    language = dict(layers=2, width=64, ffn=96, heads=4, kv_heads=2, max_positions=200)
    config = tiny_run(
        model={
            "language": language | {"vocab_size": VOCABULARY},
            "connector": {"kind": "mlp2x_gelu"},
        },
        data={"tokenizer": str(folder / "t.model")},
        train={"output": str(folder / "run")},
    )
    with distributed(config.parallel, seed=1) as ranks:
        (model,) = build_stages(config, ranks)
        state = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    checkpoint = write_weights_checkpoint(config, lazily(state), "the test")
    record_template(checkpoint, BARE.describe())
    for kind in kinds:
        export_checkpoint(checkpoint, folder / kind, kind)
    return Askable(folder)


def record_template(checkpoint: Path, template: Any) -> None:
    """Say that the model was trained with a template."""
    manifest = Manifest.read(checkpoint)
    datasets = () if template is None else (DatasetRecord(9, "sha", template),)
    dataclasses.replace(manifest, datasets=datasets).write(checkpoint)
