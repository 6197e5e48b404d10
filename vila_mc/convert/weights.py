"""Weight files of Hugging Face: read tensor by tensor, written shard by shard.

Safetensors are mapped, not loaded. Pickles are opened only where the user trusts them, and even
then by an unpickler that knows tensors and nothing else.
"""

import errno
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vila_mc.checkpoint.lazy import LazyTensor, LazyTensors
from vila_mc.convert.safetensors_writer import SafetensorsWriter
from vila_mc.errors import CheckpointError
from vila_mc.foreign_files import (
    ForeignFileError,
    open_foreign,
    read_foreign,
    require_few_values,
)
from vila_mc.topology.shapes import Shape

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
_LARGEST_JSON = 2**28
"""Bytes. Vocabularies of a quarter million tokens take a tenth of it."""
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, is not a JSON object, or is larger than any is.
    """
    try:
        text = read_foreign(path, _LARGEST_JSON)
        require_few_values(text)
        content = json.loads(text.decode())
    except ForeignFileError as error:
        raise CheckpointError(f"{path} {error}. Fetch it again.") from None
    except FileNotFoundError:
        if (path.parent / _ADAPTER).exists():
            raise _not_merged(path.parent) from None
        raise CheckpointError(
            f"there is no {path}. Give the directory of a Hugging Face model."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object. Fetch it again.")
    return content


def open_weights(directory: Path, *, trust_pickle: bool = False) -> dict[str, LazyTensor]:
    """All tensors of a Hugging Face model directory, not read yet.

    Args:
        directory: holds safetensors, one file or shards with an index.
        trust_pickle: whether ``.bin`` files may be opened where there are no safetensors.

    Raises:
        CheckpointError: there are no weights, or it is not clear which are meant; a file is
            missing or damaged, or holds other tensors than its index says.
    """
    if (directory / _ADAPTER).exists():
        raise _not_merged(directory)
    files = _weight_files(directory, WEIGHTS, INDEX)
    open_file = open_safetensors
    if not files and trust_pickle:
        files = _weight_files(directory, *_PICKLES)
        open_file = _open_pickle
    if not files:
        raise _absent(directory)
    tensors: dict[str, LazyTensor] = {}
    for file, promised in files.items():
        found = open_file(directory / file)
        if promised is not None:
            _require_promised(directory / file, found, promised)
        tensors |= found
    return tensors


def write_weights(
    tensors: Iterable[tuple[str, Tensor]],
    shapes: Mapping[str, Shape],
    directory: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> None:
    """Write tensors as one safetensors file, or as shards with an index when they are large.

    Args:
        tensors: names and values in the order of ``shapes``; each is written and forgotten.
        shapes: names and shapes of all of them.
        directory: an existing directory.
        dtype: number format to write.
        max_shard_bytes: most bytes of tensors in one file; a larger tensor gets a file of its own.
    """
    shards = _plan_shards(shapes, dtype.itemsize, max_shard_bytes)
    arriving = iter(tensors)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        is_single = len(shards) == 1
        file = WEIGHTS if is_single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with SafetensorsWriter(directory / file, {n: shapes[n] for n in names}, dtype) as writer:
            for expected in names:
                name, tensor = next(arriving)
                assert name == expected, f"{name} comes before {expected}"
                writer.write(name, tensor)
        weight_map |= dict.fromkeys(names, file)
    assert next(arriving, None) is None, "there are more tensors than were announced"
    if len(shards) > 1:
        total = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan_shards(
    shapes: Mapping[str, Shape], itemsize: int, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        size = torch.Size(shape).numel() * itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _weight_files(directory: Path, single: str, index: str) -> dict[str, set[str] | None]:
    """The weight files, and the tensors that an index promises in each; None without an index."""
    has_single, where = (directory / single).exists(), directory / index
    if not where.exists():
        return {single: None} if has_single else {}
    weight_map: Any = read_json(where).get("weight_map")
    is_map = isinstance(weight_map, dict) and len(weight_map) > 0
    if not is_map or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{where} is damaged: no weight_map. Fetch it again.")
    files: dict[str, set[str] | None] = {}
    for file in sorted(set(weight_map.values())):
        if not file.isprintable() or file in ("", "..") or Path(file).name != file:
            raise CheckpointError(
                f"{where} names {ascii(file)[:80]}, outside its directory. Do not use it."
            )
        files[file] = {name for name, place in weight_map.items() if place == file}
    if has_single and list(files) != [single]:
        raise CheckpointError(
            f"{directory} holds {single} beside {index}, which names other files; only one of them "
            "can be the model. Remove what is left over of another."
        )
    return files


def _require_promised(path: Path, found: LazyTensors, promised: set[str]) -> None:
    """Refuse a file that holds other tensors than an index says. Raises CheckpointError."""
    for names, fault in (
        (promised - found.keys(), "lacks {}, which the index promises there"),
        (found.keys() - promised, "holds {}, which the index puts elsewhere or does not name"),
    ):
        if names:
            fault = fault.format(ascii(min(names))[1:-1])
            raise CheckpointError(f"{path} {fault}. Fetch all files again.")


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of one file, not read yet.

    Raises:
        CheckpointError: it is missing or damaged, or holds numbers of a kind that is not read.
    """
    try:
        open_foreign(path).close()
        shard: Any = safe_open(path, framework="pt")
    except ForeignFileError as error:
        raise CheckpointError(f"{path} {error}. Fetch it again.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}). Fetch or export it again."
        ) from None
    tensors = {}
    names: list[str] = shard.keys()
    for name in names:
        part: Any = shard.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is {part.get_dtype()}; only {', '.join(_DTYPES)} are read. Use "
                "weights that are not quantised."
            )
        tensors[name] = LazyTensor(
            tuple(part.get_shape()),
            _DTYPES[part.get_dtype()],
            lambda shard=shard, name=name: shard.get_tensor(name),  # type: ignore[misc]
        )
    return tensors


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    if error.errno in (errno.ENOENT, errno.ENAMETOOLONG):
        return CheckpointError(f"there is no {path}, which the index names. Fetch it.")
    return CheckpointError(f"{path} cannot be read: {error.strerror or error}.")


def _open_pickle(path: Path) -> dict[str, LazyTensor]:
    """A file of torch.save, mapped. It may hold tensors and plain containers, and nothing else."""
    try:
        open_foreign(path).close()
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError as error:
        raise _unreadable(path, error) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged, older than torch 1.6, or holds more than tensors ({first_line}). "
            "Use safetensors."
        ) from None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise CheckpointError(f"{path} does not hold a state dict. Use safetensors.")
    return {
        str(name): LazyTensor(tuple(tensor.shape), tensor.dtype, lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in state.items()
    }


def _not_merged(directory: Path) -> CheckpointError:
    return CheckpointError(
        f"{directory} holds an adapter ({_ADAPTER}) that is not merged into the weights. Merge it "
        "first; or import the model alone, and the adapter beside what that gives."
    )


def _absent(directory: Path) -> CheckpointError:
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    if pickles:
        return CheckpointError(
            f"{directory} holds {pickles[0]}, a pickle, which can run code when it is opened, and "
            "no safetensors. Use safetensors, or trust it if you know where it is from.",
            option="trust_pickle",
        )
    return CheckpointError(
        f"{directory} holds neither {WEIGHTS} nor {INDEX}. Give a Hugging Face model directory."
    )
