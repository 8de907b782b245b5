"""What a run would need, without a run: parameters, operations per step, and bytes on each device of its mesh.

Batches have the shapes that training has on these data. Models exist as shapes only, and the steps are lowered from
shapes that know their place on the mesh. A mesh that this machine does not have is simulated by as many CPU devices.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from idgenrec_jax.config import Config, MeshConfig
from idgenrec_jax.data.sample import load_data
from idgenrec_jax.errors import InputError
from idgenrec_jax.experiment import make_epochs
from idgenrec_jax.ids.rounds import RoundIds
from idgenrec_jax.ids.schemes import keywords, unique_table
from idgenrec_jax.inputs import Inputs, check_batches, check_vocabularies, checked_inputs
from idgenrec_jax.models.create import abstract_model, described_config
from idgenrec_jax.models.step_operations import id_step_operations, recommender_step_operations
from idgenrec_jax.models.t5 import T5Config
from idgenrec_jax.progress import format_bytes
from idgenrec_jax.sharding import batch_devices, batch_sharding, check_heads, make_mesh, place_shapes, replicated
from idgenrec_jax.training.choice_softmax import ChoiceTable
from idgenrec_jax.training.epochs import Epochs
from idgenrec_jax.training.phases import CAUSAL, ID, RECOMMENDER
from idgenrec_jax.training.run_steps import configured_optimizer, make_steps
from idgenrec_jax.training.soft_ids import tokens_without_embedding
from idgenrec_jax.training.steps import KEEP_BARRIERS, TrainState, create_train_state, seed_key

GROUPS = ("embeddings", "encoder", "decoder")
COMPILED, EXTRAPOLATED, NONE = TEMPORARIES = ("compiled", "extrapolated", "none")
_MODELS = {"id_generator": "ID generator", "recommender": "recommender"}
_STEPS = {ID: "ID step", RECOMMENDER: "recommender step"}
# Memory is planned before LLVM optimises the code, which takes longest; barriers stay, as they do on accelerators.
_CPU_COMPILATION = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True, **KEEP_BARRIERS}


@dataclasses.dataclass(frozen=True)
class PlannedModel:
    """A model as shapes placed on the mesh: `state` has `jax.ShapeDtypeStruct`s for arrays."""

    config: T5Config
    graphdef: nnx.GraphDef
    state: TrainState


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """What a compiled step needs: bytes per device, and the seconds of its compilation.

    Outputs are those that do not take the place of an argument.
    """

    arguments: int
    temporaries: int
    outputs: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """A step of one phase: its batch as shapes, its operations by part, and what its program needs where compiled.

    `choices` are those of the catalogue as shapes; None where losses are over the vocabulary.
    """

    batch: Any
    choices: ChoiceTable | None
    operations: dict[str, int | float]
    compiled: CompiledStep | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run before it begins; `models` by "id_generator" and "recommender", `steps` by kind of phase."""

    mesh: Mesh
    models: dict[str, PlannedModel]
    steps: dict[str, PlannedStep]
    given_ids: bool
    temporaries: str


def simulate_devices(config: MeshConfig) -> None:
    """Let the CPU have the devices of a mesh whose sizes are all given; call it before JAX starts its backend."""
    sizes = dataclasses.astuple(config)
    if min(sizes) > 0:
        jax.config.update("jax_num_cpu_devices", math.prod(sizes))
    # A program from the cache does not know how much memory it takes.
    jax.config.update("jax_enable_compilation_cache", False)


