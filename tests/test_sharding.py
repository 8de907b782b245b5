"""The mesh, the rules, and both phases, ID generation and ranking on eight simulated devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from idgenrec_jax.config import MeshConfig
from idgenrec_jax.errors import InputError
from idgenrec_jax.inputs import check_batches
from idgenrec_jax.models.create import abstract_model
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.presets import preset
from idgenrec_jax.sharding import (
    AXES,
    SMALL_PARAMETER,
    batch_devices,
    batch_sharding,
    check_heads,
    constrain,
    make_mesh,
    parameter_sharding,
    parameter_shardings,
)

CONFIG = T5Config(
    vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_decoder_layers=1, num_heads=2,
    feed_forward="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip

MESHES = ("data", "fsdp", "tensor", "all")
"""data 8, fsdp 8, tensor 8, and 2 of each; what sharding_program.py calls them."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """What sharding_program.py measured on eight simulated devices."""
    folder = tmp_path_factory.mktemp("sharding")
    program = Path(__file__).with_name("sharding_program.py")
    more = {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, str(program), str(folder)],
        env={**os.environ, **more, "PYTHONPATH": str(program.parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results["devices"] == 8
    return results


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["recommender", "causal", "id"])
@pytest.mark.parametrize("mesh", MESHES)
def test_twenty_steps_have_the_losses_of_one_device(measured, mesh, phase):
    expected = measured["one"][f"{phase} losses"]
    assert len(expected) == 20 and max(expected) - min(expected) > 0.01
    assert measured[mesh][f"{phase} losses"] == pytest.approx(expected, rel=0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_ids_before_and_after_training_are_those_of_one_device(measured, mesh):
    one = measured["one"]
    assert len({word for text in one["ids"] for word in text.split()}) > 20
    assert one["ids"] != one["first ids"]
    assert measured[mesh]["first ids"] == one["first ids"]
    assert measured[mesh]["ids"] == one["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "catalogue ", "exact "])
@pytest.mark.parametrize("mesh", MESHES)
def test_rankings_by_the_trained_recommender_are_those_of_one_device(measured, mesh, kind):
    found, one = (
        {name: of[f"{kind}{name}"] for name in ("items", "scores", "ranking loss")}
        for of in (measured[mesh], measured["one"])
    )
    assert len({tuple(items) for items in one["items"]}) > 1
    assert found["items"] == one["items"]
    # Scores are sums of up to ten log-probabilities near -7: 1e-4 is 13 units in their last place.
    assert np.asarray(found["scores"]) == pytest.approx(np.asarray(one["scores"]), rel=0, abs=1e-4)
    assert found["ranking loss"] == pytest.approx(one["ranking loss"], rel=0, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ("one", *MESHES))
def test_steps_give_up_every_buffer_of_the_state_before_and_leave_the_state_where_it_was(measured, mesh):
    assert measured[mesh]["donated"]
    assert measured[mesh]["moved"] == []


@pytest.mark.slow
def test_a_device_of_eight_fsdp_devices_holds_an_eighth_of_parameters_and_moments(measured):
    found = measured["fsdp"]
    assert found["whole"] == []
    # The step counters of both train states and of both optimizers are scalars.
    scalars = 4 * 4
    assert found["bytes"] == [(found["all bytes"] - scalars) // 8 + scalars] * 8


@pytest.mark.slow
def test_the_other_axes_split_what_their_rules_say(measured):
    found = measured["data"]
    assert found["bytes"] == [found["all bytes"]] * 8
    norms = [name for name in measured["tensor"]["whole"] if "norm" not in name]
    assert norms == [], "tensor splits all but the scales of norms"
    assert measured["all"]["whole"] == []
    assert max(measured["all"]["bytes"]) < measured["all"]["all bytes"] * 0.26


@pytest.mark.slow
def test_a_run_transfers_nothing_implicitly_and_leaves_its_state_split(measured):
    run = measured["run"]
    assert run["steps"] == run["best step"] == 12
    assert run["donated"]
    assert run["moved"] == [] and run["whole"] == []


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
        ("norm/scale", ("fsdp",), 7),
        ("position_bias/table", ("fsdp", "tensor"), 2),
    ],
)
def test_the_rules_place_the_parameters_of_a_t5(specs, ending, axes, count):
    found = [spec for path, spec in specs.items() if path.endswith(ending)]
    assert found == [axes] * count


def test_every_parameter_is_of_a_kind_that_the_test_above_names(specs):
    assert len(specs) == 1 + 1 + 9 + 3 + 2 + 2 + 2 + 7 + 2


def mesh_of(**sizes):
    """A mesh of more devices than there are, good for rules."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in AXES), AXES)


