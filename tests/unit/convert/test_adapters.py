"""Adapters in PEFT's format: what stands in its files, where it belongs, and what is refused."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.parity.lora_trace import make_adapters_matter
from tests.unit.checkpoint.conftest import save, trainer
from tests.unit.convert.independent_vila import VOCABULARY
from vila_mc.checkpoint.base import base_directory, base_of_run, open_whole
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest, resolve_checkpoint, versions
from vila_mc.checkpoint.save import PendingSave
from vila_mc.config.lora import is_adapter
from vila_mc.convert.export_adapters import export_adapters, prove_adapters
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.import_adapters import import_adapters
from vila_mc.convert.peft_format import CONFIG, WEIGHTS, read_config
from vila_mc.errors import CheckpointError

LORA = dict(rank=3, alpha=4.5, targets=["q_proj", "v_proj", "up_proj", "down_proj"])
MODEL = {"language": {"vocab_size": VOCABULARY, "layers": 2}}


def _write(output: Path, lora: dict[str, Any], trainable: list[str], load: Path | None) -> Path:
    sections: dict[str, Any] = {"train": {"output": str(output), "trainable": trainable}}
    with trainer(model=MODEL, lora=lora, **sections) as made:
        if load is None:
            return save(made, step=1)
        manifest = load_weights(load, made.stages)
        base = base_of_run(load, manifest, made.stages, output)
        make_adapters_matter(made.stages[0], made.ranks)
        with torch.no_grad():
            for weight in made.stages[0].parameters():
                if weight.requires_grad:
                    weight.add_(0.01)
        said = Manifest(
            step=2, samples_seen=0, config=made.config, layout=None, versions=versions()
        )
        output.mkdir()
        return PendingSave(
            said, made.ranks, made.stages, made.optimizer, base=base, in_background=False
        ).finish()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("base")
    return _write(output, {}, ["connector"], None)


@pytest.fixture(scope="module")
def adapted(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters, and a connector that learned."""
    lora = LORA | dict(vision_targets=["k_proj", "fc2"])
    return _write(tmp_path_factory.mktemp("x") / "adapted", lora, ["connector"], base)


@pytest.fixture
def peft(adapted: Path, tmp_path: Path) -> Path:
    """The adapters of the language model, in PEFT's format."""
    export_adapters(adapted, tmp_path / "peft", "llm")
    return tmp_path / "peft"


