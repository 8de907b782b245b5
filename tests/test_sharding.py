"""The mesh, the rules, and training on eight simulated devices."""

import json
import os
import subprocess
import sys

import jax
import pytest

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.errors import InputError
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.sharding import batch_devices, batch_sharding, make_mesh, parameter_shardings

CONFIG = T5Config(
    vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
    feed_forward="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip

ON_EIGHT_DEVICES = '''
import json, pathlib, sys, tempfile
import jax, numpy as np
from flax import nnx
from idgenrec_jax.config import MeshConfig, preset
from idgenrec_jax.data.batches import recommender_epoch
from idgenrec_jax.data.sample import load_sample, sample_tokenizer
from idgenrec_jax.experiment import assemble
from idgenrec_jax.ids.generation import IdGeneration
from idgenrec_jax.sharding import batch_sharding, make_mesh, parameter_sharding, parameter_shardings
from idgenrec_jax.training.alternation import Alternation, Interrupted
from idgenrec_jax.data.packing import RecommenderBatch
from idgenrec_jax.training.optimizer import make_optimizer
from idgenrec_jax.training.steps import create_train_state, make_recommender_step, seed_key
from idgenrec_jax.models.t5 import T5, T5Config

BIG = 1024
results = {"devices": len(jax.devices())}
sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
graphdef, params = nnx.split(T5(T5Config(vocab_size=64, dropout_rate=0.2, **sizes), rngs=nnx.Rngs(0)), nnx.Param)
params = jax.tree.map(np.asarray, params)
generator = np.random.default_rng(0)
mask = np.arange(4) < generator.integers(1, 5, (16, 1))
mask[13:] = False
batch = RecommenderBatch(
    generator.integers(2, 64, (16, 8)).astype(np.int32),
    (np.arange(8) < generator.integers(2, 9, (16, 1))).astype(np.int32),
    (generator.integers(2, 64, (16, 4)) * mask).astype(np.int32), mask.astype(np.int32))
optimizer = make_optimizer()

def after_steps(mesh):
    placed = jax.device_put(params, parameter_shardings(mesh, params))
    create = lambda params: create_train_state(params, optimizer)
    places = parameter_shardings(mesh, jax.eval_shape(create, placed))
    step = make_recommender_step(graphdef, optimizer, state_sharding=places)
    state = jax.jit(create, out_shardings=places)(placed)
    on_mesh = jax.device_put(batch, batch_sharding(mesh))
    losses, moments = [], []
    for _ in range(2):
        state, metrics = step(state, on_mesh, np.float32(1e-3), seed_key(0))
        losses.append(float(metrics["loss"]))
        moments.append([np.array(leaf) for leaf in jax.tree.leaves(state.optimizer_state[1].mu)])
    return losses, [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)], moments[0]

def relative_norm(found, expected):
    squares = [(float(((a - b) ** 2).sum()), float((b**2).sum())) for a, b in zip(found, expected)]
    return max((difference / max(size, 1e-12)) ** 0.5 for difference, size in squares)

one_losses, one, one_moments = after_steps(make_mesh(MeshConfig(), jax.devices()[:1]))
moved = max(float(np.abs(a - b).max()) for a, b in zip(one, jax.tree.leaves(params)))
results["moved"] = moved
for name, config in (("data", MeshConfig()), ("mixed", MeshConfig(data=2, fsdp=2, tensor=2))):
    losses, many, moments = after_steps(make_mesh(config))
    results[name] = {
        "loss_difference": max(abs(a - b) for a, b in zip(losses, one_losses)),
        "parameter_difference": max(float(np.abs(a - b).max()) for a, b in zip(many, one)),
        "moment_difference": relative_norm(moments, one_moments),
    }

tokenizer, texts = sample_tokenizer(), load_sample().item_texts[:20]
writer, writer_params = nnx.split(
    T5(T5Config(vocab_size=tokenizer.size, initializer_factor=6.0, **sizes), rngs=nnx.Rngs(1)), nnx.Param)

def ids_on(mesh):
    generation = IdGeneration(
        writer, tokenizer, num_groups=2, penalties=(1.0,), min_lengths=(1,), batch_size=16, max_text_length=48,
        batch_divisors=(1,), fallback="suffix", batch_sharding=batch_sharding(mesh))
    placed = jax.device_put(writer_params, parameter_shardings(mesh, writer_params))
    return generation.generate(placed, [f"item{index}" for index in range(20)], texts).texts

expected = ids_on(make_mesh(MeshConfig(), jax.devices()[:1]))
results["words in IDs"] = len({word for text in expected for word in text.split()})
for name, config in (("data", MeshConfig()), ("mixed", MeshConfig(data=2, fsdp=2, tensor=2))):
    results[name]["same IDs"] = ids_on(make_mesh(config)) == expected

mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
for shape in ((8, 6), (6, 6), (8, 5)):
    spec = parameter_sharding(mesh, "encoder/blocks/0/feed_forward/wi/kernel", shape).spec
    results[f"spec {shape}"] = list(spec)

small = {f"{model}.{name}": value for model in ("recommender", "id_generator") for name, value in sizes.items()}
config = preset("sample").override({**small, "mesh.data": 1, "mesh.fsdp": 8})
workdir = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
experiment = assemble(config, workdir)
alternation = Alternation(
    config, experiment.ids, workdir=workdir,
    generator=(experiment.generator.graphdef, experiment.generator.params),
    recommender=(experiment.recommender.graphdef, experiment.recommender.params),
    vocab_size=experiment.recommender.config.vocab_size, pretrained_generator=False, validate=lambda *_: {},
    should_stop=lambda: True, place_batch=lambda batch: jax.device_put(batch, batch_sharding(experiment.mesh)))

def whole_on_every_device(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    assert any(leaf.size >= BIG for _, leaf in leaves)
    return [jax.tree_util.keystr(path) for path, leaf in leaves
            if leaf.size >= BIG and leaf.sharding.shard_shape(leaf.shape) == leaf.shape]

results["replicated parameters"] = whole_on_every_device(experiment.recommender.params)
results["replicated train state"] = whole_on_every_device(alternation.state.arrays())
try:
    alternation.run()
except Interrupted:
    pass
assert alternation.state.global_step == 1
results["replicated after a step"] = whole_on_every_device(alternation.state.arrays())
trained = alternation.state.generator
results["moved by a step"] = [
    jax.tree_util.keystr(path)
    for (path, leaf), place in zip(
        jax.tree_util.tree_leaves_with_path(trained), jax.tree.leaves(parameter_shardings(experiment.mesh, trained)))
    if not leaf.sharding.is_equivalent_to(place, leaf.ndim)]
print(json.dumps(results))
'''


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    """What the program above measured."""
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES, str(tmp_path_factory.mktemp("run"))],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["devices"] == 8
    return results