def plan_run(config: Config, *, temporaries: str = COMPILED) -> Plan:
    """Return what the run of `config` needs; `temporaries` is one of TEMPORARIES.

    - "compiled": those of the compiled steps. Deep models take minutes to compile.
    - "extrapolated": models of one and of two layers are compiled; every further layer takes as much as the second.
    - "none": they are left out.

    The devices are those present where they fit the mesh, else the CPU's (see `simulate_devices`).

    Raises:
        InputError: anything the user gave that does not fit; stacks of different depths cannot be extrapolated.
    """
    plan = _plan(config, compiled=temporaries == COMPILED)
    if temporaries == EXTRAPOLATED:
        configs = [model.config for model in plan.models.values()]
        depths = {depth for config in configs for depth in (config.num_layers, config.num_decoder_layers)}
        if len(depths) > 1:
            raise InputError(
                f"--temporaries={EXTRAPOLATED}: the stacks have {', '.join(map(str, sorted(depths)))} layers, expected "
                f"as many in all encoders and decoders; --temporaries={COMPILED} has no such limit"
            )
        one, two = (_plan(config, compiled=True, layers=layers).steps for layers in (1, 2))
        further = depths.pop() - 1
        for kind, step in plan.steps.items():
            first, second = one[kind].compiled, two[kind].compiled
            assert first and second
            extrapolated = CompiledStep(
                arguments=first.arguments + further * (second.arguments - first.arguments),
                temporaries=first.temporaries + further * (second.temporaries - first.temporaries),
                outputs=first.outputs + further * (second.outputs - first.outputs),
                seconds=first.seconds + second.seconds,
            )
            plan.steps[kind] = dataclasses.replace(step, compiled=extrapolated)
    return dataclasses.replace(plan, temporaries=temporaries)


def _plan(config: Config, *, compiled: bool, layers: int | None = None) -> Plan:
    """The plan of a run; `layers` takes the place of the depth of all stacks."""
    dataset = load_data(config.data.path)
    inputs = checked_inputs(config, dataset)
    tokenizer = inputs.tokenizer
    mesh = make_mesh(config.mesh, _devices(config.mesh))
    check_batches(config, mesh)
    optimizer = configured_optimizer(config.training)
    models = {}
    for section in ("id_generator", "recommender"):
        t5_config = described_config(getattr(config, section), tokenizer, section=section)
        check_heads(mesh, t5_config.num_heads, section)
        if layers is not None:
            t5_config = dataclasses.replace(t5_config, num_layers=layers, num_decoder_layers=layers)
        graphdef, shapes = abstract_model(t5_config)
        is_averaged = section == "recommender" and bool(config.training.recommender_average_decay)
        create = partial(create_train_state, optimizer=optimizer, is_averaged=is_averaged)
        state = jax.eval_shape(create, shapes)
        models[section] = PlannedModel(t5_config, graphdef, place_shapes(mesh, state))
    id_generator, recommender = models["id_generator"], models["recommender"]
    check_vocabularies(recommender.config, id_generator.config)
    ids = RoundIds(
        config, dataset, tokenizer, inputs.prompts, graphdef=id_generator.graphdef, folder="", mesh=mesh
    )
    _stand_in_ids(ids, inputs, config)
    epochs = make_epochs(config, ids, inputs, row_multiple=batch_devices(mesh))
    states = {"id_generator": id_generator.state, "recommender": recommender.state}
    train_steps = make_steps(
        config,
        optimizer,
        id_generator=id_generator.graphdef,
        recommender=recommender.graphdef,
        no_embedding=jnp.asarray(tokens_without_embedding(tokenizer.punctuation_ids, recommender.config.vocab_size)),
        places=jax.tree.map(lambda leaf: leaf.sharding, states),
    )
    choices = _shapes_on(epochs.choices(), replicated(mesh))
    columns = None if choices is None else choices.tokens.shape[0]
    steps: dict[str, PlannedStep] = {}
    arguments: tuple[Any, ...]
    if config.training.id_epochs:
        batch = _first_batch(epochs, ID, mesh)
        operations = id_step_operations(
            id_generator.config,
            recommender.config,
            batch,
            id_length=config.ids.soft_length,
            chunks=config.training.id_chunks,
            columns=columns,
        )
        arguments = id_generator.state, recommender.state.params, batch
        steps[ID] = _planned_step(
            train_steps[ID], arguments, operations, title=_STEPS[ID], choices=choices, compiled=compiled
        )
    batch = _first_batch(epochs, CAUSAL if config.data.history == "causal" else RECOMMENDER, mesh)
    operations = recommender_step_operations(recommender.config, batch, columns)
    arguments = recommender.state, batch
    steps[RECOMMENDER] = _planned_step(
        train_steps[RECOMMENDER],
        arguments,
        operations,
        title=_STEPS[RECOMMENDER],
        choices=choices,
        compiled=compiled,
    )
    return Plan(mesh, models, steps, given_ids=inputs.given_ids is not None, temporaries=COMPILED if compiled else NONE)


