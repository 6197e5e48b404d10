"""A Llama-like tokenizer, a loader of exports, an image file."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import numpy as np
import pytest
from PIL import Image

from tests.support.adapters import LORA, write_checkpoint
from tests.unit.convert.independent_vila import SENTENCES, VOCABULARY
from vila_mc.convert.export_adapters import export_adapters
from vila_mc.data.tokenizers.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BPE, byte fallback, no normalisation, dummy prefix, split digits, odd vocabulary."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    train_tokenizer([sentence for sentence in SENTENCES for _ in range(9)], path, VOCABULARY)
    return path


@pytest.fixture(scope="session", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remote code is copied to a place of its own."""
    from transformers import dynamic_module_utils
    from transformers.utils import hub

    cache = str(tmp_path_factory.mktemp("modules"))
    dynamic_module_utils.HF_MODULES_CACHE = cache
    hub.HF_MODULES_CACHE = cache


@pytest.fixture(scope="session")
def load_export() -> Callable[[Path], tuple[Any, Any]]:
    """Model in eval mode and processor of an export; no weight may be missing or surplus."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    def load(directory: Path) -> tuple[Any, Any]:
        model, report = AutoModelForImageTextToText.from_pretrained(
            directory, trust_remote_code=True, output_loading_info=True
        )
        assert not any(report.values()), report
        return model.eval(), AutoProcessor.from_pretrained(directory, trust_remote_code=True)

    return load


@pytest.fixture(scope="session")
def photo() -> bytes:
    """A PNG that is neither square nor smooth."""
    pixels = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What adapters stand beside."""
    return write_checkpoint(tmp_path_factory.mktemp("base"), {}, ["connector"], None)


@pytest.fixture(scope="session")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters, and a connector that learned."""
    lora = LORA | dict(vision_targets=["k_proj", "fc2"])
    return write_checkpoint(tmp_path_factory.mktemp("x") / "adapted", lora, ["connector"], base)


@pytest.fixture
def peft(adapted: Path, tmp_path: Path) -> Path:
    """The adapters of the language model, in PEFT's format."""
    export_adapters(adapted, tmp_path / "peft", "llm")
    return tmp_path / "peft"
