"""Checkpoints: in from every format, out to transformers, straight into a sharding, and every refusal."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from idgenrec_jax.errors import InputError
from idgenrec_jax.models.huggingface import load_t5, read_config, resolve_folder, save_t5
from idgenrec_jax.models.t5 import T5, T5Config

ROOT = Path(__file__).parent.parent.parent
CONFIG = T5Config(
    vocab_size=40, d_model=8, d_kv=2, d_ff=12, num_layers=1, num_decoder_layers=2, num_heads=3, dropout_rate=0.2
)
GATED = replace(CONFIG, feed_forward="gated-gelu", tie_word_embeddings=False)


def flat_parameters(model: T5) -> dict[str, np.ndarray]:
    """Every parameter by path."""
    state = nnx.to_flat_state(nnx.state(model, nnx.Param))
    return {"/".join(map(str, path)): np.asarray(variable[...]) for path, variable in state}


def assert_same_parameters(found: T5, expected: T5) -> None:
    """Bitwise equality of all parameters."""
    found, expected = flat_parameters(found), flat_parameters(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)


@pytest.fixture(scope="module", params=[CONFIG, GATED], ids=["v1_0", "v1_1"])
def model(request):
    """A random model of each variant."""
    return T5(request.param, rngs=nnx.Rngs(0))


@pytest.fixture
def saved(tmp_path):
    """The folder of a saved v1.0 model, and the model."""
    model = T5(CONFIG, rngs=nnx.Rngs(0))
    save_t5(model, tmp_path)
    return tmp_path, model


def edit_config(folder: Path, **changes) -> None:
    """Changes fields of config.json; None removes one."""
    path = folder / "config.json"
    fields = {name: value for name, value in (json.loads(path.read_text()) | changes).items() if value is not None}
    path.write_text(json.dumps(fields))


def edit_weights(folder: Path, edit) -> None:
    """Passes the saved tensors through `edit`, which changes the dictionary in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def test_saved_model_loads_bit_for_bit(model, tmp_path):
    save_t5(model, tmp_path / "new" / "folder")
    loaded = load_t5(tmp_path / "new" / "folder")
    assert loaded.config == model.config
    assert_same_parameters(loaded, model)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["config.json", "model.safetensors"]


def test_transformers_computes_the_same_from_a_saved_model(model, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    save_t5(model, tmp_path)
    reference, report = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    tokens = np.random.default_rng(0).integers(2, 40, (2, 9))
    inputs = {"input_ids": torch.tensor(tokens), "decoder_input_ids": torch.tensor(tokens[:, :5])}
    with torch.no_grad():
        expected = reference.eval()(**inputs).logits
    mask = jnp.ones((2, 9), bool)
    with jax.default_matmul_precision("highest"):
        logits = model.logits(model.decode(jnp.asarray(tokens[:, :5]), model.encode(jnp.asarray(tokens), mask), mask))
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    assert reference.config.dropout_rate == 0.2 and reference.config.num_decoder_layers == 2


def test_options_replace_the_config(saved):
    loaded = load_t5(saved[0], compute_dtype="bfloat16", dropout_rate=0.0)
    assert loaded.config == replace(CONFIG, compute_dtype="bfloat16", dropout_rate=0.0)
    with pytest.raises(InputError, match="compute_dtype"):
        load_t5(saved[0], compute_dtype="float64")


def test_saving_replaces_what_was_there(saved):
    folder, _ = saved
    other = T5(CONFIG, rngs=nnx.Rngs(1))
    save_t5(other, folder)
    assert_same_parameters(load_t5(folder), other)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floating_dtypes_become_float32(dtype, saved):
    folder, model = saved
    edit_weights(folder, lambda tensors: tensors.update({name: t.astype(dtype) for name, t in tensors.items()}))
    for path, value in flat_parameters(load_t5(folder)).items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, flat_parameters(model)[path].astype(dtype).astype(np.float32))


