"""llm: the language model alone, as its family's own ...ForCausalLM of transformers."""

from pathlib import Path

from vila_mc.config.families import ImageMode
from vila_mc.convert.config_values import ConfigValues
from vila_mc.convert.families.registry import language_json
from vila_mc.convert.formats.export_source import ExportSource
from vila_mc.convert.formats.format import ForeignModel, Format
from vila_mc.convert.formats.registry import FormatName
from vila_mc.convert.names import Naming
from vila_mc.convert.proof.reloaded import LoadedModel, Loading, TransformersModel, load_model
from vila_mc.errors import CheckpointError
from vila_mc.files import write_json


class _Llm:
    name: FormatName = "llm"
    model_type = None
    sees_images = False
    has_own_code = False
    says_token_order = True
    naming = Naming(name, "", "", "", {})

    def write(self, source: ExportSource, directory: Path) -> None:
        language, token_ids = source.model.language, source.token_ids()
        source.write_weights(directory, [source.language_part()])
        source.tokenizer.write(directory, language.max_positions, processor=None, with_image=False)
        config = language_json(language) | {"dtype": source.dtype_name(), **token_ids}
        write_json(directory / "config.json", config)
        write_json(directory / "generation_config.json", source.generation_json())

    def read(
        self,
        directory: Path,
        config: ConfigValues,
        image_mode: ImageMode | None,
        *,
        trust_pickle: bool,
    ) -> ForeignModel:
        raise CheckpointError(
            f"{directory} holds a language model alone. Give it together with a vision tower."
        )

    def load(self, directory: Path, loading: Loading, vocab_size: int) -> LoadedModel:
        from transformers import AutoModelForCausalLM

        return TransformersModel(load_model(AutoModelForCausalLM, directory, loading), vocab_size)


FORMAT: Format = _Llm()
