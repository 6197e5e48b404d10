"""Adapters in PEFT's format: what stands in its files, where it belongs, and what is refused."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from tests.support.adapters import LORA, MODEL, write_checkpoint
from tests.unit.checkpoint.conftest import trainer
from vila_mc.checkpoint.base import open_whole
from vila_mc.checkpoint.base_place import base_directory
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.checkpoint.stream import open_checkpoint
from vila_mc.commands import convert_checkpoint
from vila_mc.config.lora import is_adapter
from vila_mc.convert import peft_targets
from vila_mc.convert.export_adapters import export_adapters, prove_adapters
from vila_mc.convert.export_checkpoint import export_checkpoint
from vila_mc.convert.formats.whole_directory import read_whole
from vila_mc.convert.import_adapters import import_adapters
from vila_mc.convert.peft_format import CONFIG, WEIGHTS, read_config
from vila_mc.convert.proof import fresh_request
from vila_mc.errors import CheckpointError, ConfigError, SetupError


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
    assert len(adapted_modules) == 2 * len(LORA["targets"])
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
    """Of the language model's adapters alone, as an export for ``llm`` has them."""
    path = import_adapters(peft, base, tmp_path / "back")
    manifest = Manifest.read(path)
    assert base_directory(path, manifest) == base
    before = open_whole(adapted, Manifest.read(adapted))
    after = open_whole(path, manifest)
    came = {name for name in after if is_adapter(name)}
    assert came == {name for name in before if is_adapter(name) and name.startswith("language.")}
    assert all(after[name].read().equal(before[name].read()) for name in came)
    lora = manifest.config.lora
    assert (lora.rank, lora.alpha, set(lora.targets)) == (3, 4.5, set(LORA["targets"]))
    assert lora.vision_targets == ()
    with trainer(model=MODEL, lora=LORA, train={"trainable": []}) as made:
        load_weights(resolve_checkpoint(tmp_path / "back"), made.stages)


def test_a_connector_that_learned_comes_back_with_the_adapters(
    adapted: Path, base: Path, tmp_path: Path
) -> None:
    export_adapters(adapted, tmp_path / "peft")
    path = import_adapters(tmp_path / "peft", base, tmp_path / "back")
    manifest = Manifest.read(path)
    assert manifest.config.train.trainable == ("connector",)
    recipe = yaml.safe_load((tmp_path / "back" / "model.yaml").read_text())
    assert recipe["train"] == {"trainable": ["connector"]}
    before = open_whole(adapted, Manifest.read(adapted))
    after, alone = open_whole(path, manifest), open_checkpoint(base, manifest.config.model)
    assert after.keys() == before.keys()
    assert all(tensor.read().equal(before[name].read()) for name, tensor in after.items())
    name = "connector.fc1.weight"
    assert not after[name].read().equal(alone[name].read())
    assert set(manifest.config.lora.vision_targets) == {"k_proj", "fc2"}
    export_adapters(path, tmp_path / "again")
    again, first = (load_file(tmp_path / each / WEIGHTS) for each in ("again", "peft"))
    assert again.keys() == first.keys()
    assert all(again[name].equal(tensor) for name, tensor in first.items())


TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
NAMED: list[tuple[Any, str | None]] = [
    (TARGETS, None),
    ([f"self_attn.{each}" for each in TARGETS[:2]] + TARGETS[2:], None),
    (r"model\.layers\.\d+\.\w+\.(q_proj|v_proj|up_proj|down_proj)", None),
    (TARGETS[:3], r"does not name model\.layers\.0\.mlp\.down_proj, of which there is an adapter"),
    ([*TARGETS, "k_proj"], r"names k_proj, of which there is no adapter"),
    ([*TARGETS, "lm_head"], r"names lm_head, of which there is no adapter"),
    ([*TARGETS, "proj"], r"names proj, of which there is no adapter"),
    (r".*\.(q|k|v|up|down)_proj", r"also means model\.layers\.0\.self_attn\.k_proj, of which"),
    (r".*", r"also means .*, of which there is no adapter"),
    (r".*\.[qv]_proj", r"does not name model\.layers\.0\.mlp\.down_proj"),
    ("(", "is a regular expression that is none"),
    ("(?R)?" * 100, "is a regular expression that takes too long"),
    ("a{999999999}", "an expression without counts is needed"),
    ("x" * 5000, "the names of modules are needed"),
    ("all-linear", "peft writes the names that it stands for"),
    ([], "the names of modules are needed"),
    ([3], "the names of modules are needed"),
    (None, "target_modules is absent; the names of modules are needed"),
]


