"""T5 against transformers on PyTorch (live where installed, and through golden arrays), and against itself."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from idgenrec_jax.errors import InputError
from idgenrec_jax.models.huggingface import load_t5, tensor_name
from idgenrec_jax.models.t5 import T5, T5Config, shift_right

GOLDEN = Path(__file__).parent.parent / "golden"
VARIANTS = ("v1_0", "v1_1")
TOLERANCE = 1e-4
IGNORED = -100


@pytest.fixture(autouse=True)
def full_float32_products():
    """Accelerators shorten float32 products by default; parity is about the model, not about that."""
    with jax.default_matmul_precision("highest"):
        yield


def golden_model(variant: str, folder: Path, **options) -> tuple[T5, dict[str, np.ndarray]]:
    """The golden model, loaded through the ordinary loader, and the golden arrays."""
    arrays = dict(np.load(GOLDEN / f"t5_{variant}.npz"))
    (folder / "config.json").write_text(str(arrays["config"]))
    weights = {name.removeprefix("weight/"): array for name, array in arrays.items() if name.startswith("weight/")}
    save_file(weights, folder / "model.safetensors")
    return load_t5(folder, **options), arrays


@pytest.fixture(scope="module", params=VARIANTS)
def golden(request, tmp_path_factory):
    """Model and arrays of both variants."""
    return golden_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def golden_relu(tmp_path_factory):
    """Model and arrays of v1.0, for what does not depend on the variant."""
    return golden_model("v1_0", tmp_path_factory.mktemp("relu"))


def relative_difference(found, expected) -> float:
    """Norm of the difference over the norm of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def forward(model: T5, tokens, mask, decoder_tokens, **options):
    """Encoder output and logits."""
    encoded = model.encode(tokens, mask, **options)
    return encoded, model.logits(model.decode(decoder_tokens, encoded, mask, **options))


def loss_and_outputs(model: T5, tokens, mask, labels):
    """Mean cross-entropy over the labels that are not ignored, as transformers defines its loss."""
    decoder_tokens = shift_right(jnp.where(labels == IGNORED, 0, labels), 0)
    encoded, logits = forward(model, tokens, mask, decoder_tokens)
    real = labels != IGNORED
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(real, labels, 0)[..., None], -1)[..., 0]
    return -jnp.sum(scores * real) / jnp.sum(real), (encoded, logits)


