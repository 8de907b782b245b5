"""Counted operations against those that XLA counts in the compiled programs, and parameters against the model's."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from idgenrec_jax.models import operations
from idgenrec_jax.models.t5 import T5, T5Config

BATCH, SOURCE, TARGET = 8, 64, 32


@pytest.fixture(scope="module", params=["relu", "gated-gelu"])
def config(request):
    return T5Config(
        vocab_size=512, d_model=64, d_kv=16, d_ff=256, num_layers=3, num_decoder_layers=2, num_heads=4,
        feed_forward=request.param, tie_word_embeddings=request.param == "relu",
    )  # fmt: skip


def compiled_operations(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def test_encoder_and_decoder_need_what_xla_counts(config):
    graphdef, params = nnx.split(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    source = jnp.ones((BATCH, SOURCE), jnp.int32)
    target = jnp.ones((BATCH, TARGET), jnp.int32)
    encoded = jnp.ones((BATCH, SOURCE, config.d_model))

    def encode(params):
        return nnx.merge(graphdef, params).encode(source, source > 0)

    def decode(params):
        model = nnx.merge(graphdef, params)
        return model.logits(model.decode(target, encoded, source > 0))

    # XLA also counts norms, softmax and masks; operations.py counts products only.
    expected = operations.encoder_operations(config, BATCH * SOURCE, SOURCE)
    assert expected < compiled_operations(encode, params) < 1.15 * expected
    expected = (
        operations.cross_operations(config, BATCH * SOURCE)
        + operations.decoder_operations(config, BATCH * TARGET, TARGET, SOURCE)
        + operations.output_operations(config, BATCH * TARGET)
    )
    assert expected < compiled_operations(decode, params) < 1.15 * expected


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_scoring_a_tree_needs_what_xla_counts(config, layers):
    config = replace(config, num_decoder_layers=layers)
    graphdef, params = nnx.split(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    tokens, outputs = jnp.ones((1, TARGET), jnp.int32), jnp.arange(0, TARGET, 2)
    encoded, mask = jnp.ones((BATCH, SOURCE, config.d_model)), jnp.ones((BATCH, SOURCE), bool)
    keys_values = nnx.merge(graphdef, params).encoder_keys_values(encoded)

    def decode(params, keys_values):
        return nnx.merge(graphdef, params).decode(tokens, keys_values, mask, wanted=outputs)

    expected = BATCH * operations.tree_operations(
        config, positions=TARGET, outputs=len(outputs), edges=0, length=TARGET, source=SOURCE
    )
    # Of one row, not of all: keys and values of self-attention, and up to the queries of cross-attention.
    rows = len(outputs) if layers == 1 else TARGET
    width = config.num_heads * config.d_kv
    first = TARGET * 4 * config.d_model * width + rows * (6 * config.d_model + 4 * TARGET) * width
    assert expected + first < compiled_operations(decode, params, keys_values) < 1.15 * (expected + first)


def test_parameters_are_those_of_the_model_without_norms_and_position_biases(config):
    params = nnx.state(T5(config, rngs=nnx.Rngs(0)), nnx.Param)
    buckets = config.relative_attention_num_buckets * config.num_heads
    matrices = [leaf.size for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert operations.parameter_count(config) == sum(matrices) - 2 * buckets


def test_bytes_grow_with_what_is_read(config):
    weights = operations.parameter_count(config)
    assert operations.training_bytes(config, 3) == 3 * weights * 40
    one = operations.decoding_bytes(config, steps=1, users=0, source=0)
    decoder = [leaf.size for leaf in jax.tree.leaves(nnx.state(T5(config, rngs=nnx.Rngs(0)).decoder, nnx.Param))]
    matrices = sum(size for size in decoder if size > config.relative_attention_num_buckets * config.num_heads)
    assert one == 4 * (matrices + config.vocab_size * config.d_model)
    keys = config.num_decoder_layers * 2 * config.num_heads * config.d_kv * 4
    assert operations.decoding_bytes(config, steps=2, users=5, source=7) == 2 * (one + 5 * 7 * keys)
