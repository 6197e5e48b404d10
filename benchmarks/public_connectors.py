"""Connectors against the public VILA code's own, before and after it turned their tokens.

Random weights of ours go through the name table of the format `vila` into the module of the public
code, which must take all of them, and both compute the same random patches, on even and odd grids.
"""

import argparse
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import transformers
from claims import Claim, parser, report
from torch import Tensor

from vila_mc.checkpoint.lazy import lazily
from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.load import run_from_dict
from vila_mc.config.model import ModelConfig
from vila_mc.convert.formats.registry import find_format
from vila_mc.convert.names import connector_table
from vila_mc.convert.rename_tensors import to_hf
from vila_mc.model.connectors.connector import Connector, build_connector
from vila_mc.model.megatron_config import language_config

PROJECTOR = "llava/model/multimodal_projector/base_projector.py"
COMMITS = {"2024-08-19": "54c9706", "2025-01-07": "33b4f1a"}
"""The last before the release that turned the order of tokens, and one after it."""
GRIDS = (1, 3, 4, 5, 6, 7)
TOLERANCE = 1e-5
_BY_COLUMNS = ConnectorConfig(kind="mlp_downsample", token_order="columns")
KINDS: tuple[tuple[str, str, ConnectorConfig], ...] = (
    ("2024-08-19", "linear", ConnectorConfig(kind="linear")),
    ("2024-08-19", "mlp2x_gelu", ConnectorConfig(kind="mlp2x_gelu")),
    ("2024-08-19", "mlp_downsample", _BY_COLUMNS),
    ("2025-01-07", "linear", ConnectorConfig(kind="linear")),
    ("2025-01-07", "mlp1x_gelu", ConnectorConfig(kind="mlpNx_gelu", layers=1)),
    ("2025-01-07", "mlp4x_gelu", ConnectorConfig(kind="mlpNx_gelu", layers=4)),
    ("2025-01-07", "mlp_downsample", ConnectorConfig(kind="mlp_downsample")),
    ("2025-01-07", "mlp_downsample_2x2_fix", ConnectorConfig(kind="mlp_downsample")),
    ("2025-01-07", "mlp_downsample_3x3_fix", ConnectorConfig(kind="mlp_downsample_3x3_fix")),
    ("2025-01-07", "mlp_downsample_3x3_s2", ConnectorConfig(kind="mlp_downsample_3x3_s2")),
    ("2025-01-07", "mlp_downsample_3x3_s2_new", ConnectorConfig(kind="mlp_downsample_3x3_s2_new")),
)
"""Date of the code, its name, and ours."""
_VISION = dict(patch_size=7, width=32, layers=3, heads=4, ffn=64)
_LANGUAGE = dict(layers=2, width=64, ffn=96, heads=4, kv_heads=2, vocab_size=131, max_positions=64)


def main() -> int:
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--vila", type=Path, required=True, help="a clone of the code")
    arguments = arguments_parser.parse_args()
    return report(measure(arguments), arguments)


def measure(arguments: argparse.Namespace) -> list[Claim]:
    """The largest difference of each kind over all grids."""
    modules = {date: public_code(arguments.vila, commit) for date, commit in COMMITS.items()}
    claims = []
    for date, name, connector in KINDS:
        largest = max(difference(modules[date], name, connector, grid) for grid in GRIDS)
        claim = f"{name} of {date}, ours as {connector.title()}: largest difference"
        claims.append(Claim(claim, largest, "", TOLERANCE, "lower"))
    return claims


def public_code(clone: Path, commit: str) -> ModuleType:
    """The module of one commit; it registers classes by a name that another may have, too."""
    asked = ["git", "-C", str(clone), "show", f"{commit}:{PROJECTOR}"]
    source = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    module = ModuleType(f"projector_{commit}")
    with (
        patch.object(transformers.AutoConfig, "register"),
        patch.object(transformers.AutoModel, "register"),
    ):
        exec(compile(source, f"{commit}:{PROJECTOR}", "exec"), module.__dict__)
    return module


def difference(code: ModuleType, name: str, connector: ConnectorConfig, grid: int) -> float:
    """The largest, on random patches with a class token in front."""
    run = run_from_dict(
        {
            "model": {
                "vision": {**_VISION, "image_size": 7 * grid},
                "language": _LANGUAGE,
                "connector": connector,
            },
            "data": {"sequence_length": 64},
            "train": {"precision": "fp32"},
        }
    )
    torch.manual_seed(grid)
    ours = build_connector(language_config(run), run.model)
    with torch.no_grad():
        for weight in ours.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    width, language_width = run.model.vision.width, run.model.language.width
    sizes: Any = SimpleNamespace(mm_hidden_size=width, hidden_size=language_width)
    theirs = code.MultimodalProjector(code.MultimodalProjectorConfig(name), sizes)
    theirs.load_state_dict(public_names(ours, run.model), strict=True)
    features = torch.randn(2, 1 + grid**2, width)
    with torch.no_grad():
        expected = theirs(features[:, 1:])
        assert expected.std() > 0.1, "a comparison of zeros proves nothing"
        return float((ours(features) - expected).abs().max())


def public_names(ours: Connector, model: ModelConfig) -> dict[str, Tensor]:
    """Weights by the names of the public code, which are the same whatever the order of tokens."""
    by_rows = replace(model, connector=replace(model.connector, token_order="rows"))
    table = connector_table(by_rows, find_format("vila").naming)
    state = lazily({f"connector.{name}": w.detach() for name, w in ours.named_parameters()})
    return dict(to_hf(state, [table]))


if __name__ == "__main__":
    sys.exit(main())
