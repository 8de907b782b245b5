"""A T5 of this package from tensors under transformers' names, and the searches on it, jitted."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from safetensors.numpy import save_file

from idgenrec_jax.decoding.beam import BeamResult, constrained_beam_search, narrow_steps
from idgenrec_jax.decoding.trie import Trie
from idgenrec_jax.models.huggingface import load_t5
from idgenrec_jax.models.t5 import T5


def build_model(tensors: dict[str, np.ndarray], folder: Path) -> T5:
    """The model that the tensors of torch_reference.reference_model belong to, saved in `folder` and loaded from it."""
    tied = "lm_head.weight" not in tensors
    query = tensors["encoder.block.0.layer.0.SelfAttention.q.weight"]
    num_heads = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape[1]
    config = {
        "model_type": "t5",
        "vocab_size": tensors["shared.weight"].shape[0],
        "d_model": query.shape[1],
        "d_kv": query.shape[0] // num_heads,
        "d_ff": tensors["encoder.block.0.layer.1.DenseReluDense.wo.weight"].shape[1],
        "num_layers": 1,
        "num_decoder_layers": 1,
        "num_heads": num_heads,
        "feed_forward_proj": "relu" if tied else "gated-gelu",
        "tie_word_embeddings": tied,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, folder / "model.safetensors")
    return load_t5(folder)


def start(
    model: T5, tokens: Array, mask: Array, num_beams: int, num_positions: int, group_size: int | None = None
) -> tuple[Any, Any]:
    """The step and the empty cache for a search on these prompts."""
    cache = model.start_decoding(
        model.encode(tokens, mask), mask, num_beams=num_beams, group_size=group_size, max_length=num_positions
    )

    def step(last: Array, position: Array, cache: Any) -> tuple[Array, Any]:
        hidden, written = model.decode_step(last, position, cache)
        return model.logits(hidden), written

    return step, cache


@partial(jax.jit, static_argnames=("graphdef", "num_beams", "num_positions"))
def _search(
    params: Any, tokens: Array, mask: Array, trie: Trie, length_penalty: Array, *, graphdef: Any, num_beams: int,
    num_positions: int,
) -> BeamResult:
    step, cache = start(nnx.merge(graphdef, params), tokens, mask, num_beams, num_positions)
    return constrained_beam_search(
        step,
        cache,
        trie,
        batch_size=tokens.shape[0],
        num_beams=num_beams,
        num_results=num_beams,
        start_token_id=0,
        length_penalty=length_penalty,
        narrow=narrow_steps(num_beams),
    )


def search_items(
    model: T5, tokens: np.ndarray, mask: np.ndarray, trie: Trie, num_beams: int, length_penalty: float
) -> BeamResult:
    """The items of the constrained search, with as many results as beams, as numpy arrays."""
    graphdef, params = nnx.split(model, nnx.Param)
    result = _search(
        params, jnp.asarray(tokens), jnp.asarray(mask), trie, jnp.float32(length_penalty), graphdef=graphdef,
        num_beams=num_beams, num_positions=16,
    )
    return jax.tree.map(np.asarray, result)


def assert_same_items(found: BeamResult, items: np.ndarray, scores: np.ndarray) -> None:
    """Same items in the same order, scores within 1e-4; items with scores within 1e-5 may stand in either order."""
    is_item = items >= 0
    np.testing.assert_array_equal(found.items >= 0, is_item)
    np.testing.assert_array_equal(np.isneginf(found.scores), ~is_item)
    np.testing.assert_allclose(found.scores[is_item], scores[is_item], atol=1e-4, rtol=0)
    for row, place in np.argwhere(found.items != items):
        others = np.flatnonzero(items[row] == found.items[row, place])
        assert len(others) == 1, (found.items[row], items[row])
        assert abs(scores[row, place] - scores[row, others[0]]) < 1e-5, (found.items[row], items[row])