@pytest.mark.parametrize(("targets", "message"), NAMED, ids=lambda item: str(item)[:40])
def test_what_is_named_has_adapters_and_nothing_else(
    targets: Any,
    message: str | None,
    peft: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peft_targets, "_SECONDS", 0.05)
    config = json.loads((peft / CONFIG).read_text()) | {"target_modules": targets}
    (peft / CONFIG).write_text(json.dumps(config))
    if message is None:
        import_adapters(peft, base, tmp_path / "back")
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        import_adapters(peft, base, tmp_path / "back")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(modules_to_save=None), r"6 surplus \(base_model\.model\.connector\."),
        (dict(target_modules=[*TARGETS, "k_proj", "fc2"]), r"also means .*, of which there is no"),
    ],
    ids=["connector not named", "named by its end"],
)
def test_of_a_whole_model_too_every_tensor_is_named(
    change: dict[str, Any], message: str, adapted: Path, base: Path, tmp_path: Path
) -> None:
    export_adapters(adapted, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / CONFIG).read_text()) | change
    (tmp_path / "peft" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        import_adapters(tmp_path / "peft", base, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(use_dora=True), r"use_dora is true; only false"),
        (dict(peft_type="IA3"), r"peft_type is IA3; only LORA"),
        (dict(bias="all"), r"bias is all; only none"),
        (dict(rank_pattern={"q_proj": 8}), r"rank_pattern is .*q_proj"),
        (dict(modules_to_save=["lm_head"]), r"modules_to_save is .*lm_head"),
        (dict(modules_to_save=["connector"]), r"missing \(base_model\.model\.connector\.norm"),
        (dict(init_lora_weights="pissa_niter_16"), r"init_lora_weights is pissa_niter_16; only"),
        (dict(loftq_config={"loftq_bits": 4}), r"loftq_config is .*loftq_bits"),
        (dict(layers_to_transform=[1]), r"not known here .*layers_to_transform"),
        (dict(r=0), r"r is 0; a whole number"),
        (dict(r=5), r"mis-shaped .*lora_A"),
        (dict(lora_dropout=-0.1), r"lora_dropout is -0\.1; a number of at least 0 and below 1 is"),
        (dict(lora_dropout=1), r"lora_dropout is 1; a number of at least 0 and below 1 is needed"),
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
    read = read_config(peft)
    assert (read.rank, read.alpha, read.dropout) == (3, 4.5 * math.sqrt(3), 0.0)


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        ("adapter_model.bin", r"a pickle, which can run code .* never read\. .* save_pretrained"),
        ("other.bin", r"there is no adapter_model\.safetensors in .*\. Give what peft saved"),
    ],
)
def test_a_pickle_is_never_read(
    pickle: str, message: str, peft: Path, base: Path, tmp_path: Path
) -> None:
    (peft / WEIGHTS).rename(peft / pickle)
    with pytest.raises(CheckpointError, match=message):
        import_adapters(peft, base, tmp_path / "back")