def group_of(path: str) -> str:
    """Return which of GROUPS the parameter at `path` ("a/b/c") belongs to."""
    first = path.split("/")[0]
    return "embeddings" if first in ("shared", "lm_head") else first


def parameters_by_group(model: PlannedModel) -> dict[str, int]:
    """Return the number of parameters of each group."""
    counts = dict.fromkeys(GROUPS, 0)
    for path, leaf in nnx.to_flat_state(model.state.params):
        counts[group_of("/".join(map(str, path)))] += math.prod(leaf.shape)
    return counts


def bytes_per_device(tree: Any) -> int:
    """Return the bytes that one device holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)
    )


def step_bytes(plan: Plan, kind: str) -> dict[str, int]:
    """Return the bytes on each device during a step, by group; they add up to its need.

    Without compilation temporaries and outputs are missing, and the gradients, which are temporaries, are in their
    place.
    """
    step = plan.steps[kind]
    found = {}
    for name, model in plan.models.items():
        state = model.state
        found[f"{_MODELS[name]}, parameters"] = bytes_per_device(state.params)
        found[f"{_MODELS[name]}, moments"] = bytes_per_device((state.optimizer_state, state.step))
        if state.average is not None:
            found[f"{_MODELS[name]}, averages"] = bytes_per_device(state.average)
    found["batch"] = bytes_per_device(step.batch)
    if step.choices is not None:
        found["choices of the catalogue"] = bytes_per_device(step.choices)
    if step.compiled is None:
        return found | {"gradients": _gradient_bytes(plan, kind)}
    return found | {"temporaries": step.compiled.temporaries, "outputs": step.compiled.outputs}


def report(plan: Plan) -> str:
    """Return the plan as text: a table of the models, one of the steps, and one of the bytes on each device."""
    sizes = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.shape.items())
    device = plan.mesh.devices.flat[0]
    lines = [f"Mesh: {sizes}; {plan.mesh.size} device(s) of kind {device.device_kind}. Nothing was allocated on them."]
    if not plan.given_ids:
        lines.append("Rows are as wide as IDs of the warm start's words make them; those that a run writes differ.")
    header = ["parameters", "bytes", "moments", "gradients", "", "on each device: parameters", "moments", "gradients"]
    models = [["", *header]]
    for name, model in plan.models.items():
        by_group = parameters_by_group(model)
        placed = _bytes_by_group(model)
        for group, count in [*by_group.items(), ("all", sum(by_group.values()))]:
            here = sum(placed.values()) if group == "all" else placed[group]
            whole, split = (count * 4, count * 8, count * 4), (here, 2 * here, here)
            cells = [f"{count:,}", *map(format_bytes, whole), "", *map(format_bytes, split)]
            models.append([f"{_MODELS[name]}, {group}", *cells])
    lines += ["", "Models, float32 (counted from shapes)", *_aligned(models)]
    steps = [["", "shapes", "operations"]]
    for kind, step in plan.steps.items():
        shapes = _shapes(step.batch)
        steps.append([_STEPS[kind], shapes, f"{sum(step.operations.values()):.3e}"])
        steps += [[f"  {part}", "", f"{value:.3e}"] for part, value in step.operations.items()]
    lines += ["", "Floating-point operations of a step, all devices together (counted from shapes)", *_aligned(steps)]
    kinds = list(plan.steps)
    found = {kind: step_bytes(plan, kind) for kind in kinds}
    groups = [["", *(_STEPS[kind] for kind in kinds)]]
    for group in found[kinds[0]]:
        source = plan.temporaries if group in ("temporaries", "outputs") else "counted"
        groups.append([f"{group} ({source})", *(format_bytes(found[kind][group]) for kind in kinds)])
        if group == "temporaries":
            groups.append(
                ["  of them gradients (counted)", *(format_bytes(_gradient_bytes(plan, kind)) for kind in kinds)]
            )
    groups.append(["all of these", *(format_bytes(sum(found[kind].values())) for kind in kinds)])
    lines += ["", "Bytes on each device during a step", *_aligned(groups), ""]
    if plan.temporaries == NONE:
        lines.append("Nothing was compiled: activations and other temporaries are not in the sum.")
    else:
        seconds = ", ".join(
            f"{_STEPS[kind]} {step.compiled.seconds:.0f} s" for kind, step in plan.steps.items() if step.compiled
        )
        lines.append(f"Temporaries and outputs are those of XLA's compiler for {device.platform}; it took: {seconds}.")
        if plan.temporaries == EXTRAPOLATED:
            lines.append("It compiled models of one and of two layers a stack; the rest follows as if layers added up.")
        if device.platform == "cpu":
            lines.append("For accelerators they differ: a CPU multiplies bfloat16 by way of float32 copies, for one.")
    return "\n".join(lines)


def _gradient_bytes(plan: Plan, kind: str) -> int:
    """The bytes of a step's gradients on each device: float32, placed as the parameters that they belong to."""
    trained = plan.models["recommender" if kind == RECOMMENDER else "id_generator"]
    return bytes_per_device(trained.state.params)