def test_put_beside_the_base_by_their_names_they_are_the_merged_model(
    adapted: Path, base: Path, peft: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    weights = []
    for source, name in ((base, "base"), (adapted, "merged")):
        export_checkpoint(source, tmp_path / name, "llm", tokenizer=tokenizer_path, dtype=None)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    found, merged = weights
    factors, config = load_file(peft / WEIGHTS), json.loads((peft / CONFIG).read_text())
    scale = config["lora_alpha"] / config["r"]
    adapted_modules = set()
    for name, a in factors.items():
        if name.endswith(".lora_A.weight"):
            module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            b = factors[name.replace("lora_A", "lora_B")]
            found[f"{module}.weight"] = found[f"{module}.weight"] + scale * (b @ a)
            adapted_modules.add(module)
            assert module.rpartition(".")[2] in config["target_modules"]
    assert len(adapted_modules) == 2 * len(LORA["targets"])  # type: ignore[arg-type]
    assert found.keys() == merged.keys()
    for name, weight in merged.items():
        assert found[name].allclose(weight, rtol=0, atol=1e-6), name


def test_of_a_whole_model_the_pattern_meets_what_has_an_adapter_and_nothing_else(
    adapted: Path, tmp_path: Path
) -> None:
    export_adapters(adapted, tmp_path / "peft")
    names = load_file(tmp_path / "peft" / WEIGHTS).keys()
    config = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert config["modules_to_save"] == ["connector"]
    assert "base_model.model.connector.fc1.weight" in names
    pattern = config["target_modules"]
    modules = {
        name.removeprefix("base_model.model.").split(".lora_")[0]
        for name in names
        if "lora" in name
    }
    assert all(re.fullmatch(pattern, module) for module in modules)
    tower = next(module for module in modules if module.endswith("fc2"))
    for other in (tower.replace("fc2", "fc1"), f"x.{tower}", "language_model.lm_head"):
        assert not re.fullmatch(pattern, other)
    assert not re.fullmatch(pattern, "language_model.model.layers.0.self_attn.k_proj")


def test_there_and_back_is_bit_equal(adapted: Path, base: Path, peft: Path, tmp_path: Path) -> None:
    path = import_adapters(peft, base, tmp_path / "back")
    manifest = Manifest.read(path)
    assert base_directory(path, manifest) == base
    before = open_whole(adapted, Manifest.read(adapted))
    after = open_whole(path, manifest)
    came = {name for name in after if is_adapter(name)}
    assert came == {name for name in before if is_adapter(name) and name.startswith("language.")}
    assert all(after[name].read().equal(before[name].read()) for name in came)
    lora = manifest.config.lora
    assert (lora.rank, lora.alpha, set(lora.targets)) == (3, 4.5, set(LORA["targets"]))  # type: ignore[call-overload]
    assert lora.vision_targets == ()
    with trainer(model=MODEL, lora=LORA, train={"trainable": []}) as made:
        load_weights(resolve_checkpoint(tmp_path / "back"), made.stages)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(use_dora=True), r"use_dora is true; only false"),
        (dict(peft_type="IA3"), r"peft_type is IA3; only LORA"),
        (dict(bias="all"), r"bias is all; only none"),
        (dict(rank_pattern={"q_proj": 8}), r"rank_pattern is .*q_proj"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save is .*lm_head"),
        (dict(init_lora_weights="pissa_niter_16"), r"init_lora_weights is pissa_niter_16; only"),
        (dict(loftq_config={"loftq_bits": 4}), r"loftq_config is .*loftq_bits"),
        (dict(layers_to_transform=[1]), r"not known here .*layers_to_transform"),
        (dict(r=0), r"r is 0; a whole number"),
        (dict(r=5), r"mis-shaped .*lora_A"),
    ],
    ids=str,
)
def test_what_is_not_computed_is_refused_by_name(
    change: dict[str, Any], message: str, peft: Path, base: Path, tmp_path: Path
) -> None:
    config = json.loads((peft / CONFIG).read_text()) | change
    (peft / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        import_adapters(peft, base, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_rslora_divides_by_the_root_of_the_rank(peft: Path) -> None:
    config = json.loads((peft / CONFIG).read_text()) | {"use_rslora": True}
    (peft / CONFIG).write_text(json.dumps(config))
    assert read_config(peft) == (3, 4.5 * math.sqrt(3), 0.0)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        (("layers.1.mlp.up_proj", "layers.7.mlp.up_proj"), r"2 missing \(.*layers\.1.* 2 surplus"),
        (("mlp.up_proj", "mlp.experts"), r"adapters of experts in the language part"),
    ],
    ids=["a layer that is not there", "a projection that is not there"],
)
def test_every_tensor_is_accounted_for(
    renamed: tuple[str, str], message: str, peft: Path, base: Path, tmp_path: Path
) -> None:
    tensors = {n.replace(*renamed): t for n, t in load_file(peft / WEIGHTS).items()}
    save_file(tensors, peft / WEIGHTS)
    with pytest.raises(CheckpointError, match=message):
        import_adapters(peft, base, tmp_path / "back")


def test_what_cannot_be_exported_as_adapters(adapted: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no adapters that hf-vila"):
        export_adapters(base, tmp_path / "none")
    with pytest.raises(CheckpointError, match="for hf-vila and llm, not for hf-llava"):
        export_adapters(adapted, tmp_path / "none", "hf-llava")
    with pytest.raises(CheckpointError, match=r"has adapters already"):
        import_adapters(tmp_path, adapted, tmp_path / "none")
    more = _write(tmp_path / "more", LORA, ["language.norm"], base)
    with pytest.raises(CheckpointError, match=r"more than adapters .*final_layernorm\.weight lear"):
        export_adapters(more, tmp_path / "none", "llm")
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["hf-vila", "llm"])
def test_peft_computes_the_same(
    format: Any, adapted: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Needs peft, which the tests' environment has not: see docs/checkpoints.md."""
    pytest.importorskip("peft")
    export_adapters(adapted, tmp_path / "peft", format)
    result = prove_adapters(adapted, tmp_path / "peft", format, tokenizer_path)
    assert result.greedy_equal
    assert result.max_difference < 1e-5
