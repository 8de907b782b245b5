"""Models for a run: from sizes, from a folder, and checked against the tokenizer."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx

from idgenrec_jax.config import MeshConfig, ModelConfig
from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.data.text import Tokenizer
from idgenrec_jax.errors import InputError
from idgenrec_jax.models import create
from idgenrec_jax.models.create import abstract_model, create_model, random_config
from idgenrec_jax.models.huggingface import save_t5
from idgenrec_jax.models.t5 import T5, T5Config
from idgenrec_jax.sharding import make_mesh

SIZES = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
SMALL = ModelConfig(**SIZES)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig())


def tokenizer_of(size, specials=("<pad>", "</s>")):
    words = [*specials, *(f"w{index}" for index in range(size - len(specials)))]
    vocabulary = {word: index for index, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=words[-1]))
    backend.add_special_tokens(list(specials))
    return Tokenizer(backend, pad_token="<pad>", eos_token="</s>")


def saved_model(folder, vocab_size, **fields):
    config = T5Config(vocab_size=vocab_size, **SIZES, **fields)
    model = T5(config, rngs=nnx.Rngs(5))
    save_t5(model, folder)
    return model


@pytest.mark.parametrize(("limit", "times"), [(10**6, 0), (10**3, 1)])
def test_beside_large_parameters_freed_memory_is_given_back(monkeypatch, mesh, limit, times):
    calls = []
    monkeypatch.setattr(create, "give_back_freed_memory", lambda: calls.append(1))
    monkeypatch.setattr(create, "_LARGE_BYTES", limit)
    create_model(SMALL, tokenizer_of(100), mesh, seed=0, section="recommender")
    assert len(calls) == times


@pytest.mark.parametrize(("size", "rows"), [(100, 128), (128, 128), (129, 256)])
def test_the_vocabulary_is_rounded_up(size, rows):
    tokenizer = tokenizer_of(size)
    assert tokenizer.size == size
    assert random_config(SMALL, tokenizer).vocab_size == rows
    assert random_config(dataclasses.replace(SMALL, vocab_size=131), tokenizer).vocab_size == 131


def test_random_config_takes_sizes_from_the_configuration_and_tokens_from_the_tokenizer():
    tokenizer = tokenizer_of(20, specials=("w", "</s>", "<pad>"))
    config = random_config(dataclasses.replace(SMALL, feed_forward="gated-gelu", tie_word_embeddings=False), tokenizer)
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (2, 1, 2)
    assert (config.d_model, config.num_heads, config.feed_forward) == (8, 2, "gated-gelu")
    assert not config.tie_word_embeddings


@pytest.mark.slow
def test_random_weights_are_a_function_of_the_seed(mesh):
    tokenizer = sample_tokenizer()
    first, again, other = (create_model(SMALL, tokenizer, mesh, seed=seed, section="recommender") for seed in (1, 1, 2))
    assert not first.pretrained
    leaves = [jax.tree.leaves(model.params) for model in (first, again, other)]
    assert len(leaves[0]) > 10
    for a, b in zip(leaves[0], leaves[1], strict=True):
        np.testing.assert_array_equal(a, b)
    differing = [not np.array_equal(a, b) for a, b in zip(leaves[0], leaves[2], strict=True)]
    # Norm scales are all ones, whatever the seed.
    assert differing == [a.ndim > 1 for a in leaves[0]]


def test_the_abstract_model_has_the_shapes_of_the_real_one(mesh):
    model = create_model(SMALL, tokenizer_of(20), mesh, seed=0, section="recommender")
    graphdef, shapes = abstract_model(model.config)
    assert graphdef == model.graphdef
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model.params
    )
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))


def test_a_folder_is_loaded_with_the_rate_and_the_precision_of_the_configuration(tmp_path, mesh):
    saved = saved_model(tmp_path, 128)
    config = ModelConfig(folder=str(tmp_path), dropout_rate=0.3, compute_dtype="bfloat16")
    model = create_model(config, tokenizer_of(100), mesh, seed=0, section="recommender")
    assert model.pretrained
    assert (model.config.dropout_rate, model.config.compute_dtype, model.config.d_model) == (0.3, "bfloat16", 8)
    expected = nnx.split(saved, nnx.Param)[1]
    for a, b in zip(jax.tree.leaves(model.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_random_and_loaded_weights_are_placed_alike(tmp_path, mesh):
    saved_model(tmp_path, 128)
    tokenizer = tokenizer_of(100)
    loaded = create_model(ModelConfig(folder=str(tmp_path)), tokenizer, mesh, seed=0, section="recommender")
    random = create_model(SMALL, tokenizer, mesh, seed=0, section="recommender")
    specs = [jax.tree.map(lambda leaf: leaf.sharding.spec, model.params) for model in (loaded, random)]
    assert jax.tree.leaves(specs[0]) == jax.tree.leaves(specs[1])


def test_a_table_smaller_than_the_vocabulary_names_the_folder_and_the_tokenizer_flag(tmp_path, mesh):
    saved_model(tmp_path, 64)
    message = (
        rf"^--config\.id_generator\.folder={tmp_path}: its embedding table has 64 rows, the tokenizer has 100 tokens; "
        r".*--config\.data\.tokenizer"
    )
    with pytest.raises(InputError, match=message):
        create_model(
            ModelConfig(folder=str(tmp_path)), tokenizer_of(100), mesh, seed=0, section="id_generator"
        )


def test_a_given_vocab_size_that_is_too_small_names_its_flag(mesh):
    with pytest.raises(InputError, match=r"^--config\.recommender\.vocab_size=50: .*50 rows.*100 tokens") as caught:
        create_model(
            dataclasses.replace(SMALL, vocab_size=50), tokenizer_of(100), mesh, seed=0, section="recommender"
        )
    assert "the weights" not in str(caught.value), "random weights: the way out is another size"


def test_special_tokens_that_disagree_are_named(tmp_path, mesh):
    saved_model(tmp_path, 128, pad_token_id=3)
    with pytest.raises(InputError, match=r"its padding and end tokens are \(3, 1\), the tokenizer's are \(0, 1\)"):
        create_model(ModelConfig(folder=str(tmp_path)), tokenizer_of(100), mesh, seed=0, section="recommender")


def test_a_folder_that_is_not_there_names_the_flag(tmp_path, mesh):
    with pytest.raises(InputError, match=r"--config\.recommender\.folder") as caught:
        create_model(
            ModelConfig(folder=str(tmp_path / "none" / "here")), tokenizer_of(100), mesh, seed=0, section="recommender"
        )
    assert "\n" not in str(caught.value)
