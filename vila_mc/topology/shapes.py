"""Every parameter of every pipeline stage: its name, its shape, and how it is shared out.

The model builder does not read this; a parity test compares it with what is built.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vila_mc.config.lora import AdaptedPart, LoraConfig, adapter_names
from vila_mc.config.model import LanguageConfig, ModelConfig, VisionConfig
from vila_mc.topology.stage_plan import StagePlan

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a stage, over all of its tensor-parallel ranks together."""

    name: str
    """In the whole model: layers are counted over all stages."""
    shape: Shape
    split_axis: int | None = None
    """The axis that tensor-parallel ranks share; each holds the whole parameter if None."""
    blocks: int = 1
    """Blocks along the split axis that are shared one by one: two where gate and up are one."""
    is_copy: bool = False
    """Whether it must be kept equal to the embedding, of which it is a copy on another stage."""

    def local_shape(self, tensor: int) -> Shape:
        """What one of ``tensor`` tensor-parallel ranks holds."""
        return tuple(
            size // tensor if axis == self.split_axis else size
            for axis, size in enumerate(self.shape)
        )


NO_ADAPTERS = LoraConfig()
"""Of a model that is trained without LoRA."""


def stage_parameters(
    model: ModelConfig,
    plan: StagePlan,
    lora: LoraConfig = NO_ADAPTERS,
    *,
    splits_connector: bool = False,
) -> tuple[Parameter, ...]:
    """The parameters of one (virtual) pipeline stage, in the order in which it holds them.

    Args:
        model: the whole model's shape.
        plan: what the stage holds.
        lora: the adapters beside its layers.
        splits_connector: as ``RunConfig.splits_connector`` says.
    """
    connector = _connector(model, is_split=splits_connector)
    vision = (*_vision(model.vision, lora), *connector) if plan.has_vision else ()
    return (*vision, *_language(model.language, plan, lora))


def model_parameters(model: ModelConfig, lora: LoraConfig = NO_ADAPTERS) -> tuple[Parameter, ...]:
    """The parameters of a whole model on one stage."""
    layers = range(model.language.layers)
    whole = StagePlan(layers=layers, has_vision=True, has_embedding=True, has_head=True)
    return stage_parameters(model, whole, lora)


def _vision(vision: VisionConfig, lora: LoraConfig) -> Iterator[Parameter]:
    family, width = vision.facts(), vision.width
    adapters = _Adapters(lora, "vision")
    if family.class_tokens:
        yield Parameter("vision.class_token", (1, family.class_tokens, width))
    if family.pre_norm:
        yield from _affine("vision.ln_pre", (width,))
    yield Parameter("vision.conv1.weight", (width, 3, vision.patch_size, vision.patch_size))
    if family.patch_bias:
        yield Parameter("vision.conv1.bias", (width,))
    yield Parameter("vision.position_embeddings.weight", (vision.positions(), width))
    for layer in range(vision.built_layers()):
        at = f"vision.decoder.layers.{layer}"
        yield from _affine(f"{at}.input_layernorm", (width,))
        yield Parameter(f"{at}.self_attention.linear_proj.weight", (width, width), 1)
        yield Parameter(f"{at}.self_attention.linear_proj.bias", (width,))
        yield from adapters.row(f"{at}.self_attention.linear_proj", width, {"out_proj": width})
        yield from _affine(f"{at}.self_attention.linear_qkv", (3 * width, width), 0)
        qkv = dict.fromkeys(("q_proj", "k_proj", "v_proj"), width)
        yield from adapters.column(f"{at}.self_attention.linear_qkv", width, qkv)
        yield from _affine(f"{at}.pre_mlp_layernorm", (width,))
        yield from _affine(f"{at}.mlp.linear_fc1", (vision.ffn, width), 0)
        yield from adapters.column(f"{at}.mlp.linear_fc1", width, {"fc1": vision.ffn})
        yield Parameter(f"{at}.mlp.linear_fc2.weight", (width, vision.ffn), 1)
        yield Parameter(f"{at}.mlp.linear_fc2.bias", (width,))
        yield from adapters.row(f"{at}.mlp.linear_fc2", vision.ffn, {"fc2": width})


