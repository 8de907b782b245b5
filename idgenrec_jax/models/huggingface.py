"""T5 checkpoints of Hugging Face transformers, in and out.

One table maps parameter paths to transformers' tensor names and serves both directions. Weights go from the mapped
file into the sharding asked for, one tensor at a time.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from jax import Array
from jax.sharding import Sharding
from safetensors.numpy import save_file

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import expand_home, write_json
from idgenrec_jax.models.t5 import FEED_FORWARDS, T5, T5Config
from idgenrec_jax.models.tensor_files import WEIGHT_FILES, StoredTensor, open_tensors

SHARD_BYTES = 5 * 10**9
"""The size of a file of weights beyond which another is begun, as in transformers."""

ShardingRule = Callable[[str, tuple[int, ...]], Sharding]
"""From a parameter path ("encoder/blocks/0/self_attention/query/kernel") and its shape to its sharding."""

# Parameter path -> tensor name, and whether the tensor is stored transposed: PyTorch keeps linear kernels as
# [outputs, inputs]. `q`, `k`, `v`, `o` are the first letters of query, key, value and output.
TENSOR_NAMES = (
    (r"shared/table", r"shared.weight", False),
    (r"lm_head/table", r"lm_head.weight", False),
    (
        r"(\w+)/position_bias/table",
        r"\1.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        False,
    ),
    (r"(\w+)/final_norm/scale", r"\1.final_layer_norm.weight", False),
    (r"(\w+)/blocks/(\d+)/self_attention_norm/scale", r"\1.block.\2.layer.0.layer_norm.weight", False),
    (r"(\w+)/blocks/(\d+)/self_attention/(\w)\w*/kernel", r"\1.block.\2.layer.0.SelfAttention.\3.weight", True),
    (r"(\w+)/blocks/(\d+)/cross_attention_norm/scale", r"\1.block.\2.layer.1.layer_norm.weight", False),
    (r"(\w+)/blocks/(\d+)/cross_attention/(\w)\w*/kernel", r"\1.block.\2.layer.1.EncDecAttention.\3.weight", True),
    (r"encoder/blocks/(\d+)/feed_forward_norm/scale", r"encoder.block.\1.layer.1.layer_norm.weight", False),
    (r"decoder/blocks/(\d+)/feed_forward_norm/scale", r"decoder.block.\1.layer.2.layer_norm.weight", False),
    (
        r"encoder/blocks/(\d+)/feed_forward/(\w+)/kernel",
        r"encoder.block.\1.layer.1.DenseReluDense.\2.weight",
        True,
    ),
    (
        r"decoder/blocks/(\d+)/feed_forward/(\w+)/kernel",
        r"decoder.block.\1.layer.2.DenseReluDense.\2.weight",
        True,
    ),
)

# Other names of the shared table: which of the tied names a file keeps depends on the library that wrote it.
SHARED_TABLE_NAMES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Rows of tables that are compared at a time.
_ROWS = 4096
# Early conversions carry a bias table that cross-attention has never used.
UNUSED_NAME = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"

INTEGER_FIELDS = {
    "vocab_size": None,
    "d_model": None,
    "d_kv": None,
    "d_ff": None,
    "num_layers": None,
    "num_heads": None,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}
"""Fields of config.json that hold integers, with transformers' default where a config may leave the field out."""

MODEL_TYPES = ("t5", "mt5")
"""Families of one architecture; mT5's output states are never scaled."""

_FAMILIES = "give a T5, T5 v1.1, Flan-T5 or mT5"

