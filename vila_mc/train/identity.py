"""What makes two processes ranks of one run."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import vila_mc
from vila_mc.checkpoint.manifest import leaves, versions
from vila_mc.config.load import run_to_dict
from vila_mc.config.run import RunConfig
from vila_mc.data.indexed.dataset_manifest import DatasetManifest, contents_sha256

_MAY_DIFFER = ("data.workers", "data.tokenizer", "data.blend", "data.validation")
"""Each machine has its own paths; what stands there is compared instead."""


def identity(
    config: RunConfig,
    datasets: Sequence[DatasetManifest],
    validation: Sequence[DatasetManifest] = (),
) -> dict[str, str]:
    """What all ranks must have in common, by the name that a person knows it by.

    Args:
        config: the whole configuration.
        datasets: what ``config.data.blend`` holds, in its order.
        validation: the same of ``config.data.validation``.
    """
    # Not above: the launcher, which needs the options alone, can do without megatron.
    from vila_mc.model.fusions import fusions_line
    from vila_mc.model.layer_specs import layer_kind
    from vila_mc.parallel.installed import transformer_engine_version

    facts = common_options(config)
    unit = "epochs" if config.data.by_epochs() else "weights"
    facts["data.blend"] = f"{unit} {_said(config.data.blend_shares())}"
    facts["data.validation"] = f"epochs {_said(config.data.validation_epochs())}"
    for option, manifests in (("blend", datasets), ("validation", validation)):
        for number, dataset in enumerate(manifests):
            facts[f"the dataset of data.{option}.{number}"] = (
                f"{dataset.samples:,} samples with SHA-256 {contents_sha256(dataset)[:12]} "
                f"(tokenizer {dataset.tokenizer_sha256[:12]})"
            )
    facts |= {f"the version of {name}": versions()[name] for name in ("torch", "megatron-core")}
    facts["the version of Transformer Engine"] = transformer_engine_version() or "none"
    facts["what train.layers stands for"] = layer_kind(config, "language")
    facts["what train.vision_layers stands for"] = layer_kind(config, "vision")
    facts["what is fused"] = fusions_line(config)
    facts["vila_mc itself"] = f"{vila_mc.__version__} with SHA-256 {_code_sha256()[:12]}"
    return facts


def common_options(config: RunConfig) -> dict[str, str]:
    """The options that must be the same everywhere, and their values."""
    return {
        name: _said(value)
        for section, values in run_to_dict(config).items()
        for name, value in leaves(values, section).items()
        if name not in _MAY_DIFFER
    }


def _said(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _code_sha256() -> str:
    """One hash over every Python file of the package and its place in it."""
    package, digest = Path(vila_mc.__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
