"""One safetensors file, written tensor by tensor.

The safetensors package takes all tensors of a file at once. The format is a little-endian length, a
JSON header and the bytes of the tensors, so a file can be written as they come.

Source:
    https://github.com/huggingface/safetensors#format
"""

import json
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor

from vila_mc.checkpoint.direct_file import DirectFile
from vila_mc.topology.shapes import Shape

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


class SafetensorsWriter(AbstractContextManager["SafetensorsWriter"]):
    """A file whose tensors are known by name and shape, and arrive in that order.

    Args:
        path: the file to make.
        shapes: what will be written.
        dtype: number format of all tensors: float32 or bfloat16.
    """

    def __init__(self, path: Path, shapes: Mapping[str, Shape], dtype: torch.dtype) -> None:
        self._shapes = shapes
        self._dtype = dtype
        header = json.dumps(self._header(), separators=(",", ":")).encode()
        header += b" " * (-len(header) % _ALIGNMENT)
        self._file = DirectFile(path, 8 + len(header) + self._num_bytes())
        self._file.write(struct.pack("<Q", len(header)) + header)

    def _num_bytes(self) -> int:
        numbers = sum(torch.Size(shape).numel() for shape in self._shapes.values())
        return numbers * self._dtype.itemsize

    def _header(self) -> dict[str, object]:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for name, shape in self._shapes.items():
            end = begin + torch.Size(shape).numel() * self._dtype.itemsize
            header[name] = {
                "dtype": _NAMES[self._dtype],
                "shape": list(shape),
                "data_offsets": [begin, end],
            }
            begin = end
        return header

    def write(self, name: str, tensor: Tensor) -> None:
        """Append the next tensor."""
        assert tuple(tensor.shape) == self._shapes[name], f"{name} is {list(tensor.shape)}"
        values = tensor.detach().to("cpu", self._dtype).contiguous()
        self._file.write(values.reshape(-1).view(torch.uint8).numpy())

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)