def _devices(config: MeshConfig) -> list[jax.Device]:
    """The devices present, or the CPU's where the mesh has another number of them."""
    sizes = dataclasses.astuple(config)
    present = jax.devices()
    return present if -1 in sizes or math.prod(sizes) == len(present) else jax.devices("cpu")


def _stand_in_ids(ids: RoundIds, inputs: Inputs, config: Config) -> None:
    """Give every item, and every user where prompts name users, an ID of about the length that a run would write."""
    dataset, tokenizer = inputs.dataset, inputs.tokenizer
    ids.table = inputs.given_ids or unique_table(keywords(dataset, tokenizer, config), dataset.items, tokenizer)
    if config.data.user_ids == "prefix":
        before = [item for sequence in dataset.sequences for item in (None, *sequence[:-1])]
        ids.prefix_ids = tuple(() if item is None else ids.table.tokens[item] for item in before)
    elif config.data.user_ids != "none":
        first = [ids.table.texts[sequence[0]] for sequence in dataset.sequences]
        ids.user_table = unique_table(first, dataset.users, tokenizer)


def _first_batch(epochs: Epochs, kind: str, mesh: Mesh) -> Any:
    """The shapes of the batches of a phase, split over the mesh."""
    batch = epochs.batches(kind, 0, 0, is_last=True).batch(0)
    return _shapes_on(batch, batch_sharding(mesh))


def _shapes_on(arrays: Any, sharding: NamedSharding) -> Any:
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding), arrays)


def _planned_step(
    step: Any,
    arguments: tuple[Any, ...],
    operations: Mapping[str, int | float],
    *,
    title: str,
    choices: ChoiceTable | None,
    compiled: bool,
) -> PlannedStep:
    """`arguments` are those of the step up to its batch, the last of them."""
    planned = PlannedStep(arguments[-1], choices, dict(operations))
    if not compiled:
        return planned
    logging.info("compiling the %s", title)
    start = time.monotonic()
    rate = jax.ShapeDtypeStruct((), np.float32)
    lowered = step.lower(*arguments, rate, jax.eval_shape(partial(seed_key, 0)), choices)
    on_cpu = jax.tree.leaves(arguments)[0].sharding.mesh.devices.flat[0].platform == "cpu"
    memory = lowered.compile(compiler_options=_CPU_COMPILATION if on_cpu else None).memory_analysis()
    needs = CompiledStep(
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        outputs=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        seconds=time.monotonic() - start,
    )
    return dataclasses.replace(planned, compiled=needs)


def _bytes_by_group(model: PlannedModel) -> dict[str, int]:
    """The bytes of each group's parameters on one device."""
    found = dict.fromkeys(GROUPS, 0)
    for path, leaf in nnx.to_flat_state(model.state.params):
        found[group_of("/".join(map(str, path)))] += bytes_per_device(leaf)
    return found


def _shapes(batch: Any) -> str:
    """The shapes of a batch's prompts, targets and texts, as "rows x positions"."""
    fields = {"texts": "item_tokens", "prompts": "prompt_tokens", "targets": "target_tokens"}
    shapes = {title: getattr(batch, field).shape for title, field in fields.items() if hasattr(batch, field)}
    return ", ".join(f"{title} {rows} x {positions}" for title, (rows, positions) in shapes.items())


def _aligned(rows: list[list[str]]) -> list[str]:
    """Lines with the cells of a column below each other, all but the first column's at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