def test_what_peft_did_not_save_is_no_adapter(peft: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds an adapter .* that is not merged"):
        read_whole(peft)
    (peft / CONFIG).unlink()
    for folder in (peft, tmp_path / "nothing"):
        message = rf"there is no adapter_config\.json in {folder}\. Give what peft saved\.$"
        with pytest.raises(CheckpointError, match=message):
            import_adapters(folder, base, tmp_path / "back")


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
    more = write_checkpoint(tmp_path / "more", LORA, ["language.norm"], base)
    with pytest.raises(CheckpointError, match=r"more than adapters .*final_layernorm\.weight lear"):
        export_adapters(more, tmp_path / "none", "llm")
    assert not (tmp_path / "none").exists()


def test_what_a_format_leaves_out_is_said(
    adapted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_adapters(adapted, tmp_path / "llm", "llm")
    said = "left out, as the format llm is the language model alone: adapters of vision, weights of"
    assert capsys.readouterr().out == f"{said} connector\n"
    export_adapters(adapted, tmp_path / "whole")
    assert not capsys.readouterr().out
    of_vision = shutil.copytree(adapted, tmp_path / "of vision")
    manifest = Manifest.read(of_vision)
    config = replace(manifest.config, lora=replace(manifest.config.lora, targets=()))
    replace(manifest, config=config).write(of_vision)
    with pytest.raises(CheckpointError, match=r"no adapters that llm has a place.* Use hf-vila\."):
        export_adapters(of_vision, tmp_path / "none", "llm")
    assert not (tmp_path / "none").exists()


def test_what_the_proof_lacks_is_said_before_anything_is_written(
    adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh_request, "find_spec", lambda name: None if name == "peft" else name)
    arguments = ["--checkpoint", str(adapted), "--output", str(tmp_path / "out"), "--adapters"]
    advice = r"pip install --no-deps peft accelerate\), or leave out the proof\. See --no-verify\."
    with pytest.raises(SetupError, match=rf"needs peft, which is not .*{advice}"):
        convert_checkpoint.main(["export", *arguments])
    monkeypatch.setattr(fresh_request, "find_spec", lambda name: name)
    with pytest.raises(ConfigError, match=r"names no tokenizer\. Give one\. See --tokenizer\."):
        convert_checkpoint.main(["export", *arguments])
    monkeypatch.setattr(fresh_request, "find_spec", lambda name: None)
    with pytest.raises(SetupError, match=r"needs transformers, .*'vila_mc\[hf\]'"):
        convert_checkpoint.main(["export", *arguments[:-1]])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("format", ["hf-vila", "llm"])
def test_peft_computes_the_same(
    format: Any, adapted: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Needs peft, which the tests' environment has not: see docs/checkpoints.md."""
    pytest.importorskip("peft")
    export_adapters(adapted, tmp_path / "peft", format)
    result = prove_adapters(adapted, tmp_path / "peft", tmp_path, tokenizer_path)
    assert result.greedy_equal
    assert result.max_difference < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("format", ["hf-vila", "llm"])
def test_what_peft_made_computes_the_same_when_imported(
    format: Any, base: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Needs peft, too. Random adapters, and for ``hf-vila`` another connector."""
    made_by = pytest.importorskip("peft")
    export_checkpoint(base, tmp_path / "base", format, tokenizer=tokenizer_path)
    loader = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(tmp_path / "base", trust_remote_code=True, dtype=torch.float32)
    options: dict[str, Any] = dict(target_modules=["q_proj", "down_proj"])
    if format == "hf-vila":
        targets = r"(vision|language).*\.(q_proj|fc2|up_proj)"
        options = dict(target_modules=targets, modules_to_save=["connector"])
    settings = made_by.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options)
    theirs = made_by.get_peft_model(model, settings)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if "modules_to_save" in name:
                weight.add_(0.01)
    theirs.save_pretrained(tmp_path / "theirs")
    path = import_adapters(tmp_path / "theirs", base, tmp_path / "ours")
    result = prove_adapters(path, tmp_path / "theirs", tmp_path, tokenizer_path)
    assert result.greedy_equal
    assert result.max_difference < 1e-5