def worst_differences(model: T5, expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Relative differences of encoder output, logits, loss and the gradient of every parameter."""
    graphdef, parameters = nnx.split(model, nnx.Param)
    mask = expected["mask"]

    @jax.jit
    def run(parameters):
        def loss(parameters):
            model = nnx.merge(graphdef, parameters)
            inputs = jnp.asarray(expected["tokens"]), jnp.asarray(mask), jnp.asarray(expected["labels"])
            return loss_and_outputs(model, *inputs)

        return jax.value_and_grad(loss, has_aux=True)(parameters)

    (loss, (encoded, logits)), gradients = run(parameters)
    differences = {
        "encoded": relative_difference(encoded[mask], expected["encoded"][mask]),
        "logits": relative_difference(logits, expected["logits"]),
        "loss": relative_difference(loss, expected["loss"]),
    }
    for path, gradient in nnx.to_flat_state(gradients):
        name, transposed = tensor_name("/".join(map(str, path)))
        reference = expected[f"gradient/{name}"]
        differences[name] = relative_difference(gradient[...], reference.T if transposed else reference)
    assert len(differences) == 3 + sum(name.startswith("gradient/") for name in expected)
    return differences


def test_golden_parity(golden):
    model, arrays = golden
    assert arrays["logits"].std() > 0.9
    differences = worst_differences(model, arrays)
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, (worst, differences[worst])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_live_parity_with_transformers(variant, tmp_path):
    pytest.importorskip("torch")
    from tests.golden import make_t5

    reference = make_t5.make_model(
        variant,
        seed=7,
        vocab_size=128,
        d_model=32,
        d_kv=8,
        num_heads=3,
        num_decoder_layers=2,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
    )
    reference.save_pretrained(tmp_path)
    inputs = make_t5.make_inputs(128, seed=7)
    differences = worst_differences(load_t5(tmp_path), inputs | make_t5.compute(reference, inputs))
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, (worst, differences[worst])


def test_padding_on_either_side_changes_nothing(golden_relu):
    model, arrays = golden_relu
    run = nnx.jit(forward_masked)
    random = np.random.default_rng(0)
    tokens, target = random.integers(2, 64, (2, 12)), random.integers(2, 64, (2, 5))
    ones = np.ones_like
    plain_encoded, plain = run(model, tokens, ones(tokens, bool), target, ones(target, bool))
    for source_pad, target_pad in (((0, 4), (0, 3)), ((4, 0), (3, 0))):
        # Padding is filled with a real token: what is there must not matter.
        padded = np.pad(tokens, ((0, 0), source_pad), constant_values=9)
        mask = np.pad(ones(tokens, bool), ((0, 0), source_pad))
        padded_target = np.pad(target, ((0, 0), target_pad), constant_values=9)
        target_mask = np.pad(ones(target, bool), ((0, 0), target_pad))
        encoded, logits = run(model, padded, mask, padded_target, target_mask)
        np.testing.assert_allclose(encoded[:, source_pad[0] : source_pad[0] + 12], plain_encoded, atol=1e-5)
        np.testing.assert_allclose(logits[:, target_pad[0] : target_pad[0] + 5], plain, atol=2e-5)


def forward_masked(model, tokens, mask, target, target_mask):
    """Encoder output and logits with a mask on both sides."""
    encoded = model.encode(tokens, mask)
    return encoded, model.logits(model.decode(target, encoded, mask, decoder_mask=target_mask))


def test_a_row_without_real_tokens_stays_finite(golden_relu):
    model, arrays = golden_relu
    mask = arrays["mask"].copy()
    mask[0] = False

    def total(model):
        encoded, logits = forward(model, jnp.asarray(arrays["tokens"]), jnp.asarray(mask), jnp.ones((3, 4), int))
        return jnp.sum(encoded**2) + jnp.sum(logits**2)

    value, gradients = nnx.jit(nnx.value_and_grad(total))(model)
    assert jnp.isfinite(value)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_embeddings_stand_in_for_tokens(golden_relu):
    model, arrays = golden_relu
    tokens, mask = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"])
    np.testing.assert_array_equal(
        model.encode(tokens, mask), model.encode(None, mask, embeddings=model.embed(tokens))
    )
    with pytest.raises(ValueError, match="exactly one"):
        model.encode(tokens, mask, embeddings=model.embed(tokens))
    with pytest.raises(ValueError, match="exactly one"):
        model.encode(None, mask)


def test_logits_are_products_with_the_output_table(golden):
    model, arrays = golden
    hidden = jax.random.normal(jax.random.key(0), (2, 3, 16))
    np.testing.assert_allclose(model.logits(hidden), hidden @ model.output_table.T, atol=1e-5)
    tied = model.output_table is model.shared.table[...] or jnp.array_equal(model.output_table, model.shared.table[...])
    assert bool(tied) == model.config.tie_word_embeddings


@pytest.mark.parametrize("group_size", [4, 2, 1])
def test_cached_decoding_equals_parallel_decoding_and_follows_the_beams(golden, group_size):
    model, arrays = golden
    beams, length, room = 4, 8, 7
    # Beams continue others of their group.
    first = np.arange(beams) // group_size * group_size
    encoded, mask = jnp.asarray(arrays["encoded"]), jnp.asarray(arrays["mask"])
    random = np.random.default_rng(1)
    histories = np.zeros((3, beams, 0), int)
    cache = model.start_decoding(encoded, mask, num_beams=beams, group_size=group_size, max_length=room)
    step = nnx.jit(lambda model, tokens, position, cache: model.decode_step(tokens, position, cache))
    found = []
    for position in range(length):
        # The first token is written on one beam, from which all others go on.
        tokens = random.integers(0, 64, (3, beams if position else 1))
        hidden, written = step(model, jnp.asarray(tokens), jnp.int32(position), cache)
        chosen = np.tile(np.arange(beams), (3, 1))
        if position in (2, 5):
            chosen = first + random.integers(0, group_size, (3, beams))
        if position == 0:
            chosen = np.zeros((3, beams), int)
        follow = None if position == 4 else jnp.asarray(chosen)
        cache = cache.extend(written, position, follow)
        tokens, hidden = (np.repeat(array, beams // array.shape[1], axis=1) for array in (tokens, np.asarray(hidden)))
        histories = np.concatenate([histories, tokens[..., None]], axis=-1)
        histories = np.take_along_axis(histories, chosen[..., None], axis=1)
        found = [np.take_along_axis(array, chosen[..., None], axis=1) for array in (*found, hidden)]
    parallel = model.decode(
        jnp.asarray(histories.reshape(-1, length)), jnp.repeat(encoded, beams, 0), jnp.repeat(mask, beams, 0)
    )
    expected = np.asarray(parallel).reshape(3, beams, length, 16)
    assert np.linalg.norm(expected[:, 0] - expected[:, 3]) > 0.1
    np.testing.assert_allclose(np.stack(found, axis=2), expected, atol=1e-5)


@pytest.mark.parametrize("compute_dtype", ["float32", "bfloat16"])
def test_the_cache_keeps_encoder_keys_once_per_user(compute_dtype, golden_relu):
    config = replace(golden_relu[0].config, compute_dtype=compute_dtype)

    def start():
        model = T5(config, rngs=nnx.Rngs(0))
        cache = model.start_decoding(jnp.ones((3, 20, 16)), jnp.ones((3, 20), bool), num_beams=5, max_length=7)
        written = model.decode_step(jnp.zeros((3, 5), jnp.int32), jnp.int32(0), cache)[1]
        return cache, cache.extend(written, 0)

    cache, extended = jax.eval_shape(start)
    assert [keys.shape for keys in cache.cross_keys] == [(3, 3, 4, 20)] * 3
    assert [values.shape for values in cache.cross_values] == [(3, 3, 20, 4)] * 3
    assert [keys.shape for keys in cache.self_keys] == [(3, 1, 3, 4, 5 * 7)] * 3
    assert [values.shape for values in cache.self_values] == [(3, 1, 3, 5 * 7, 4)] * 3
    assert {keys.dtype for keys in (*cache.self_keys, *cache.cross_values)} == {jnp.dtype(compute_dtype)}
    # A search carries the cache through a loop, which needs the same shapes and dtypes after every step.
    assert extended == cache


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_is_near_float32(variant, tmp_path):
    model, arrays = golden_model(variant, tmp_path, compute_dtype="bfloat16")
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    tokens, mask, labels = (jnp.asarray(arrays[name]) for name in ("tokens", "mask", "labels"))
    loss, (encoded, logits) = nnx.jit(loss_and_outputs)(model, tokens, mask, labels)
    assert encoded.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    difference = relative_difference(logits, arrays["logits"])
    assert 1e-4 < difference < 0.06
    assert abs(float(loss) - arrays["loss"]) / arrays["loss"] < 0.03


def test_layers_are_rematerialised_only_where_the_configuration_says_so(golden_relu):
    model, arrays = golden_relu
    tokens, mask = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"])

    def traced(rematerialise):
        config = replace(model.config, rematerialise=rematerialise)
        other = nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0)))
        graphdef, params = nnx.split(other, nnx.Param)
        run = jax.make_jaxpr(lambda params: forward(nnx.merge(graphdef, params), tokens, mask, tokens[:, :6]))
        return [equation.primitive.name for equation in run(params).jaxpr.eqns]

    layers = model.config.num_layers + model.config.num_decoder_layers
    assert traced("layers").count("remat2") + traced("layers").count("checkpoint") == layers
    assert not {"remat2", "checkpoint", "optimization_barrier"} & set(traced("none"))
    with pytest.raises(InputError, match="rematerialise is 'blocks'; it must be one of none, layers"):
        replace(model.config, rematerialise="blocks")


def test_dropout_is_a_function_of_its_key(golden_relu):
    model, arrays = golden_relu
    tokens, mask = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"])
    run = nnx.jit(lambda model, key: forward(model, tokens, mask, tokens[:, :6], dropout_key=key))
    first, again, other = (run(model, jax.random.key(seed)) for seed in (0, 0, 1))
    for one, same, different in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, same)
        assert relative_difference(different, one) > 0.05
    undropped = nnx.merge(*nnx.split(model))
    undropped.config = replace(model.config, dropout_rate=0.0)
    np.testing.assert_array_equal(run(undropped, jax.random.key(0))[0], run(model, None)[0])


def test_states_wanted_of_one_row_for_all_encodings_are_those_of_all_rows(golden):
    model, arrays = golden
    tokens, mask, encoded = (jnp.asarray(arrays[name]) for name in ("tokens", "mask", "encoded"))
    wanted = jnp.asarray([4, 0, 2])
    row = tokens[:1, :6]
    expected = model.decode(jnp.repeat(row, len(tokens), axis=0), encoded, mask)[:, wanted]
    other = nnx.merge(*nnx.split(model))
    other.config = replace(model.config, rematerialise="layers")
    found = other.decode(row, other.encoder_keys_values(encoded), mask, wanted=wanted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    # The mask may tell positions apart.
    pairs = jnp.broadcast_to(mask[:, None], (len(tokens), 6, mask.shape[1]))
    np.testing.assert_allclose(model.decode(row, encoded, pairs, wanted=wanted), expected, rtol=0, atol=1e-6)


def test_dropout_sits_where_transformers_has_it(golden):
    model, arrays = golden
    tokens, mask = jnp.asarray(arrays["tokens"]), jnp.asarray(arrays["mask"])
    encoded = jnp.asarray(arrays["encoded"])

    def mask_shapes(function) -> list[tuple[int, ...]]:
        equations = jax.make_jaxpr(function)(jax.random.key(0)).jaxpr.eqns
        booleans = [equation.outvars[0].aval for equation in equations if equation.primitive.name == "ge"]
        return [aval.shape for aval in booleans if aval.ndim > 2]

    stream, scores, inner, cross = (3, 20, 16), (3, 3, 20, 20), (3, 20, 24), (3, 3, 20, 20)
    block = [scores, stream, inner, stream]
    found = mask_shapes(lambda key: model.encode(tokens, mask, dropout_key=key))
    assert found == [stream, *block, *block, stream]
    block = [scores, stream, cross, stream, inner, stream]
    found = mask_shapes(lambda key: model.decode(tokens, encoded, mask, dropout_key=key))
    assert found == [stream, *block, *block, *block, stream]


def test_initial_scales():
    config = T5Config(
        vocab_size=300,
        d_model=64,
        d_kv=16,
        d_ff=256,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=8,
        feed_forward="gated-gelu",
        tie_word_embeddings=False,
        initializer_factor=2.0,
    )
    model = T5(config, rngs=nnx.Rngs(0))
    block = model.decoder.blocks[0]
    for attention in (block.self_attention, block.cross_attention):
        scales = {"query": (64 * 16) ** -0.5, "key": 64**-0.5, "value": 64**-0.5, "output": 128**-0.5}
        for name, scale in scales.items():
            assert jnp.std(getattr(attention, name).kernel[...]) == pytest.approx(2 * scale, rel=0.05), name
    feed_forward = block.feed_forward
    for linear, scale in ((feed_forward.wi_0, 1 / 8), (feed_forward.wi_1, 1 / 8), (feed_forward.wo, 1 / 16)):
        assert jnp.std(linear.kernel[...]) == pytest.approx(2 * scale, rel=0.05)
    assert jnp.std(model.shared.table[...]) == pytest.approx(2.0, rel=0.05)
    assert jnp.std(model.lm_head.table[...]) == pytest.approx(2.0, rel=0.05)
    assert jnp.std(model.encoder.position_bias.table[...]) == pytest.approx(2 / 8, rel=0.2)
    np.testing.assert_array_equal(model.encoder.final_norm.scale[...], 2.0)
    # Every parameter has its own numbers.
    assert not jnp.array_equal(block.self_attention.key.kernel[...], block.self_attention.value.kernel[...])


def test_shift_right():
    shifted = shift_right(jnp.asarray([[5, 6, 1], [7, 1, 0]]), 3)
    np.testing.assert_array_equal(shifted, [[3, 5, 6], [3, 7, 1]])
    assert shifted.dtype == jnp.int32


def test_shapes_are_checked(golden_relu):
    model, arrays = golden_relu
    with pytest.raises(Exception, match="mask"):
        model.encode(jnp.zeros((2, 5), int), jnp.ones((2, 6), bool))
    with pytest.raises(Exception, match="mask"):
        model.encode(jnp.zeros((2, 5), int), jnp.ones((2, 5), int))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon is 0.0; it must be greater than 0"),
        ({"feed_forward": "silu"}, "'silu'"),
        ({"compute_dtype": "float16"}, "'float16'"),
        ({"eos_token_id": 64}, "eos_token_id is 64"),
        ({"pad_token_id": -1}, "pad_token_id is -1"),
        ({"relative_attention_num_buckets": 5}, "num_buckets is 5"),
        ({"relative_attention_max_distance": 4}, "max_distance is 4"),
    ],
)
def test_impossible_configs_are_refused(changes, words):
    fields = json.loads(str(np.load(GOLDEN / "t5_v1_0.npz")["config"]))
    for name in ("feed_forward_proj", "model_type"):
        del fields[name]
    T5Config(**fields)
    with pytest.raises(InputError, match=words):
        T5Config(**fields | changes)
