"""Safetensors on disk: read a directory of shards, write one. Pickled weights are never opened."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vila_mc.errors import CheckpointError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        CheckpointError: the file is missing, or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"there is no {path}. Give the directory of a Hugging Face model."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object. Fetch it again.")
    return content


def read_weights(directory: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face model directory.

    Raises:
        CheckpointError: there are no safetensors, or a file is missing or damaged.
    """
    if (directory / INDEX).exists():
        shards = sorted(set(read_json(directory / INDEX).get("weight_map", {}).values()))
    elif (directory / WEIGHTS).exists():
        shards = [WEIGHTS]
    else:
        raise CheckpointError(_explain_absence(directory))
    state: dict[str, Tensor] = {}
    for shard in shards:
        state.update(_read_shard(directory / shard))
    return state


def write_weights(
    state: Mapping[str, Tensor], directory: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """Write tensors as one safetensors file, or as shards with an index when they are large.

    Args:
        state: names and tensors, on any device.
        directory: an existing directory.
        dtype: number format to write.
        max_shard_bytes: most bytes of tensors in one file; a larger tensor gets a file of its own.

    Raises:
        CheckpointError: a file cannot be written.
    """
    shards = _plan_shards(state, dtype.itemsize, max_shard_bytes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        is_single = len(shards) == 1
        file = WEIGHTS if is_single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        # A copy of one shard at a time: tensors may be views of one another, which safetensors
        # refuses.
        tensors = {
            name: state[name].detach().to("cpu", dtype, copy=True).contiguous() for name in names
        }
        try:
            save_file(tensors, directory / file, metadata={"format": "pt"})
        except SafetensorError as error:
            raise CheckpointError(
                f"{directory / file} cannot be written: {error}. Free some space or write to "
                "another disk."
            ) from None
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(tensor.numel() for tensor in state.values()) * dtype.itemsize
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _plan_shards(
    state: Mapping[str, Tensor], itemsize: int, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in state.items():
        size = tensor.numel() * itemsize
        if shards[-1] and filled + size > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _read_shard(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no {path}, which the index names. Fetch it.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise CheckpointError(
            f"{path} is damaged or cut short ({error}). Fetch or export it again."
        ) from None


def _explain_absence(directory: Path) -> str:
    pickles = sorted(path.name for path in directory.glob("*.bin"))
    if pickles:
        return (
            f"{directory} holds {pickles[0]}, a pickle, which can run code when it is opened and "
            "is never read. Use the safetensors of the model, or convert it where you trust it."
        )
    return f"{directory} holds neither {WEIGHTS} nor {INDEX}. Give a Hugging Face model directory."
