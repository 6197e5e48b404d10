"""LoRA adapters on Megatron-Core's split linear layers, of torch and of Transformer Engine.

An adapter is split as its layer is, so that no rank holds more of it than it needs and what crosses
ranks is as narrow as the rank of the adapter:

- column-parallel: A is whole on every rank and B has the rows of the outputs that the rank holds.
  With sequence parallelism A sees the rank's positions, and its outputs are gathered.
- row-parallel: A has the columns of the inputs that the rank holds and B is whole. The outputs of A
  are summed over ranks, or summed and scattered along the sequence, where the layer does so.

Source:
    LoRA, arXiv 2106.09685.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
)
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)
from torch import Tensor, nn
from torch.nn import functional as F

from vila_mc.config.lora import (
    ADAPTABLE,
    AdaptableLayer,
    AdaptedPart,
    LoraConfig,
    adapter_names,
)

if TYPE_CHECKING:
    from vila_mc.model.vila_model import VilaModel


def with_adapters(layer: ModuleSpec, part: AdaptedPart, lora: LoraConfig) -> ModuleSpec:
    """A transformer layer whose linear layers have the adapters of ``lora``; changed in place."""
    attention, mlp = layer.submodules.self_attention, layer.submodules.mlp
    feed_forward = _adapted_submodules("mlp", mlp.keywords["submodules"], part, lora)
    layer.submodules.mlp = partial(mlp.func, **(mlp.keywords | {"submodules": feed_forward}))
    attention.submodules = _adapted_submodules("self_attention", attention.submodules, part, lora)
    return layer


def _adapted_submodules(block: str, submodules: Any, part: AdaptedPart, lora: LoraConfig) -> Any:
    """What attention or feed-forward is made of, those of its linear layers adapted that are."""
    builders = {
        name: partial(
            _adapted(getattr(submodules, name)), adaptable=adaptable, part=part, lora=lora
        )
        for adaptable in ADAPTABLE[part]
        for of_block, name in [adaptable.name.split(".")]
        if of_block == block and set(adaptable.targets) & set(lora.targets_of(part))
    }
    return dataclasses.replace(submodules, **builders)


def start_adapters(stage: "VilaModel", seed: int) -> None:
    """Give the adapters of a stage their first values, and have them learn.

    B is zero, so that the model computes what it did without them; A is uniform within
    1 / sqrt(inputs), as PEFT has it, by the seed, the layer and the projection alone: the same at
    every layout.
    """
    for name, module in stage.named_modules():
        if isinstance(module, AdaptedLinear):
            module.start(f"{seed} {_in_whole_model(name, stage)}")


@torch.no_grad()
def fold_adapters(stage: "VilaModel") -> None:
    """Add to every weight what its adapters compute, and have them compute nothing, on one rank."""
    for module in stage.modules():
        if isinstance(module, AdaptedLinear):
            module.fold()


def _in_whole_model(name: str, stage: "VilaModel") -> str:
    """The name of a module with layers counted over all stages."""
    prefix = "language.decoder.layers."
    if not name.startswith(prefix):
        return name
    layer, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{stage.plan.layers[int(layer)]}.{rest}"


class AdaptedLinear(nn.Module):
    """What a linear layer of Megatron-Core becomes that has adapters; mixed into its class."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        adaptable: AdaptableLayer,
        part: AdaptedPart,
        lora: LoraConfig,
        config: TransformerConfig,
        tp_group: torch.distributed.ProcessGroup,
        **options: Any,
    ) -> None:
        super().__init__(input_size, output_size, config=config, tp_group=tp_group, **options)  # type: ignore[call-arg]
        self._lora, self._adaptable, self._group = lora, adaptable, tp_group
        self._targets = [t for t in adaptable.targets if t in lora.targets_of(part)]
        self._is_sequence_split = config.sequence_parallel
        self._inputs, ranks = input_size, tp_group.size()
        rows = _rows_of_targets(adaptable, config, output_size)
        self._groups = config.num_query_groups // ranks if len(rows) == 3 else 1
        self._rows = [count // ranks // self._groups for count in rows.values()]
        # Transformer Engine has the norm in front of such a layer within it.
        self._is_behind_its_norm = hasattr(self, "layer_norm_weight")
        if self._is_behind_its_norm:
            self.return_layernorm_output = True
        is_column, rank = adaptable.splits_output, lora.rank
        assert rank is not None
        for target in self._targets:
            inputs = input_size if is_column else input_size // ranks
            outputs = rows[target] // ranks if is_column else rows[target]
            a_name, b_name = adapter_names(target)
            a, b = (
                nn.Parameter(torch.empty(shape, dtype=config.params_dtype))
                for shape in ((rank, inputs), (outputs, rank))
            )
            split, whole = (b, a) if is_column else (a, b)
            set_tensor_model_parallel_attributes(split, True, 0 if is_column else 1, 1)
            # Each rank's gradient of it comes from the positions it has: Megatron sums them.
            whole.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
            self.register_parameter(a_name, a)
            self.register_parameter(b_name, b)

    weight: nn.Parameter

    @torch.no_grad()
    def start(self, where: str) -> None:
        """First values, which follow from ``where`` alone; from now on the adapters learn."""
        for target in self._targets:
            a, b = self._factors(target)
            digest = hashlib.sha256(f"{where} {target}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
            bound = 1 / math.sqrt(self._inputs)
            whole = torch.empty(a.size(0), self._inputs).uniform_(
                -bound, bound, generator=generator
            )
            if not self._adaptable.splits_output:
                whole = whole.chunk(self._group.size(), dim=1)[self._group.rank()]
            a.copy_(whole)
            b.zero_()
            a.requires_grad_()
            b.requires_grad_()

    def fold(self) -> None:
        """Add to the weight what the adapters make of every single input, and set B to zero."""
        one_by_one = torch.eye(self._inputs).unsqueeze(1)
        nothing = torch.zeros(self._inputs, 1, self.weight.size(0))
        self.weight.data += self._sum(nothing, self._added(one_by_one)).squeeze(1).T
        for target in self._targets:
            self._factors(target)[1].zero_()

    def forward(self, input_sbi: Tensor) -> tuple[Tensor, Tensor | None]:
        """[s, b, inputs], split as the layer takes them -> its outputs with the adapters', bias."""
        output, bias, seen = self._base(input_sbi)
        return self._sum(output, self._added(self._dropped(seen))), bias

    def _added(self, seen: Tensor) -> dict[str, Tensor]:
        """What is added to the outputs of each projection."""
        a = torch.cat([self._factors(target)[0] for target in self._targets])
        low = self._lora.scale() * F.linear(seen, a)  # [s, b, targets * rank]
        parts = self._across_ranks(low).chunk(len(self._targets), dim=-1)
        return {
            target: F.linear(part, self._factors(target)[1])
            for target, part in zip(self._targets, parts, strict=True)
        }

    def _base(self, input_sbi: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Outputs and bias of the layer itself, and what its weight has been multiplied with."""
        returned = super().forward(input_sbi)
        if not self._is_behind_its_norm:
            output, bias = returned
            return output, bias, input_sbi
        if len(returned) == 3:
            output, bias, normed = returned
        else:
            (output, normed), bias = returned
        return output, bias, normed

    def _dropped(self, input_sbi: Tensor) -> Tensor:
        if not self.training or not self._lora.dropout:
            return input_sbi
        # Ranks that hold different inputs must not drop alike, those that hold the same must.
        is_shared = self._adaptable.splits_output and not self._is_sequence_split
        draw = contextlib.nullcontext() if is_shared else get_cuda_rng_tracker().fork()
        with draw:
            return F.dropout(input_sbi, self._lora.dropout)

    def _across_ranks(self, low: Tensor) -> Tensor:
        """Outputs of A as B needs them, with the gradient that A then gets."""
        if self._adaptable.splits_output:
            if self._is_sequence_split:
                gathered: Tensor = gather_from_sequence_parallel_region(low, group=self._group)
                return gathered
            return copy_to_tensor_model_parallel_region(low, group=self._group)  # type: ignore[no-any-return]
        reduce = (
            reduce_scatter_to_sequence_parallel_region
            if self._is_sequence_split
            else reduce_from_tensor_model_parallel_region
        )
        summed: Tensor = reduce(low, group=self._group)
        return summed

    def _sum(self, output: Tensor, added: Mapping[str, Tensor]) -> Tensor:
        """Outputs of the layer, ``added`` at the places of its projections."""
        if len(self._rows) == 1:
            return output + added[self._targets[0]]
        parts = self._by_group(output).split(self._rows, dim=-1)  # type: ignore[no-untyped-call]
        summed = [
            part + self._by_group(added[target]) if target in added else part
            for target, part in zip(self._adaptable.targets, parts, strict=True)
        ]
        return torch.cat(summed, dim=-1).flatten(-2)

    def _by_group(self, output: Tensor) -> Tensor:
        """[..., rows] -> [..., groups, rows of one]: attention's projections are interleaved."""
        return output.reshape(*output.shape[:-1], self._groups, -1)

    def _factors(self, target: str) -> tuple[nn.Parameter, nn.Parameter]:
        a_name, b_name = adapter_names(target)
        return getattr(self, a_name), getattr(self, b_name)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The layer's own, with adapters split as they are; it takes them for whole."""
        metadata = ensure_metadata_has_dp_cp_group(metadata)
        described: dict[str, Any] = super().sharded_state_dict(prefix, sharded_offsets, metadata)  # type: ignore[misc]
        split = dict(self._split_factors())
        axis = 0 if self._adaptable.splits_output else 1
        described |= make_sharded_tensors_for_checkpoint(
            split,
            prefix,
            dict.fromkeys(split, axis),
            sharded_offsets,
            tp_group=self._group,
            dp_cp_group=metadata["dp_cp_group"],
        )
        return described

    def _split_factors(self) -> Iterator[tuple[str, Tensor]]:
        for target in self._targets:
            name = adapter_names(target)[1 if self._adaptable.splits_output else 0]
            yield name, getattr(self, name)


@cache
def _adapted(kind: type[nn.Module]) -> type[nn.Module]:
    """A linear layer of Megatron-Core with adapters: still one of its kind to all who ask."""
    return type(f"Adapted{kind.__name__}", (AdaptedLinear, kind), {})


def _rows_of_targets(
    adaptable: AdaptableLayer, config: TransformerConfig, output_size: int
) -> dict[str, int]:
    """Outputs of each projection in a layer, over all tensor-parallel ranks."""
    if len(adaptable.targets) < 3:
        each = output_size // len(adaptable.targets)
        return dict.fromkeys(adaptable.targets, each)
    head, groups = config.kv_channels, config.num_query_groups
    counts = (config.num_attention_heads * head, groups * head, groups * head)
    return dict(zip(adaptable.targets, counts, strict=True))
