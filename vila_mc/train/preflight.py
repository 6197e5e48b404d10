"""What can be refused before any rank is started."""

from vila_mc.checkpoint.manifest import Manifest, resolve_checkpoint
from vila_mc.config.run import RunConfig
from vila_mc.errors import ConfigError
from vila_mc.topology.stage_plan import plan_stages


def check_before_launch(config: RunConfig, world_size: int) -> None:
    """Refuse what needs neither ranks nor weights to be seen as wrong.

    Raises:
        VilaError: the layout, the data or the checkpoint to start from cannot be used.
    """
    config.check_world(world_size)
    plan_stages(config.model, config.parallel)
    if not config.data.blend:
        raise ConfigError(
            "data.blend is empty. Name at least one indexed dataset: [{path: PREFIX, weight: 1}]."
        )
    if config.train.load is not None:
        Manifest.read(resolve_checkpoint(config.train.load))