FLOAT_FIELDS = {"dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0}


def tensor_name(path: str) -> tuple[str, bool]:
    """transformers' name of the parameter at `path` ("a/b/c"), and whether it is stored transposed."""
    for pattern, name, transposed in TENSOR_NAMES:
        match = re.fullmatch(pattern, path)
        if match:
            return match.expand(name), transposed
    raise KeyError(f"no tensor name for parameter {path}")


def read_config(folder: str | Path) -> T5Config:
    """The model's shape from `folder`/config.json, with compute dtype float32.

    Raises InputError naming the file and the field where a field is missing, of the wrong type or unsupported.
    """
    path = Path(expand_home(folder)) / "config.json"
    values = _read_json_object(path)
    model_type = values.get("model_type", "t5")
    if model_type not in MODEL_TYPES:
        expected = " or ".join(map(repr, MODEL_TYPES))
        raise InputError(f"{path}: field model_type is {model_type!r}, expected {expected}; {_FAMILIES}")
    if not _boolean(path, values, "is_encoder_decoder", True):
        raise InputError(f"{path}: field is_encoder_decoder is false, expected true; give an encoder-decoder T5")
    feed_forward = values.get("feed_forward_proj", "gated-gelu" if model_type == "mt5" else "relu")
    if feed_forward not in FEED_FORWARDS:
        expected = " or ".join(map(repr, FEED_FORWARDS))
        raise InputError(f"{path}: field feed_forward_proj is {feed_forward!r}, expected {expected}; {_FAMILIES}")
    integers = {field: _number(path, values, field, default, int) for field, default in INTEGER_FIELDS.items()}
    floats = {field: _number(path, values, field, default, float) for field, default in FLOAT_FIELDS.items()}
    # transformers 4 says `tie_word_embeddings: false` for a model whose output states are not scaled. transformers 5
    # always writes true there and says `scale_decoder_outputs: false`. It scales nothing in an mT5, whatever is said.
    tied = _boolean(path, values, "tie_word_embeddings", True) and _boolean(path, values, "scale_decoder_outputs", True)
    tied = tied and model_type != "mt5"
    try:
        return T5Config(
            **integers,
            **floats,
            num_decoder_layers=_number(path, values, "num_decoder_layers", integers["num_layers"], int),
            feed_forward=feed_forward,
            tie_word_embeddings=tied,
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def load_t5(
    folder: str | Path,
    *,
    compute_dtype: str = "float32",
    rematerialise: str = "none",
    dropout_rate: float | None = None,
    shardings: ShardingRule | None = None,
) -> T5:
    """The T5 in `folder` (config.json and weights, see tensor_files.WEIGHT_FILES), parameters in float32.

    `rematerialise` is that of T5Config; `dropout_rate` replaces the rate in config.json. With `shardings` every
    parameter is read straight into its sharding, each device's part by itself; without, onto the default device. Raises
    InputError naming the file, the tensor, and the shape found and expected where weights and config do not fit.
    """
    folder = Path(expand_home(folder))
    config = replace(read_config(folder), compute_dtype=compute_dtype, rematerialise=rematerialise)
    if dropout_rate is not None:
        config = replace(config, dropout_rate=dropout_rate)
    abstract = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))
    graphdef, parameters = nnx.split(abstract, nnx.Param)
    flat = {_joined(path): (path, variable) for path, variable in nnx.to_flat_state(parameters)}
    with open_tensors(folder) as stored:
        sources = _match(folder, config, {path: variable.shape for path, (_, variable) in flat.items()}, stored)
        loaded = []
        for name, (path, variable) in flat.items():
            sharding = None if shardings is None else shardings(name, variable.shape)
            array = _place(sources[name], variable.shape, tensor_name(name)[1], sharding)
            loaded.append((path, variable.replace(array)))
    return nnx.merge(graphdef, nnx.from_flat_state(loaded))


def save_t5(
    model: T5, folder: str | Path, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> None:
    """Writes config.json and weights in `dtype` ("float32" or "bfloat16") for T5ForConditionalGeneration.

    Weights of more than `shard_bytes` go into several files of at most that size (or of one tensor) and an index. Only
    one file's tensors are in the host's memory at a time, and each is put together there: no device holds the whole.
    Creates `folder` if needed; every file appears under its name only when complete, config.json last.
    """
    folder = Path(expand_home(folder))
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {_joined(path): variable for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param))}
    kind = np.dtype(jnp.dtype(dtype))
    sizes = {path: int(np.prod(variable.shape)) * kind.itemsize for path, variable in parameters.items()}
    shards: list[list[str]] = [[]]
    for path, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(path)
    whole = WEIGHT_FILES[0]
    stem, suffix = whole.split(".")
    names = [whole] if len(shards) == 1 else [
        f"{stem}-{number:05d}-of-{len(shards):05d}.{suffix}" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    weight_map = {}
    for file, paths in zip(names, shards, strict=True):
        tensors = {}
        for path in paths:
            name, transposed = tensor_name(path)
            value = np.asarray(parameters[path][...])
            tensors[name] = np.ascontiguousarray((value.T if transposed else value).astype(kind))
            weight_map[name] = file
        temporary = folder / f"{file}.tmp"
        save_file(tensors, temporary, metadata={"format": "pt"})
        os.replace(temporary, folder / file)
    if len(shards) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        write_json(folder / f"{whole}.index.json", index)
    write_json(folder / "config.json", _config_fields(model.config, dtype))


def resolve_folder(folder_or_name: str | Path, *, flag: str, random_flag: str | None) -> Path:
    """A local folder as it is; anything else is fetched from the Hugging Face hub (or found in its local cache).

    `flag` is the flag that took `folder_or_name` and `random_flag` the one that asks for random initialisation, where
    there is one; the InputError for a name that cannot be had names both.
    """
    folder = Path(expand_home(folder_or_name))
    if folder.is_dir():
        return folder
    name = str(folder_or_name)
    way_out = f"give a local folder with {flag}"
    if random_flag is not None:
        way_out += f", or start from random weights with {random_flag}"
    if folder.exists() or name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{flag}={name}: no such folder; {way_out}")
    small = ["*.json", "spiece.model", "tokenizer*"]
    try:
        fetched = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*small, "model*.safetensors"]))
        if not any(fetched.glob("*.safetensors")):
            fetched = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*small, "pytorch_model*.bin"]))
    except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{flag}={name}: no such folder, nor to be had from the hub ({reason}); {way_out}") from error
    return fetched


