"""A T5 for a run: loaded from a folder or made from sizes, checked against the tokenizer, placed on the mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from idgenrec_jax.config import ModelConfig
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.host_memory import give_back_freed_memory
from idgenrec_jax.models.huggingface import load_t5, read_config, resolve_folder
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.sharding import check_heads, parameter_sharding, parameter_shardings

VOCABULARY_MULTIPLE = 128
# T5-small has 242 million, the preset `tiny` 19.
_LARGE_BYTES = 100_000_000

_OWN_TOKENIZER = "give the tokenizer that belongs to the weights with --config.data.tokenizer"


@dataclasses.dataclass(frozen=True)
class Model:
    """A T5 taken apart for jitted functions: `nnx.merge(graphdef, params)` puts it together again."""

    config: T5Config
    graphdef: nnx.GraphDef
    params: Any
    pretrained: bool


def create_model(config: ModelConfig, tokenizer: Tokenizer, mesh: Mesh, *, seed: int, section: str) -> Model:
    """Return the model that `--config.SECTION` describes, with its parameters on the mesh.

    Beside a large one the process gives back memory that it frees (see host_memory.py).

    Raises:
        InputError: the folder or name cannot be loaded, its vocabulary does not fit the tokenizer, or an axis of the
            mesh does not divide a parameter or the heads.
    """
    t5_config = described_config(config, tokenizer, section=section)
    check_heads(mesh, t5_config.num_heads, section)
    graphdef, shapes = abstract_model(t5_config)
    if sum(shape.size * shape.dtype.itemsize for shape in jax.tree.leaves(shapes)) > _LARGE_BYTES:
        give_back_freed_memory()
    if config.folder:
        model = load_t5(
            _folder(config, section),
            compute_dtype=config.compute_dtype,
            rematerialise=config.rematerialise,
            dropout_rate=config.dropout_rate,
            shardings=lambda path, shape: parameter_sharding(mesh, path, shape),
        )
        graphdef, params = nnx.split(model, nnx.Param)
        return Model(model.config, graphdef, params, pretrained=True)

    def initial_params():
        return nnx.split(T5(t5_config, rngs=nnx.Rngs(seed)), nnx.Param)[1]

    params = jax.jit(initial_params, out_shardings=parameter_shardings(mesh, shapes))()
    return Model(t5_config, graphdef, params, pretrained=False)


def described_config(config: ModelConfig, tokenizer: Tokenizer, *, section: str) -> T5Config:
    """Return the shape of the T5 that `--config.SECTION` describes; no weights are read.

    Raises:
        InputError: the folder or name has no T5's configuration, or its vocabulary does not fit the tokenizer.
    """
    if config.folder:
        found = dataclasses.replace(
            read_config(_folder(config, section)),
            compute_dtype=config.compute_dtype,
            rematerialise=config.rematerialise,
            dropout_rate=config.dropout_rate,
        )
        _check_vocabulary(found, tokenizer, f"--config.{section}.folder={config.folder}", way_out=_OWN_TOKENIZER)
        return found
    found = random_config(config, tokenizer)
    place = f"--config.{section}.vocab_size={config.vocab_size}"
    _check_vocabulary(found, tokenizer, place, way_out="set it to 0 to follow the tokenizer")
    return found


def random_config(config: ModelConfig, tokenizer: Tokenizer) -> T5Config:
    """Return the T5 of the given sizes; a `vocab_size` of 0 becomes the tokenizer's, rounded up to 128."""
    values = dataclasses.asdict(config)
    values.pop("folder")
    values["vocab_size"] = config.vocab_size or -(-tokenizer.size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    return T5Config(
        **values,
        pad_token_id=tokenizer.pad_id,
        eos_token_id=tokenizer.eos_id,
        decoder_start_token_id=tokenizer.pad_id,
    )


def abstract_model(config: T5Config) -> tuple[nnx.GraphDef, Any]:
    """Return the graphdef of a T5 and the shapes of its parameters, without allocating any."""
    return nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))), nnx.Param)


def _folder(config: ModelConfig, section: str) -> Path:
    flag = f"--config.{section}.folder"
    return resolve_folder(config.folder, flag=flag, random_flag=f"{flag}= (empty)")


def _check_vocabulary(config: T5Config, tokenizer: Tokenizer, place: str, *, way_out: str) -> None:
    if config.vocab_size < tokenizer.size:
        raise InputError(
            f"{place}: its embedding table has {config.vocab_size} rows, the tokenizer has {tokenizer.size} tokens; "
            f"{way_out}"
        )
    found = (config.pad_token_id, config.eos_token_id)
    if found != (tokenizer.pad_id, tokenizer.eos_id):
        raise InputError(
            f"{place}: its padding and end tokens are {found}, the tokenizer's are "
            f"{(tokenizer.pad_id, tokenizer.eos_id)}; {way_out}"
        )
