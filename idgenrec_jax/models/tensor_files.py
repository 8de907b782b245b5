"""Named tensors in a folder of weights, read piece by piece: safetensors, or PyTorch's own format.

The files are memory-mapped. Nothing is read before a piece of a tensor is asked for, and what is returned belongs to
the caller, so that whoever places tensors one at a time never holds the model twice.
"""

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from idgenrec_jax.errors import InputError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where transformers keeps weights, in the order in which they are looked for."""

FLOATING = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: `file` and `name` say where, `shape` how large, `dtype` as safetensors spells it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str
    _piece: Callable[[tuple[slice, ...]], Any]

    def read(self, index: tuple[slice, ...]) -> Float[np.ndarray, "..."]:
        """The elements at `index`, one slice per axis, as float32 in memory of their own.

        Raises InputError for a tensor of integers or of a quantised type.
        """
        if self.dtype not in FLOATING:
            expected = ", ".join(FLOATING)
            raise InputError(
                f"{self.file}: tensor {self.name} has dtype {self.dtype}, expected one of {expected}; "
                "save the model without quantisation"
            )
        return np.array(self._piece(index), dtype=np.float32)


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights in `folder`, an index first where there are several.

    Raises InputError where there are no weights, or an index cannot be read or names a file that is missing.
    """
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: no weights found; expected one of {', '.join(WEIGHT_FILES)}")
    if path.suffix != ".json":
        return [path]
    files = [folder / name for name in sorted(set(_read_weight_map(path).values()))]
    for file in files:
        if not file.is_file():
            raise InputError(f"{file}: file not found, but the index of weights names it; fetch the missing file")
    return [path, *files]


@contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, StoredTensor]]:
    """All tensors of the weights in `folder` by name; they can be read until the context ends.

    Raises InputError where there are no weights, where a file cannot be read, or where an index and its files differ.
    """
    path, *shards = weight_files(folder)
    with ExitStack() as stack:
        if not shards:
            yield _open_file(path, stack)
            return
        tensors = {}
        weight_map = _read_weight_map(path)
        opened = {shard: _open_file(shard, stack) for shard in shards}
        for name, file_name in weight_map.items():
            shard = opened[folder / file_name]
            if name not in shard:
                raise InputError(f"{path}: tensor {name} should be in {file_name}, which has no tensor of that name")
            tensors[name] = shard[name]
        yield tensors


def _read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a checkpoint in several files."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        weight_map = {name: str(file_name) for name, file_name in found.items()}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it a file that you may read") from error
    # Not with repr: that of a decoding error holds the whole file.
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not an index of weights ({error}); expected an object 'weight_map'") from error
    if not weight_map:
        raise InputError(f"{path}: not an index of weights, for it names no tensor; fetch or save it again")
    return weight_map


def _open_file(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """The tensors of one file, which stays open as long as `stack`."""
    return _open_safetensors(path, stack) if path.suffix == ".safetensors" else _open_torch(path)


def _open_safetensors(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file."""
    try:
        handle = stack.enter_context(safe_open(path, framework="numpy"))
        pieces = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error}); fetch or save it again") from error
    return {
        name: StoredTensor(path, name, tuple(piece.get_shape()), piece.get_dtype(), piece.__getitem__)
        for name, piece in pieces.items()
    }


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a PyTorch checkpoint; only tensors are unpickled, never code."""
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading this format needs PyTorch; convert it to model.safetensors or install torch"
        ) from error
    try:
        # Files older than PyTorch 1.6 are no zip archives and cannot be mapped.
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    # What a damaged file may hold is without end, and so is what PyTorch raises for it.
    except Exception as error:
        reason = str(error).split("\n")[0] or type(error).__name__
        raise InputError(f"{path}: not a readable PyTorch checkpoint ({reason}); fetch or save it again") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise InputError(f"{path}: expected a dictionary from names to tensors, found {type(tensors).__name__}")
    dtypes = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

    def piece(tensor: torch.Tensor) -> Callable[[tuple[slice, ...]], Any]:
        return lambda index: tensor[index].detach().to(torch.float32).numpy()

    return {
        name: StoredTensor(path, name, tuple(tensor.shape), dtypes.get(tensor.dtype, str(tensor.dtype)), piece(tensor))
        for name, tensor in tensors.items()
    }