@pytest.mark.slow
def test_steps_on_eight_devices_that_split_the_batch_are_those_of_one(on_eight_devices):
    assert on_eight_devices["moved"] > 1e-3
    assert on_eight_devices["data"]["loss_difference"] < 1e-5
    assert on_eight_devices["data"]["parameter_difference"] < 1e-5


@pytest.mark.slow
def test_steps_on_a_mesh_of_all_axes_have_the_losses_and_gradients_of_one_device(on_eight_devices):
    # Not the parameters: Adam makes a full step of a gradient that is only rounding noise, of either sign.
    assert on_eight_devices["mixed"]["loss_difference"] < 1e-5
    assert on_eight_devices["mixed"]["moment_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data", "mixed"])
def test_ids_written_on_eight_devices_are_those_of_one(on_eight_devices, mesh):
    assert on_eight_devices["words in IDs"] > 20
    assert on_eight_devices[mesh]["same IDs"]


@pytest.mark.slow
def test_no_big_parameter_is_whole_on_every_device_under_fsdp(on_eight_devices):
    assert on_eight_devices["replicated parameters"] == []


@pytest.mark.slow
def test_no_big_moment_of_the_optimizer_is_whole_on_every_device_under_fsdp(on_eight_devices):
    assert on_eight_devices["replicated train state"] == []


@pytest.mark.slow
def test_a_step_of_a_run_leaves_the_train_state_where_it_was(on_eight_devices):
    assert on_eight_devices["replicated after a step"] == []
    assert on_eight_devices["moved by a step"] == []


@pytest.mark.parametrize(
    "config",
    [MeshConfig(data=3), MeshConfig(data=-1, fsdp=-1), MeshConfig(data=0), MeshConfig(data=1, fsdp=2, tensor=3)],
)
def test_sizes_that_do_not_fit_the_devices_name_the_flags(config):
    with pytest.raises(InputError, match="--config.mesh.data=.* --config.mesh.fsdp=.* --config.mesh.tensor=") as caught:
        make_mesh(config, jax.devices()[:1])
    assert "the 1 devices present" in str(caught.value) and "\n" not in str(caught.value)


def test_minus_one_takes_what_is_left():
    mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=-1), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert batch_devices(mesh) == 1
    assert batch_sharding(mesh).spec == jax.sharding.PartitionSpec(("data", "fsdp"))


@pytest.fixture(scope="module")
def specs():
    """The mesh axes of every parameter, by its path without the wrapper's own key."""
    _, shapes = abstract_model(CONFIG)
    tree = parameter_shardings(make_mesh(MeshConfig(), jax.devices()[:1]), shapes)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        "/".join(str(getattr(key, "key", getattr(key, "idx", ""))) for key in path).rstrip("/"): tuple(leaf.spec)
        for path, leaf in leaves
    }


@pytest.mark.parametrize(
    ("ending", "axes", "count"),
    [
        ("shared/table", ("tensor", "fsdp"), 1),
        ("lm_head/table", ("tensor", "fsdp"), 1),
        ("query/kernel", ("fsdp", "tensor"), 3),
        ("key/kernel", ("fsdp", "tensor"), 3),
        ("value/kernel", ("fsdp", "tensor"), 3),
        ("attention/output/kernel", ("tensor", "fsdp"), 3),
        ("wi_0/kernel", ("fsdp", "tensor"), 2),
        ("wi_1/kernel", ("fsdp", "tensor"), 2),
        ("wo/kernel", ("tensor", "fsdp"), 2),
        ("norm/scale", (), 7),
        ("position_bias/table", (), 2),
    ],
)
def test_the_rules_place_the_parameters_of_a_t5(specs, ending, axes, count):
    found = [spec for path, spec in specs.items() if path.endswith(ending)]
    assert found == [axes] * count


def test_every_parameter_is_of_a_kind_that_the_test_above_names(specs):
    assert len(specs) == 1 + 1 + 9 + 3 + 2 + 2 + 2 + 7 + 2


@pytest.mark.slow
def test_a_dimension_that_its_axis_does_not_divide_is_kept_whole(on_eight_devices):
    assert on_eight_devices["spec (8, 6)"] == ["fsdp", "tensor"]
    assert on_eight_devices["spec (6, 6)"] == [None, "tensor"]
    assert on_eight_devices["spec (8, 5)"] == ["fsdp", None]
