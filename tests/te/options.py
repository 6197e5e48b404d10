"""What the options of FP8 come to in the layers of a model. Imported under emulation alone."""

from pathlib import Path
from typing import Any

from megatron.core.transformer.module import MegatronModule
from transformer_engine.pytorch.quantization import FP8GlobalStateManager

from tests.parity.layout_trace import Trace
from tests.support.tiny import tiny_microbatches, tiny_run
from vila_mc.checkpoint.load import load_weights
from vila_mc.checkpoint.whole import weightless_model
from vila_mc.model.build import build_stages
from vila_mc.model.vila_model import VilaModel
from vila_mc.parallel.groups import Ranks, distributed
from vila_mc.train.step import Trainer

Facts = dict[str, dict[str, Any]]
_OF_A_RECIPE = ("margin", "amax_history_len", "amax_compute_algo")


def in_layers(parallel: dict[str, Any], options: list[dict[str, Any]]) -> list[Facts]:
    """For each set of options what computed a step in FP8: by layer, the recipe of its products."""
    with distributed(tiny_run(parallel=parallel).parallel, seed=1, timeout_minutes=2) as ranks:
        return [_facts(_trained(ranks, parallel, each)) for each in options]


def _trained(ranks: Ranks, parallel: dict[str, Any], options: dict[str, Any]) -> list[VilaModel]:
    trainer = _trainer(ranks, parallel, options)
    at, layout = ranks.at, ranks.layout
    trainer.step(tiny_microbatches(trainer.config, at.data, layout.data)[:2])
    return trainer.stages


def _trainer(
    ranks: Ranks, parallel: dict[str, Any], options: dict[str, Any], seed: Path | None = None
) -> Trainer:
    FP8GlobalStateManager.reset()  # it is one for all models of a process
    config = tiny_run(parallel=parallel, train=_section(options))
    stages = build_stages(config, ranks)
    if seed is not None:
        load_weights(seed, stages)
    return Trainer(config, ranks, stages)


def _section(options: dict[str, Any]) -> dict[str, Any]:
    return {"layers": "transformer_engine", "precision": "bf16", "fp8": options}


def _facts(stages: list[VilaModel]) -> Facts:
    found: Facts = {}
    for stage in stages:
        for part in ("vision", "language"):
            tower: Any = getattr(stage, part)
            for layer in [] if tower is None else tower.decoder.layers:
                facts = [
                    _of_a_module(module)
                    for module in layer.modules()
                    if getattr(module, "fp8_initialized", False)
                ]
                assert all(each == facts[0] for each in facts)
                if facts:
                    found[f"{part}.{layer.layer_number - 1}"] = facts[0]
    return found


def _of_a_module(module: Any) -> dict[str, Any]:
    recipe = module.fp8_meta["recipe"]
    found = {name: getattr(recipe, name) for name in _OF_A_RECIPE if hasattr(recipe, name)}
    if "scaling_fwd" in module.fp8_meta and hasattr(module.fp8_meta["scaling_fwd"], "amax_history"):
        found["rows"] = len(module.fp8_meta["scaling_fwd"].amax_history)
    return found | {"recipe": type(recipe).__name__, "format": recipe.fp8_format.name}


def with_caches(seed: Path, options: dict[str, Any]) -> dict[str, Trace]:
    """Traces with copies of weights as they are kept, made anew in each pass, and never again."""
    forward, begin_step = VilaModel.forward, MegatronModule.set_is_first_microbatch

    def anew_in_each_pass(stage: VilaModel, *args: Any, **kwargs: Any) -> Any:
        stage.set_is_first_microbatch()
        return forward(stage, *args, **kwargs)

    ways: dict[str, tuple[type, str, Any]] = {
        "kept": (VilaModel, "forward", forward),
        "anew": (VilaModel, "forward", anew_in_each_pass),
        # Megatron-Core's schedules call it as well, where the language model is in FP8.
        "stale": (MegatronModule, "set_is_first_microbatch", lambda module: None),
    }
    traces = {}
    with distributed(tiny_run().parallel, seed=1) as ranks:
        for way, (kind, attribute, value) in ways.items():
            setattr(kind, attribute, value)
            traces[way] = _trace(seed, ranks, options)
            VilaModel.forward = forward  # type: ignore[method-assign]
            MegatronModule.set_is_first_microbatch = begin_step
    return traces


def _trace(seed: Path, ranks: Ranks, options: dict[str, Any]) -> Trace:
    """Of three steps of three microbatches."""
    trainer = _trainer(ranks, {}, options, seed)
    batches = tiny_microbatches(trainer.config, 0, 1)[:3]
    results = [trainer.step(batches) for _ in range(3)]
    return [(result.loss, result.grad_norm) for result in results]


def asked_of_a_run(options: dict[str, Any]) -> list[str]:
    """What a model that answers has of Transformer Engine, of a run that trained in FP8."""
    with weightless_model(tiny_run(train=_section(options))) as model:
        kinds = {type(module) for module in model.modules()}
    names = {f"{kind.__module__}.{kind.__name__}" for kind in kinds}
    return sorted(name for name in names if "transformer_engine" in name)
