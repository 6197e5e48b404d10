"""What people write in recipes and on command lines, and what is made of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from vila_mc.config.load import add_config_options, load_run, load_run_from_args
from vila_mc.config.options import ErrorRaisingParser, leaf_options
from vila_mc.config.run import RunConfig
from vila_mc.config.usual_names import _USUAL_NAMES
from vila_mc.errors import ConfigError

HOME = Path.home()
PARSER = ErrorRaisingParser()
add_config_options(PARSER)


def load(recipe: str, tmp_path: Path, overrides: dict[str, Any] | None = None) -> RunConfig:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    return load_run([file], overrides)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.output", "/x/exp #3", Path("/x/exp #3")),
        ("train.output", "12345", Path("12345")),
        ("train.output", "2026-11-25", Path("2026-11-25")),
        ("train.output", "a: b", Path("a: b")),
        ("train.output", "[x", Path("[x")),
        ("train.output", "'quoted'", Path("'quoted'")),
        ("train.output", "it's", Path("it's")),
        ("train.output", "no", Path("no")),
        ("train.output", "none", Path("none")),
        ("train.output", "null", Path("null")),
        ("train.output", "1e3", Path("1e3")),
        ("train.output", "*", Path("*")),
        ("train.output", "&a", Path("&a")),
        ("train.output", "~/runs", HOME / "runs"),
        ("train.output", "./~", Path("~")),
        ("train.output", "costs$5", Path("costs$5")),
        ("data.tokenizer", "x: y.model", Path("x: y.model")),
        ("train.load", "none", None),
        ("train.load", "null", None),
        ("train.load", "None", None),
        ("train.load", "./none", Path("none")),
        ("train.keep_every", "none", None),
        ("train.keep_every", "1000", 1000),
        ("train.steps", "10", 10),
        ("train.resume", "false", False),
        ("train.resume", "No", False),
        ("optimizer.lr", "1e-3", 1e-3),
        ("model.language.rope.scaling", "none", "none"),
        ("train.trainable", "[connector]", ("connector",)),
    ],
)
def test_a_word_is_taken_as_it_is(name: str, text: str, value: Any) -> None:
    parser = ErrorRaisingParser()
    add_config_options(parser)
    got: Any = load_run_from_args(parser.parse_args([f"--{name}", text]))
    for step in name.split("."):
        got = getattr(got, step)
    assert got == value


REFUSED_WORDS = [
    ("train.output", "", "train.output is empty; give a path, or . for"),
    ("train.output", " ", "train.output is empty"),
    ("train.output", "/x\n", "take away the white space"),
    ("train.output", " /x", "take away the white space"),
    ("train.output", "a\nb", "take away the white space"),
    ("train.output", "$HOME/x", "$HOME is not filled in here"),
    ("train.output", "/data/${USER}/x", "${USER} is not filled in here"),
    ("train.output", "~nobody-of-this-name/x", "there is no such home folder"),
    ("data.tokenizer", "", "data.tokenizer is empty"),
    ("train.steps", "none", "train.steps is none; give a whole number"),
    ("train.steps", "9" * 30, "train.steps is 999"),
    ("optimizer.lr", "inf", "optimizer.lr is inf; it must be a finite number"),
    ("data.blend", "[{path: '/x/it's'}]", "Put double quotes around text"),
    ("data.blend", "[{path: /x/exp #3}]", "Put double quotes around text"),
    ("train.trainable", "[connector, vision.layers[0:1]]", "Put double quotes around text"),
    ("data.blend", "[{path: a: b}]", "Put double quotes around text"),
    ("data.blend", "[{path: 12345}]", "data.blend.0.path is 12345, which YAML reads as a number"),
    ("data.blend", "[{path: 2026-11-25}]", "is 2026-11-25, which YAML reads as a date"),
    ("data.blend", "[{path: no}]", "is false, which YAML reads as true or false"),
    ("data.blend", "[{path: $DATA/x}]", "data.blend.0.path is $DATA/x; $DATA is not filled in"),
    (
        "data.blend",
        "[a, b]",
        "data.blend.0 is a; give a mapping of options, such as {path: PREFIX}",
    ),
    ("data.blend", "[[a]]", "data.blend.0 is [a]; give a mapping of options"),
    ("data.blend", "{path: a}", "data.blend is {'path': 'a'}; give a list"),
    ("data.blend", "", "data.blend is none; give a list"),
    ("data.blend", "[{path: a, weight: true}]", "data.blend.0.weight is true; give a number"),
]


@pytest.mark.parametrize(("name", "text", "message"), REFUSED_WORDS)
def test_a_word_that_cannot_be_meant_is_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run([], {name: text})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


WRONG: list[Any] = [
    "x",
    "",
    "1.5",
    None,
    True,
    1.5,
    float("nan"),
    [1],
    [None],
    {},
    {"a": 1},
    [{}],
    b"x",
]
JARGON = re.compile(
    r"(?i)\binput\b|\bvalid (?!YAML)|instance|dictionary|unable|pydantic|<class|pathlib"
)
LEAVES = [name.removeprefix("run.") for name, _, _ in leaf_options(RunConfig(), "run")]


@pytest.mark.parametrize("name", LEAVES)
def test_no_option_answers_in_the_words_of_the_validator(name: str) -> None:
    refused = []
    for value in WRONG:
        try:
            load_run([], {name: value})
        except ConfigError as error:
            refused.append(str(error))
    assert len(refused) >= 5
    assert not [said for said in refused if JARGON.search(said) or "\n" in said or name not in said]


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}]"
    for before, name in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)
MERGE_BOMB = "a: &a {x: 1}\n" + "\n".join(
    f"{name}: &{name} {{<<: [*{before}, *{before}, *{before}, *{before}]}}"
    for before, name in zip("abcdefghijklm", "bcdefghijklmn", strict=True)
)
REFUSED_RECIPES = [
    ("train: {output: 12345}", "train.output is 12345, which YAML reads as a number. Put quotes"),
    ("train: {output: 2026-11-25}", "which YAML reads as a date"),
    ("train: {output: [a]}", "train.output is ['a'], which YAML reads as a list"),
    ("train: {output: {a: b}}", "which YAML reads as a mapping"),
    ("train: {output: |\n  /x\n  }", "is not valid YAML"),
    ("train:\n  output: |\n    /x\n", "train.output is '/x\\n'; take away the white space"),
    ("train: {output: $SCRATCH/x}", "$SCRATCH is not filled in here"),
    ("train: {output: }", "train.output is none"),
    ("train: {steps: true}", "train.steps is true; give a number"),
    ("optimizer: {lr: yes}", "optimizer.lr is true; give a number"),
    ("optimizer: {lr: .inf}", "optimizer.lr is inf; it must be a finite number"),
    ("train: {steps: 1}\ntrain: {seed: 1}", "train stands twice in the mapping of line 1"),
    ("train: {steps: 1, steps: 2}", "steps stands twice"),
    ("train.steps: 5", "train.steps is one key; in a recipe write train: {steps: ...}"),
    ("1: 2", "1 is not an option"),
    ("train: {1: 2}", "train.1 is not an option"),
    ("? [a]\n: b", "is not valid YAML"),
    (BOMB, "its aliases stand for more than 100,000 values"),
    (MERGE_BOMB, "its aliases stand for more than 100,000 values"),
    ("a: &a [*a]", "its aliases stand for more than 100,000 values"),
    ("train: &a {x: *a}", "its aliases stand for more than 100,000 values"),
    ("[" * 5000, "it is nested too deeply"),
    ("a: " + "x" * 2**20, "is larger than 1 MiB. Give a YAML file"),
    ("train: {steps: " + "9" * 30 + "}", "train.steps has 30 digits"),
    ("train: {steps: " + "9" * 5000 + "}", "is not valid YAML: it holds a number of"),
    ("train: {steps: 2026-13-45}", "is not valid YAML: month must be in"),
    ("train: {resume: !!bool perhaps}", "a value is not what its tag says"),
    ("train: {steps: !!int ''}", "a value is not what its tag says"),
    ("train: {output: !!python/object/apply:os.getcwd []}", "could not determine a constructor"),
    ("train: {output: !!binary eA==}", "which YAML reads as"),
    ("model: {language: {layers: 1000000000}}", "layers is 1000000000; it must be at most 10000"),
    ("model: {language: {vocab_size: 1000000000}}", "it must be at most 100000000"),
    ("model: {vision: {layers: 1000000000}}", "it must be at most 10000"),
    ("parallel: {pipeline: 1000000000}", "it must be at most 100000000"),
    ("data: {workers: 1000000000}", "and at most 1024"),
]


@pytest.mark.parametrize(
    ("recipe", "message"), REFUSED_RECIPES, ids=lambda item: str(item)[:40].replace("\n", " ")
)
@pytest.mark.timeout(20)
def test_a_recipe_that_cannot_be_meant_is_refused(
    recipe: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(recipe, tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_aliases_within_reason_are_fine(tmp_path: Path) -> None:
    recipe = "train: {trainable: &parts [connector, language], load_parts: *parts}"
    assert load(recipe, tmp_path).train.load_parts == ("connector", "language")


def test_home_is_expanded_in_recipes_and_lists(tmp_path: Path) -> None:
    config = load("data: {blend: [{path: ~/pairs}]}\ntrain: {load: ~/a}", tmp_path)
    assert config.data.blend[0].path == HOME / "pairs"
    assert config.train.load == HOME / "a"


MEANT = {
    "optimizer.lr": "lr learning-rate train.learning_rate train.lr learning_rate peak_lr",
    "train.global_batch": "train.batch_size global-batch-size gradient_accumulation_steps",
    "train.micro_batch": "micro-batch-size per_device_train_batch_size",
    "train.epochs": "epochs train.num_train_epochs num_epochs max_epochs",
    "train.steps": "max_steps train-iters train.iterations max_train_steps train-samples",
    "train.save_every": "save_steps save-interval",
    "train.keep_last": "save_total_limit",
    "train.output": "output_dir save logging_dir",
    "train.load": "load model_name_or_path pretrain_mm_mlp_adapter finetune",
    "train.trainable": "tune_mm_mlp_adapter tune_language_model freeze_backbone freeze",
    "train.phase": "train.stage",
    "train.precision": "bf16 fp16 params-dtype torch_dtype",
    "train.recompute": "gradient_checkpointing recompute-granularity recompute-activations",
    "train.resume": "resume_from_checkpoint overwrite_output_dir",
    "train.timeout_minutes": "ddp_timeout distributed-timeout-minutes",
    "train.validate_every": "eval_steps eval-interval",
    "optimizer.clip_grad": "max_grad_norm clip-grad gradient_clip_val",
    "optimizer.decay": "lr_scheduler_type lr-decay-style",
    "optimizer.warmup_fraction": "warmup_ratio warmup_steps lr-warmup-fraction lr-warmup-iters",
    "optimizer.weight_decay": "weight_decay weight-decay wd",
    "optimizer.beta1": "adam_beta1 adam-beta1",
    "optimizer.epsilon": "adam_epsilon adam-eps",
    "optimizer.min_lr": "min-lr",
    "parallel.tensor": "tp tensor-model-parallel-size tensor_parallel_size",
    "parallel.pipeline": "pp pipeline-model-parallel-size",
    "parallel.context": "context-parallel-size",
    "parallel.virtual": "num-layers-per-virtual-pipeline-stage",
    "parallel.sequence": "sequence-parallel",
    "model.language.width": "hidden-size model.hidden_size",
    "model.language.layers": "num-layers num_hidden_layers",
    "model.language.heads": "num-attention-heads",
    "model.language.kv_heads": "num-query-groups num_key_value_heads",
    "model.language.ffn": "ffn-hidden-size intermediate_size",
    "model.language.max_positions": "max-position-embeddings",
    "model.language.tied_embeddings": "untie-embeddings-and-output-weights",
    "model.vision.width": "model.vision.hidden_size",
    "model.vision.layers": "model.vision.num_hidden_layers",
    "model.vision.image_size": "vision_resolution img-h",
    "model.vision.image_mode": "image_aspect_ratio",
    "model.connector.kind": "mm_projector_type model.connector_type",
    "model.language.rope.scaling": "rope_scaling model.language.rope.kind model.language.rope.type",
    "parallel.connector_placement": "connector_parallel parallel.connector",
    "model.connector.queries": "num_query_tokens model.connector.num_queries",
    "model.connector.cross_attention_every": "cross_attention_frequency",
    "data.blend": "data_path data-path data_mixture train_file",
    "data.sequence_length": "data.seq_len seq-length model_max_length cutoff_len",
    "data.tokenizer": "tokenizer-model tokenizer_name",
    "data.workers": "dataloader_num_workers num-workers",
    "data.packing": "packing sequence_packing",
    "data.seed": "data_seed",
}
"""Names of Hugging Face's Trainer, of Megatron-LM, LLaVA, VILA and others, and of haste."""


