"""Will everything that is to learn get a gradient?"""

from collections.abc import Sequence

from vila_mc.config.run import RunConfig
from vila_mc.data.indexed.dataset_manifest import DatasetManifest
from vila_mc.errors import DataError


def need_images(config: RunConfig) -> list[str]:
    """What is to learn and gets a gradient through images alone, as ``train.trainable`` names it.

    It names a language model, or a piece of one, by ``language`` at the beginning. Adapters of the
    tower are ``vision``.
    """
    named = [name for name in config.train.trainable if name.split(".")[0] != "language"]
    return named + [part for part in config.lora.parts() if part != "language"]


def what_will_not_learn(config: RunConfig, datasets: Sequence[DatasetManifest]) -> list[str]:
    """A line for each part that the data can teach nothing, where another part still learns.

    Raises:
        DataError: nothing at all would be learnt.
    """
    idle = need_images(config)
    if not idle or any(dataset.images for dataset in datasets):
        return []
    named = f"train.trainable [{', '.join(config.train.trainable)}]"
    named += " with the adapters of lora" if config.lora.parts() else ""
    if len(idle) == len(config.train.trainable) + len(config.lora.parts()):
        raise DataError(
            f"no dataset of data.blend holds an image, so {named} would learn nothing. Add a "
            "dataset with images, or train the language model too."
        )
    return [
        f"no dataset of data.blend holds an image, so {part} of {named} learns nothing"
        for part in idle
    ]
