"""What can be refused before any rank is started."""

from pathlib import Path

from vila_mc.checkpoint.adapters import require_same_adapters
from vila_mc.checkpoint.base_place import base_directory
from vila_mc.checkpoint.directories import resolve_checkpoint
from vila_mc.checkpoint.manifest import Manifest
from vila_mc.config.run import RunConfig
from vila_mc.topology.layout import Layout
from vila_mc.topology.stage_plan import plan_stages
from vila_mc.train.learning import what_will_not_learn
from vila_mc.train.micro_batch import with_micro_batch
from vila_mc.train.resume import checkpoint_to_resume


def check_before_launch(config: RunConfig, world_size: int) -> None:
    """Refuse what needs neither ranks nor weights to be seen as wrong.

    Raises:
        VilaError: the layout, a dataset or the checkpoint to start from cannot be used.
    """
    config.train.check_load()
    config, _ = with_micro_batch(config, Layout.of(config.parallel, world_size))
    config.check_world(world_size)
    plan_stages(config.model, config.parallel)
    starts: list[Path | None] = []
    if config.train.load is not None:
        directory = resolve_checkpoint(config.train.load)
        manifest = Manifest.read(directory)
        parts = config.train.load_parts
        manifest.require_same_model(config, directory, parts, may_grow=True)
        require_same_adapters(manifest.config.lora, config.lora, directory, parts)
        starts.append(directory)
    if config.train.epochs is None:
        starts.append(checkpoint_to_resume(config))

    from vila_mc.data.batches.datasets import open_blend, open_validation  # numpy: not before here
    from vila_mc.data.batches.held_out import learnt_parts, validation_parts

    readers = open_blend(config.data, config.model)
    held = readers if config.data.held_out else ()
    learnt_parts(config.data, readers)
    validation_parts(config.data, (*open_validation(config.data, config.model), *held))
    if config.train.epochs is not None:
        from vila_mc.train.passes import with_steps

        starts.append(checkpoint_to_resume(with_steps(config, readers)))
    for start in starts:
        if start is not None:
            base_directory(start, Manifest.read(start))
    what_will_not_learn(config, [reader.manifest for reader in readers])
    from vila_mc.observe.sinks import require_packages

    require_packages(config)
    # Last, because it creates the directory.
    from vila_mc.checkpoint.retention import check_writable

    check_writable(config.train.output)