@pytest.mark.parametrize(
    ("given", "meant"),
    [(given, meant) for meant, names in MEANT.items() for given in names.split()],
)
def test_the_fields_usual_names_point_to_ours(given: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{given} is not an option\. Did you mean {meant}\?$"):
        load_run([], {given: "1"})
    with pytest.raises(ConfigError, match=rf"^--{given} is not .*\. Did you mean --{meant}\?$"):
        PARSER.parse_args([f"--{given}", "1"])


def test_a_section_is_no_option() -> None:
    first = "--model.language.rope.scaling, --model.language.rope.factor"
    with pytest.raises(
        ConfigError, match=rf"rope is not an option, but a section: {first}, .*_positions\.$"
    ):
        PARSER.parse_args(["--model.language.rope", "3"])
    with pytest.raises(
        ConfigError, match=r"model is not .* section: .*vision\.layers and others\.$"
    ):
        PARSER.parse_args(["--model", "3"])


def test_usual_names_lead_to_options_and_to_one_each() -> None:
    options = {name.removeprefix("run.") for name, _, _ in leaf_options(RunConfig(), "run")}
    assert set(_USUAL_NAMES) <= options
    others = [other for names in _USUAL_NAMES.values() for other in names.split()]
    assert len(set(others)) == len(others)
    assert not set(others) & {option.rpartition(".")[2] for option in options}
