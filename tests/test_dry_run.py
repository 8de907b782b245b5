"""The dry run: its counts against published sizes, and against what the compiled steps say they take."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest

from idgenrec_jax.data.sample import sample_tokenizer
from idgenrec_jax.dry_run import group_of
from idgenrec_jax.models.create import random_config
from idgenrec_jax.models.operations import parameter_count
from idgenrec_jax.presets import preset
from idgenrec_jax.progress import format_bytes

# Parameters of google-t5/t5-* and google/flan-t5-*, as their checkpoints hold them.
PUBLISHED = {
    "small": 60_506_624,
    "base": 222_903_552,
    "large": 737_668_096,
    "3b": 2_851_598_336,
    "11b": 11_307_321_344,
    "v1.1-small": 76_961_152,
    "v1.1-base": 247_577_856,
    "v1.1-large": 783_150_080,
    "v1.1-xl": 2_849_757_184,
    "v1.1-xxl": 11_135_332_352,
}

ON_FOUR_DEVICES = """
import json
import sys
import jax
from idgenrec_jax.presets import preset
from idgenrec_jax.dry_run import bytes_per_device, parameters_by_group, plan_run, report, simulate_devices, step_bytes

sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
small = {f"{model}.{name}": value for model in ("recommender", "id_generator") for name, value in sizes.items()}
config = preset("sample").override(
    {**small, "mesh.data": 1, "mesh.fsdp": 2, "mesh.tensor": 2, "ids.soft_length": 3,
     "data.history": "causal", "training.id_epochs": 1, "training.id_batch_size": 16, "training.id_items_per_batch": 32,
     "training.recommender_average_decay": 0.9})
simulate_devices(config.mesh)
plan = plan_run(config)
id_generator, recommender = plan.models["id_generator"], plan.models["recommender"]

def read(step):
    return step.batch, step.choices

print(report(plan))
print(json.dumps({
    "devices": plan.mesh.size,
    "allocated": sum(array.nbytes for array in jax.live_arrays()),
    "compiled": {kind: step.compiled.arguments for kind, step in plan.steps.items()},
    "counted": {
        "id": bytes_per_device((id_generator.state, recommender.state.params, *read(plan.steps["id"]))),
        "recommender": bytes_per_device((recommender.state, *read(plan.steps["recommender"]))),
    },
    "whole": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(recommender.state)),
    "placed": bytes_per_device(recommender.state),
    "groups": parameters_by_group(recommender),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(recommender.state.params)),
    "steps": {kind: step_bytes(plan, kind) for kind in plan.steps},
    "scipy": "scipy" in sys.modules,
}))
"""


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory):
    """The report of the program above, what it measured, and the files it wrote."""
    folder = tmp_path_factory.mktemp("dry_run")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", ON_FOUR_DEVICES],
        env={**environment, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *report, measured = done.stdout.splitlines()
    return "\n".join(report), json.loads(measured), list(folder.iterdir())


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_numbers_of_parameters(name):
    config = dataclasses.replace(random_config(preset(name).recommender, sample_tokenizer()), vocab_size=32128)
    norms = (2 * config.num_layers + 3 * config.num_decoder_layers + 2) * config.d_model
    biases = 2 * config.relative_attention_num_buckets * config.num_heads
    assert parameter_count(config) + norms + biases == PUBLISHED[name]
    assert preset(name).id_generator == preset(name).recommender


@pytest.mark.slow
def test_a_mesh_of_devices_that_are_not_there_is_planned_without_allocating_or_writing(on_four_devices):
    _, measured, files = on_four_devices
    assert measured["devices"] == 4
    assert measured["allocated"] < 2000
    assert not files


@pytest.mark.slow
def test_a_run_without_words_of_clusters_is_planned_without_scipy(on_four_devices):
    """To import it takes a third of a second."""
    assert not on_four_devices[1]["scipy"]


@pytest.mark.slow
def test_counted_bytes_are_those_of_the_arguments_of_the_compiled_steps(on_four_devices):
    _, measured, _ = on_four_devices
    for kind, counted in measured["counted"].items():
        # The learning rate, and the words of the key where there is dropout.
        assert 0 < measured["compiled"][kind] - counted <= 16, kind
    # Norms and position biases are on every device.
    assert 0.25 * measured["whole"] < measured["placed"] < 0.3 * measured["whole"]


@pytest.mark.slow
def test_the_groups_add_up(on_four_devices):
    _, measured, _ = on_four_devices
    assert sum(measured["groups"].values()) == measured["parameters"]
    for groups in measured["steps"].values():
        assert all(size > 0 for size in groups.values())
        assert groups["temporaries"] > groups["recommender, parameters"]
        assert groups["recommender, averages"] == groups["recommender, parameters"]


@pytest.mark.slow
def test_the_report_says_what_was_counted_and_what_compiled(on_four_devices):
    report, measured, _ = on_four_devices
    assert "Mesh: data 1, fsdp 2, tensor 2; 4 device(s) of kind cpu." in report
    assert f"{measured['parameters']:,}" in report
    lines = {line.split("(")[0].strip(): line for line in report.splitlines() if "(" in line}
    for group in measured["steps"]["id"]:
        cells = [format_bytes(measured["steps"][kind][group]) for kind in ("id", "recommender")]
        assert all(cell in lines[group] for cell in cells)
        assert ("compiled" if group in ("temporaries", "outputs") else "counted") in lines[group]


def test_parameters_belong_to_one_of_three_groups():
    assert [group_of(path) for path in ("shared/table", "lm_head/table", "encoder/final_norm/scale")] == [
        "embeddings", "embeddings", "encoder",
    ]  # fmt: skip