def test_sharded_checkpoint_of_transformers(tmp_path):
    pytest.importorskip("torch")
    from tests.golden import make_t5

    reference = make_t5.make_model("v1_1", seed=0)
    reference.save_pretrained(tmp_path / "whole")
    reference.save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert_same_parameters(load_t5(tmp_path / "parts"), load_t5(tmp_path / "whole"))


@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_checkpoint(zipped, saved):
    torch = pytest.importorskip("torch")
    folder, model = saved
    tensors = {name: torch.tensor(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    # The tied names of early checkpoints, and the table that was never used.
    for name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        tensors[name] = tensors["shared.weight"]
    tensors["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"] = torch.ones(32, 3)
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    loaded = load_t5(folder)
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert_same_parameters(loaded, model)


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_the_shared_table_under_its_other_names(name, saved):
    folder, model = saved
    edit_weights(folder, lambda tensors: tensors.update({name: tensors.pop("shared.weight")}))
    assert_same_parameters(load_t5(folder), model)


def test_one_table_of_transformers_5_serves_an_unscaled_model_twice(tmp_path):
    pytest.importorskip("torch")
    import transformers

    fields = {"vocab_size": 40, "d_model": 8, "d_kv": 2, "d_ff": 12, "num_layers": 1, "num_heads": 3}
    config = transformers.T5Config(**fields, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    loaded = load_t5(tmp_path)
    assert not loaded.config.tie_word_embeddings and loaded.config.num_decoder_layers == 1
    np.testing.assert_array_equal(loaded.output_table, loaded.shared.table[...])


@pytest.mark.parametrize("name", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
@pytest.mark.parametrize("same", [True, False])
def test_tables_that_are_one_must_be_equal(name, same, saved):
    folder, model = saved

    def add(tensors):
        table = tensors["shared.weight"].copy()
        # The last row alone.
        table[-1] += 0 if same else 1
        tensors[name] = table

    edit_weights(folder, add)
    if same:
        assert_same_parameters(load_t5(folder), model)
        return
    with pytest.raises(InputError, match=f"tensors shared.weight and {name} differ") as error:
        load_t5(folder)
    assert str(error.value).startswith(f"{folder / 'model.safetensors'}: ") and "\n" not in str(error.value)
    if name == "lm_head.weight":
        # The way out that the message names.
        edit_config(folder, tie_word_embeddings=False)
        loaded = load_t5(folder)
        np.testing.assert_array_equal(loaded.output_table, load_file(folder / "model.safetensors")[name])


def test_two_other_names_without_the_first_must_be_equal(saved):
    folder, _ = saved

    def rename(tensors):
        table = tensors.pop("shared.weight")
        tensors |= {"encoder.embed_tokens.weight": 2 * table, "decoder.embed_tokens.weight": 3 * table}

    edit_weights(folder, rename)
    with pytest.raises(InputError, match="tensors encoder.embed_tokens.weight and decoder.embed_tokens.weight differ"):
        load_t5(folder)


@pytest.mark.parametrize("own_head", [True, False])
def test_mt5_computes_what_transformers_computes(own_head, tmp_path):
    torch = pytest.importorskip("torch")
    import transformers

    fields = {"vocab_size": 40, "d_model": 8, "d_kv": 2, "d_ff": 12, "num_layers": 1, "num_heads": 3}
    config = transformers.MT5Config(**fields)
    transformers.MT5ForConditionalGeneration(config).save_pretrained(tmp_path)
    if own_head:
        table = np.random.default_rng(1).normal(size=(40, 8)).astype(np.float32)
        edit_weights(tmp_path, lambda tensors: tensors.update({"lm_head.weight": table}))
        tensors = load_file(tmp_path / "model.safetensors")
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    reference = transformers.MT5ForConditionalGeneration.from_pretrained(tmp_path)
    model = load_t5(tmp_path)
    assert model.config.feed_forward == "gated-gelu" and not model.config.tie_word_embeddings
    tokens = np.random.default_rng(0).integers(2, 40, (2, 9))
    inputs = {"input_ids": torch.tensor(tokens), "decoder_input_ids": torch.tensor(tokens[:, :5])}
    with torch.no_grad():
        expected = reference.eval()(**inputs).logits
    mask = jnp.ones((2, 9), bool)
    with jax.default_matmul_precision("highest"):
        logits = model.logits(model.decode(jnp.asarray(tokens[:, :5]), model.encode(jnp.asarray(tokens), mask), mask))
    np.testing.assert_allclose(logits, expected, atol=2e-5)


def test_the_untied_output_table_must_be_there(tmp_path):
    save_t5(T5(GATED, rngs=nnx.Rngs(0)), tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(InputError, match="lack tensor lm_head.weight"):
        load_t5(tmp_path)


def test_defaults_of_a_short_config(saved):
    folder, _ = saved
    needed = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({name: fields[name] for name in needed}))
    assert read_config(folder) == replace(CONFIG, num_decoder_layers=1, dropout_rate=0.1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"d_model": None}, "field d_model is missing"),
        ({"d_kv": "8"}, "field d_kv is '8', expected an integer"),
        ({"num_heads": True}, "field num_heads is True"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj is 'gated-silu', expected 'relu' or 'gated-gelu'"),
        ({"model_type": "umt5"}, "model_type is 'umt5', expected 't5' or 'mt5'; give a T5, T5 v1.1, Flan-T5 or mT5"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder is false"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5"),
        ({"dropout_rate": 10**400}, "dropout_rate is 1000"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan, expected a number"),
        ({"dropout_rate": []}, r"dropout_rate is \[\], expected a number"),
    ],
)
def test_unsupported_configs(changes, words, saved):
    edit_config(saved[0], **changes)
    with pytest.raises(InputError, match=words) as error:
        read_config(saved[0])
    assert str(error.value).startswith(f"{saved[0] / 'config.json'}: ") and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000])
def test_a_config_that_is_no_object(text, saved):
    (saved[0] / "config.json").write_text(text)
    with pytest.raises(InputError, match="config.json: "):
        read_config(saved[0])
    (saved[0] / "config.json").unlink()
    with pytest.raises(InputError, match="config.json: file not found"):
        read_config(saved[0])


def test_tensors_that_do_not_fit(saved):
    folder, _ = saved
    name = "decoder.block.1.layer.2.DenseReluDense.wi.weight"

    def shorten(tensors):
        tensors[name] = tensors[name][:7].copy()

    edit_weights(folder, lambda tensors: tensors.update({"extra.weight": np.ones(2, np.float32)}))
    with pytest.raises(InputError, match="model.safetensors: unexpected tensor extra.weight"):
        load_t5(folder)
    edit_weights(folder, shorten)
    with pytest.raises(InputError, match=rf"tensor {name} has shape \[7, 8\], expected \[12, 8\]"):
        load_t5(folder)
    edit_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(InputError, match=f"the weights lack tensor {name}, which"):
        load_t5(folder)


def test_a_config_of_other_sizes_names_tensor_and_shapes(saved):
    edit_config(saved[0], vocab_size=48)
    with pytest.raises(InputError, match=r"tensor shared.weight has shape \[40, 8\], expected \[48, 8\]"):
        load_t5(saved[0])


def test_folders_and_names(saved):
    folder, _ = saved
    assert resolve_folder(folder, flag="--model", random_flag="--random") == folder
    for name in ("./no/such", "/no/such", "one/two/three", str(folder / "config.json")):
        with pytest.raises(InputError, match=f"--model={name}: no such folder; .*with --model.*with --random"):
            resolve_folder(name, flag="--model", random_flag="--random")
    with pytest.raises(InputError, match="nor to be had from the hub"):
        resolve_folder("not a name", flag="--model", random_flag="--random")


def run_python(program: str, **environment: str) -> str:
    """The output of a program in a fresh interpreter."""
    finished = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_a_name_without_a_connection_names_both_flags(tmp_path):
    program = """
from idgenrec_jax.errors import InputError
from idgenrec_jax.models.huggingface import resolve_folder
try:
    resolve_folder("google-t5/t5-small", flag="--generator", random_flag="--generator_size")
except InputError as error:
    print(error)
"""
    printed = run_python(program, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)).strip()
    assert printed.startswith("--generator=google-t5/t5-small: no such folder")
    assert "local folder with --generator" in printed and "random weights with --generator_size" in printed
    assert "\n" not in printed