def _match(
    folder: Path, config: T5Config, shapes: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The stored tensor of every parameter; InputError unless exactly the expected tensors are there, in shape."""
    sources, missing, known = {}, [], {*SHARED_TABLE_NAMES, UNUSED_NAME}
    if config.tie_word_embeddings:
        known.add("lm_head.weight")
    for path, shape in shapes.items():
        name, transposed = tensor_name(path)
        known.add(name)
        alternatives = (name, *_other_names(folder, config, name))
        candidates = [stored[other] for other in alternatives if other in stored]
        # A table of its own under the first name is no other name of the shared one.
        if name == "lm_head.weight":
            candidates = candidates[:1]
        if not candidates:
            missing.append(name)
            continue
        expected = shape[::-1] if transposed else shape
        for found in candidates:
            if found.shape != expected:
                raise InputError(
                    f"{found.file}: tensor {found.name} has shape {list(found.shape)}, "
                    f"expected {list(expected)} from config.json"
                )
            _check_one_table(folder, candidates[0], found)
        sources[path] = candidates[0]
    if missing:
        raise InputError(f"{folder}: the weights lack {_some(missing)}, which config.json asks for")
    surplus = sorted(set(stored) - known)
    if surplus:
        file = stored[surplus[0]].file
        raise InputError(f"{file}: unexpected {_some(surplus)}; config.json describes a T5 without it")
    return sources


def _other_names(folder: Path, config: T5Config, name: str) -> tuple[str, ...]:
    """Under which other names a file may hold the tensor `name`."""
    if name == "shared.weight":
        return (*SHARED_TABLE_NAMES, "lm_head.weight") if config.tie_word_embeddings else SHARED_TABLE_NAMES
    values = _read_json_object(folder / "config.json")
    if name == "lm_head.weight" and (
        not values.get("scale_decoder_outputs", True) or values.get("model_type") == "mt5"
    ):
        # transformers 5 stores one table when the two are equal, as in a model it made itself.
        return ("shared.weight", *SHARED_TABLE_NAMES)
    return ()


def _check_one_table(folder: Path, first: StoredTensor, other: StoredTensor) -> None:
    """Raises InputError unless two tensors that stand for one table hold the same numbers."""
    for start in range(0, 0 if first is other else first.shape[0], _ROWS):
        rows = (slice(start, min(start + _ROWS, first.shape[0])), slice(None))
        if np.array_equal(first.read(rows), other.read(rows), equal_nan=True):
            continue
        way_out = "save the model again with the table that it was trained with, under the first name alone"
        if other.name == "lm_head.weight":
            way_out = (
                'if the model was trained with an output table of its own, as T5 v1.1 is, set "tie_word_embeddings": '
                f"false in config.json; if not, {way_out}"
            )
        raise InputError(
            f"{other.file}: tensors {first.name} and {other.name} differ, but are one table by "
            f"{folder / 'config.json'}; {way_out}"
        )


def _place(stored: StoredTensor, shape: tuple[int, ...], transposed: bool, sharding: Sharding | None) -> Array:
    """A stored tensor as a device array of `shape` (our layout), each shard read by itself."""

    def read(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),) * len(shape)
        return np.ascontiguousarray(stored.read(index[::-1]).T) if transposed else stored.read(index)

    if sharding is None:
        return jax.device_put(read(None))
    return jax.make_array_from_callback(shape, sharding, read)


def _config_fields(config: T5Config, dtype: str) -> dict[str, Any]:
    """config.json's content for both transformers 4 and 5."""
    fields = {field: getattr(config, field) for field in (*INTEGER_FIELDS, *FLOAT_FIELDS)}
    return fields | {
        "architectures": ["T5ForConditionalGeneration"],
        "dtype": dtype,
        "feed_forward_proj": config.feed_forward,
        "is_encoder_decoder": True,
        "model_type": "t5",
        "num_decoder_layers": config.num_decoder_layers,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _read_json_object(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: file not found; give a folder that holds a T5 in Hugging Face format") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); make it a file that you may read") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); fetch or save it again") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: found a JSON {type(values).__name__}, expected an object of model fields")
    return values


def _number(path: Path, values: dict[str, Any], field: str, default: int | float | None, kind: type) -> Any:
    """A number of `kind` (int or float; an integer is a float too); absent and null mean `default`."""
    value = values.get(field)
    value = default if value is None else value
    if value is None:
        raise InputError(f"{path}: field {field} is missing, expected a number; give the config.json of a T5 model")
    fits = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    # Neither NaN, nor infinite, nor an integer that no float can hold.
    if not fits or not -(2**63) < value < 2**63:
        raise InputError(f"{path}: field {field} is {value!r}, expected {'an integer' if kind is int else 'a number'}")
    return kind(value)


def _boolean(path: Path, values: dict[str, Any], field: str, default: bool) -> bool:
    """A boolean field; absent means `default`."""
    value = values.get(field, default)
    if not isinstance(value, bool):
        raise InputError(f"{path}: field {field} is {value!r}, expected true or false")
    return value


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"tensor {', '.join(names[:3])}{more}"


def _joined(path: tuple[Any, ...]) -> str:
    """An nnx path as text, "a/b/c"."""
    return "/".join(map(str, path))
