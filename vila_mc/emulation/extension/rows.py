"""Moving rows: samples of different lengths into a batch and back, padding, transposing.

Source: pytorch/csrc/extensions/attention.cpp, common/fused_attn/kv_cache.cu,
pytorch/csrc/extensions/padding.cpp, transpose.cpp.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def convert_thd_to_bshd(tensor: Tensor, cu_seqlens: Tensor, b: int, max_seq_len: int) -> Tensor:
    """[t, a, d] of samples that end at ``cu_seqlens`` [b + 1] -> [b, max_seq_len, a, d], and 0."""
    out = tensor.new_zeros(b, max_seq_len, *tensor.shape[1:])
    ends = cu_seqlens.tolist()
    for row in range(b):
        start, end = ends[row], ends[row + 1]
        out[row, : end - start] = tensor[start:end]
    return out


def convert_bshd_to_thd(tensor: Tensor, cu_seqlens: Tensor, t: int) -> Tensor:
    """The way back; ``t`` positions in all."""
    out = tensor.new_zeros(t, *tensor.shape[2:])
    ends = cu_seqlens.tolist()
    for row in range(tensor.shape[0]):
        start, end = ends[row], ends[row + 1]
        out[start:end] = tensor[row, : end - start]
    return out


def swap_first_dims(tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The first two axes exchanged."""
    result = tensor.transpose(0, 1).contiguous()
    return result if out is None else out.copy_(result)


def fused_multi_row_padding(
    input: Tensor,
    output: Tensor,
    input_row_list: Sequence[int],
    padded_input_row_list: Sequence[int],
) -> None:
    """Groups of rows, each followed by zeros up to its padded count."""
    parts = torch.split(input, list(input_row_list))
    for part, place in zip(parts, torch.split(output, list(padded_input_row_list)), strict=True):
        place.zero_()
        place[: len(part)] = part


def fused_multi_row_unpadding(
    input: Tensor,
    output: Tensor,
    input_row_list: Sequence[int],
    unpadded_input_row_list: Sequence[int],
) -> None:
    """The way back."""
    parts = torch.split(input, list(input_row_list))
    for part, place in zip(parts, torch.split(output, list(unpadded_input_row_list)), strict=True):
        place.copy_(part[: len(place)])