SHARDED_LOAD = """
import sys, jax, numpy as np
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from idgenrec_jax.models import tensor_files
from idgenrec_jax.models.huggingface import load_t5

mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
asked, largest, read = [], {}, tensor_files.StoredTensor.read

def recorded_read(stored, index):
    piece = read(stored, index)
    largest[stored.name] = max(largest.get(stored.name, 0), piece.size)
    return piece

def rule(path, shape):
    asked.append((path, shape))
    spec = ("a", "b") if path.endswith("query/kernel") else ("b",) if path == "shared/table" else ()
    return NamedSharding(mesh, PartitionSpec(*spec))

tensor_files.StoredTensor.read = recorded_read
sharded = load_t5(sys.argv[1], shardings=rule)
# No shard is cut from a tensor that was read whole: 8 x 6 over four devices, 40 x 8 over two.
assert largest["encoder.block.0.layer.0.SelfAttention.q.weight"] == 12
assert largest["shared.weight"] == 160
plain = load_t5(sys.argv[1])
flat = lambda model: {"/".join(map(str, p)): v[...] for p, v in nnx.to_flat_state(nnx.state(model, nnx.Param))}
sharded, plain = flat(sharded), flat(plain)
assert sorted(asked) == sorted((path, value.shape) for path, value in plain.items())
for path, value in sharded.items():
    np.testing.assert_array_equal(value, plain[path])
    assert value.sharding == rule(path, value.shape), path
    assert len(value.addressable_shards) == 4
assert sharded["encoder/blocks/0/self_attention/query/kernel"].addressable_shards[0].data.shape == (4, 3)
assert sharded["shared/table"].addressable_shards[0].data.shape == (20, 8)
print("equal")
"""


