"""What connectors keep for their backward pass: the formulas against what autograd holds."""

import pytest
import torch
from torch import Tensor

from tests.support.connectors import CASES, options_of
from tests.support.tiny import tiny_run
from vila_mc.config.connector_memory import HIDDEN_KEPT, Site
from vila_mc.config.connectors import ConnectorConfig
from vila_mc.config.model import ModelConfig
from vila_mc.model.connectors.connector import build_connector
from vila_mc.model.megatron_config import language_config

IMAGES = 20
"""So many that what is kept once, and not for every image, does not count."""


def _held(model: ModelConfig) -> int:
    """Bytes of the storages that autograd holds, weights aside, and the queries' first norm."""
    torch.manual_seed(0)
    built = build_connector(language_config(tiny_run()), model)
    weights = {weight.untyped_storage().data_ptr() for weight in built.parameters()}
    vision = model.vision
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point():
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    features = torch.randn(IMAGES, vision.positions(), vision.width)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = built(features)
    assert output.requires_grad
    return sum(held.values())


@pytest.mark.parametrize("family", ["clip", "siglip"])
@pytest.mark.parametrize("name", CASES)
def test_formulas_are_what_autograd_holds(name: str, family: str) -> None:
    vision = dict(family=family, image_size=42, patch_size=7, width=32, layers=3, heads=4, ffn=64)
    shapes = {"vision": vision, "connector": options_of(name)}
    model = tiny_run(model=shapes, data={"sequence_length": 64}).model
    site = Site(
        grid=6,
        class_tokens=model.vision.facts().class_tokens,
        vision_width=32,
        language_width=model.language.width,
        number=4,
    )
    foretold = IMAGES * model.connector.kept_bytes(site)
    assert _held(model) == pytest.approx(foretold, rel=0.02)


def test_by_hand() -> None:
    # LLaVA-1.5's: of each of 576 patches what both products and GELU take in, 1024 + 2 x 4096.
    site = Site(grid=24, class_tokens=1, vision_width=1024, language_width=4096)
    llava = ConnectorConfig(kind="mlp2x_gelu")
    assert llava.kept_bytes(site) == 2 * 576 * (1024 + 4096 + 4096)
    # VILA's: the features, 144 rows of statistics, a part of their hidden layer.
    vila = ConnectorConfig(kind="mlp_downsample")
    assert vila.kept_bytes(site) == 2 * 577 * 1024 + 144 * (8 + 2 * HIDDEN_KEPT * 4096)
    # Shared by four ranks each holds a quarter of what lies between the two products.
    shared = Site(grid=24, class_tokens=1, vision_width=1024, language_width=4096, ranks=4)
    assert llava.kept_bytes(shared) == 2 * 576 * (1024 + 4096 / 4 + 4096 / 4)