KERNEL = "encoder/blocks/0/feed_forward/wi/kernel"


@pytest.mark.parametrize(
    ("shape", "axes"), [((8, 6), ("fsdp", "tensor")), ((6, 6), (None, "tensor")), ((8, 5), ("fsdp", None))]
)
def test_a_dimension_of_a_small_parameter_that_its_axis_does_not_divide_is_kept_whole(shape, axes, caplog):
    with caplog.at_level("WARNING"):
        assert tuple(parameter_sharding(mesh_of(fsdp=4, tensor=2), KERNEL, shape).spec) == axes
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == axes.count(None)
    assert all(KERNEL in message and "--config.mesh." in message for message in told)


@pytest.mark.parametrize(
    ("axis", "path", "shape", "size"),
    [
        ("tensor", KERNEL, (512, 2050), 2050),
        ("fsdp", KERNEL, (510, 2048), 510),
        ("tensor", "optimizer_state/1/mu/shared/table", (32100, 512), 32100),
        ("fsdp", "lm_head/table", (32128, 500), 500),
    ],
)
def test_a_dimension_of_a_big_parameter_that_its_axis_does_not_divide_is_an_error(axis, path, shape, size):
    with pytest.raises(InputError) as caught:
        parameter_sharding(mesh_of(**{axis: 8}), path, shape)
    message = str(caught.value)
    assert "\n" not in message
    assert f"--config.mesh.{axis}: 8 devices do not divide the {size} of parameter {path}" in message


def test_the_largest_small_parameter_is_kept_whole_and_one_element_more_is_an_error():
    assert parameter_sharding(mesh_of(tensor=3), KERNEL, (1, SMALL_PARAMETER)).spec == PartitionSpec("fsdp", None)
    with pytest.raises(InputError):
        parameter_sharding(mesh_of(tensor=3), KERNEL, (1, SMALL_PARAMETER + 1))


def test_heads_that_the_tensor_axis_cuts_through_are_an_error_though_it_divides_their_columns():
    mesh = mesh_of(tensor=8)
    assert parameter_sharding(mesh, "query/kernel", (768, 12 * 64)).spec == PartitionSpec("fsdp", "tensor")
    check_heads(mesh, 8, "recommender")
    with pytest.raises(InputError, match="--config.mesh.tensor: 8 devices do not divide the 12 heads") as caught:
        check_heads(mesh, 12, "id_generator")
    assert "--config.id_generator" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["ids", "evaluation"])
def test_a_decoded_batch_that_data_and_fsdp_do_not_divide_is_an_error(section):
    config = preset("sample").override({f"{section}.batch_size": 36})
    check_batches(config, mesh_of(data=2, fsdp=2, tensor=8))
    with pytest.raises(InputError, match=f"--config.{section}.batch_size=36.*--config.mesh.data"):
        check_batches(config, mesh_of(data=4, fsdp=2))


def test_constrain_leaves_the_program_of_one_device_as_it_is():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    array = jax.device_put(np.ones((2, 4), np.float32), batch_sharding(mesh))
    program = jax.jit(lambda values: constrain(values, "batch heads") * 2).lower(array).as_text()
    assert program == jax.jit(lambda values: values * 2).lower(array).as_text()


@pytest.mark.parametrize(
    ("dimensions", "shape", "expected"),
    [
        ("batch groups heads d_kv positions", (4, 3, 8, 5, 2), '[{"data", "fsdp"}, {}, {"tensor"}, {}, {}]'),
        ("batch positions d_ff", (4, 3, 8), '[{"data", "fsdp"}, {}, {"tensor"}]'),
        ("batch positions d_ff", (4, 3, 7), '[{"data", "fsdp"}, {}, {?}]'),
    ],
)
def test_constrain_puts_named_dimensions_on_their_axes(dimensions, shape, expected):
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    value = jax.ShapeDtypeStruct(shape, np.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    program = jax.jit(lambda values: constrain(values, dimensions)).trace(value).lower(lowering_platforms=("cpu",))
    assert f"sdy.sharding_constraint %arg0 <@mesh, {expected}>" in program.as_text()