def test_loading_onto_several_devices(saved):
    program = SHARDED_LOAD.replace("sys.argv[1]", repr(str(saved[0])))
    assert run_python(program, JAX_NUM_CPU_DEVICES="4").strip() == "equal"


MEMORY_OF_LOADING = """
import ctypes, gc, threading, time
from flax import nnx
import jax
from idgenrec_jax.models.huggingface import load_t5, save_t5
from idgenrec_jax.models.t5 import T5, T5Config

def anonymous_mebibytes():
    # Pages of mapped files are not counted: they are the kernel's to drop.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def watch(work):
    peak, done = [anonymous_mebibytes()], threading.Event()
    def poll():
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_mebibytes())
            time.sleep(0.001)
    thread = threading.Thread(target=poll)
    start = peak[0]
    thread.start()
    kept = work()
    jax.block_until_ready(jax.tree.leaves(nnx.state(kept)))
    done.set()
    thread.join()
    return peak[0] - start

jax.block_until_ready(jax.device_put(jax.numpy.ones(4)))
nnx.eval_shape(lambda: T5(T5Config(8, 8, 8, 8, 1, 1, 1), rngs=nnx.Rngs(0)))
print(watch(lambda: load_t5(FOLDER)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
def test_loading_never_holds_the_parameters_twice(tmp_path):
    config = T5Config(
        vocab_size=4096, d_model=512, d_kv=64, d_ff=2048, num_layers=8, num_decoder_layers=6, num_heads=8
    )
    model = T5(config, rngs=nnx.Rngs(0))
    size = sum(value.nbytes for value in flat_parameters(model).values()) / 2**20
    assert size > 190
    save_t5(model, tmp_path)
    peak = float(run_python(MEMORY_OF_LOADING.replace("FOLDER", repr(str(tmp_path)))))
    # One tensor of 8 MiB may exist a few times over (read, transposed, placed); a second copy would double the size.
    assert size * 0.9 < peak < size + 60, (size, peak)