def _connector(model: ModelConfig, *, is_split: bool) -> Iterator[Parameter]:
    for layer in model.connector_layers():
        for part, shape in layer.parameters().items():
            axis = layer.split_axis(part) if is_split else None
            yield Parameter(f"connector.{layer.name}.{part}", shape, axis)


def _language(language: LanguageConfig, plan: StagePlan, lora: LoraConfig) -> Iterator[Parameter]:
    width, table = language.width, (language.padded_vocab(), language.width)
    if plan.has_embedding:
        yield Parameter("language.embedding.word_embeddings.weight", table, 0)
    for layer in plan.layers:
        yield from _language_layer(f"language.decoder.layers.{layer}", language, lora)
    if plan.has_head:
        yield Parameter("language.decoder.final_layernorm.weight", (width,))
        is_copy = language.tied_embeddings
        if not (is_copy and plan.has_embedding):
            yield Parameter("language.output_layer.weight", table, 0, is_copy=is_copy)


def _language_layer(at: str, language: LanguageConfig, lora: LoraConfig) -> Iterator[Parameter]:
    family, width, head = language.facts(), language.width, language.resolved_head_width()
    query, key = language.heads * head, language.kv_heads * head
    adapters = _Adapters(lora, "language")
    yield Parameter(f"{at}.input_layernorm.weight", (width,))
    yield Parameter(f"{at}.self_attention.linear_proj.weight", (width, query), 1)
    yield from adapters.row(f"{at}.self_attention.linear_proj", query, {"o_proj": width})
    yield Parameter(f"{at}.self_attention.linear_qkv.weight", (query + 2 * key, width), 0)
    if family.qkv_bias:
        yield Parameter(f"{at}.self_attention.linear_qkv.bias", (query + 2 * key,), 0)
    qkv = {"q_proj": query, "k_proj": key, "v_proj": key}
    yield from adapters.column(f"{at}.self_attention.linear_qkv", width, qkv)
    if family.qk_norm:
        yield Parameter(f"{at}.self_attention.q_layernorm.weight", (head,))
        yield Parameter(f"{at}.self_attention.k_layernorm.weight", (head,))
    yield Parameter(f"{at}.pre_mlp_layernorm.weight", (width,))
    yield Parameter(f"{at}.mlp.linear_fc1.weight", (2 * language.ffn, width), 0, blocks=2)
    gate_up = dict.fromkeys(("gate_proj", "up_proj"), language.ffn)
    yield from adapters.column(f"{at}.mlp.linear_fc1", width, gate_up)
    yield Parameter(f"{at}.mlp.linear_fc2.weight", (width, language.ffn), 1)
    yield from adapters.row(f"{at}.mlp.linear_fc2", language.ffn, {"down_proj": width})


@dataclass(frozen=True, slots=True)
class _Adapters:
    """The adapters of a part, beside a layer with these inputs and outputs of each projection."""

    lora: LoraConfig
    part: AdaptedPart

    def column(self, layer: str, inputs: int, outputs: Mapping[str, int]) -> Iterator[Parameter]:
        """Of a column-parallel layer: tensor-parallel ranks share the rows of B."""
        yield from self._factors(layer, inputs, outputs, None, 0)

    def row(self, layer: str, inputs: int, outputs: Mapping[str, int]) -> Iterator[Parameter]:
        """Of a row-parallel layer: tensor-parallel ranks share the columns of A."""
        yield from self._factors(layer, inputs, outputs, 1, None)

    def _factors(
        self,
        layer: str,
        inputs: int,
        outputs: Mapping[str, int],
        a_axis: int | None,
        b_axis: int | None,
    ) -> Iterator[Parameter]:
        rank, adapted = self.lora.rank, self.lora.targets_of(self.part)
        for target in outputs:
            if rank is not None and target in adapted:
                a, b = adapter_names(target)
                yield Parameter(f"{layer}.{a}", (rank, inputs), a_axis)
                yield Parameter(f"{layer}.{b}", (outputs[target], rank), b_axis)


def _affine(at: str, shape: Shape, split_axis: int | None = None) -> Iterator[Parameter]:
    """A weight, and a bias as long as its first axis."""
    yield Parameter(f"{at}.weight", shape, split_axis)
    yield Parameter(f"{at}.bias", shape[:1], split_axis)
