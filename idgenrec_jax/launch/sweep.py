"""Run many trainings: python -m launch.sweep --sweep=FILE|NAME --output=DIR [--engine=ENGINE] [--sampler=tpe] ..."""

import dataclasses
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from idgenrec_jax.config import Config
from idgenrec_jax.launch.command_line import (
    config_from_flags,
    data_from_flags,
    define_config_flags,
    define_path,
    refuse_without,
    run,
    stop_on_terminate,
)
from idgenrec_jax.sweeps.engine_options import KubernetesOptions, SlurmOptions

# sysexits.h, EX_TEMPFAIL: neither done nor wrong, try again.
STOPPED = 75

_SWEEP = define_path(
    "sweep",
    None,
    "a named sweep, or FILE.py[:FUNCTION], whose function (default: sweep) returns a list of overrides; with --sampler "
    "the function (default: space) returns what the search chooses from",
)
_OUTPUT = define_path("output", None, "folder of the sweep; one that was begun goes on", required=True)
_DATA = define_path("data", None, "'sample' (the embedded catalogue, the default) or a data folder")
_ENGINE = flags.DEFINE_enum(
    "engine",
    "local",
    ["local", "slurm", "kubernetes"],
    "where trials run: local, as processes here; slurm, as array jobs, written to OUTPUT/slurm and submitted; "
    "kubernetes, as an Indexed Job, written to OUTPUT/kubernetes",
)
_AT_ONCE = flags.DEFINE_integer(
    "at_once",
    None,
    "trials at a time: local, each with its share of the cores, by default 1; slurm, of one array job, and kubernetes, "
    "by default as many as the cluster has room for",
    lower_bound=1,
)
_DEVICES = flags.DEFINE_list("devices", [], "local: numbers of the accelerators to share out; default: not told apart")
_TRIAL = flags.DEFINE_integer(
    "trial",
    None,
    "run trial N of the sweep in --output, on all the cores and accelerators this process has, and end with exit code "
    f"0 when it is finished, 1 when it failed, {STOPPED} when it was stopped before its end",
    lower_bound=0,
)
_SUMMARY = flags.DEFINE_bool("summary", False, "print and write the table of trials, and run nothing")
_SAMPLER = flags.DEFINE_enum(
    "sampler", None, ["tpe"], "choose overrides by the results so far: tpe, Optuna's tree-structured Parzen estimator"
)
_TRIALS = flags.DEFINE_integer("trials", None, "with --sampler: trials in total, failed ones included", lower_bound=1)
_SAMPLER_SEED = flags.DEFINE_integer("sampler_seed", 0, "with --sampler: the seed of its choices", lower_bound=0)
_PRUNER = flags.DEFINE_enum(
    "pruner",
    "median",
    ["median", "none"],
    "with --sampler: end a trial whose validations are worse than the median of the earlier trials' (from the sixth "
    "trial on; --config.training.validate_every_epochs says how often there is one)",
)
_STORAGE = flags.DEFINE_string(
    "storage",
    None,
    "with --sampler: address of Optuna's storage, as postgresql://..., or journal:FILE for several machines that share "
    "a folder; default: the SQLite file study.db in --output",
)

_ENGINE_OPTIONS = {"slurm": SlurmOptions, "kubernetes": KubernetesOptions}
for _engine, _options in _ENGINE_OPTIONS.items():
    for _field in dataclasses.fields(_options):
        _name, _help = f"{_engine}.{_field.name}", _field.metadata["help"]
        _default: Any = _field.default
        if _field.metadata["path"]:
            define_path(_name, _default, _help)
        elif _field.type is int:
            flags.DEFINE_integer(_name, _default, _help, lower_bound=_field.metadata["low"])
        else:
            flags.DEFINE_string(_name, _default, _help)
define_config_flags()


def main() -> None:
    """Run the trials that are not finished, then print the summary."""
    output = Path(_OUTPUT.value)
    _refuse_flags_of_other_engines()
    if not _SUMMARY.value:
        should_stop = stop_on_terminate()
        if _TRIAL.value is not None:
            sys.exit(_run_one(output, should_stop))
        if _ENGINE.value == "local":
            _run_here(output, should_stop)
        else:
            _hand_over(output)
    _summarise(output)


def _run_here(output: Path, should_stop: Callable[[], bool]) -> None:
    """Run the trials as processes on this machine."""
    from idgenrec_jax.sweeps.local import available_cores, make_slots, run_locally

    queue = _search(output) if _SAMPLER.value else _listed(output)
    slots = make_slots(_AT_ONCE.value or 1, cores=available_cores(), devices=_DEVICES.value)
    run_locally(queue, slots, should_stop=should_stop)


def _listed(output: Path):
    """The trials of a list, which is that of `output` where no --sweep is given."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.definition import load_sweep
    from idgenrec_jax.sweeps.local import ListedTrials
    from idgenrec_jax.sweeps.named import NAMED
    from idgenrec_jax.sweeps.trials import SWEEP_FILE, claim_sweep, described_sweep, trials_of

    refuse_without("--sampler", ["trials", "storage", "sampler_seed", "pruner"])
    given = _given_fields()
    if _SWEEP.value:
        claim_sweep(
            output,
            name=_SWEEP.value,
            trials=load_sweep(_SWEEP.value, NAMED, _base()),
            config=given,
            preset=flags.FLAGS.preset,
        )
    elif not (output / SWEEP_FILE).exists():
        raise InputError(f"--sweep: expected a file or one of the named sweeps: {', '.join(NAMED)}")
    elif given or flags.FLAGS.preset:
        raise InputError(f"--sweep is missing; without it {output / SWEEP_FILE} says what its trials share")
    elif "space" in described_sweep(output) and _TRIAL.value is None:
        raise InputError(f"{output / SWEEP_FILE}: an adaptive search; give --sweep, --sampler and --trials again")
    return ListedTrials(trials_of(output))


def _search(output: Path):
    """The trials that Optuna chooses."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.adaptive import StudyTrials, claim_search, public_storage
    from idgenrec_jax.sweeps.definition import load_space

    name, count = _SWEEP.value, _TRIALS.value
    if name is None or count is None:
        missing = _SWEEP if name is None else _TRIALS
        raise InputError(f"--{missing.name} is missing; --sampler needs a space and a number of trials")
    given = _given_fields()
    space = load_space(name, _base())
    settings = {
        "sampler": _SAMPLER.value,
        "sampler_seed": _SAMPLER_SEED.value,
        "pruner": _PRUNER.value,
        "storage": public_storage(_STORAGE.value) if _STORAGE.value else "",
    }
    claim_search(
        output, name=name, space=space, config=given, preset=flags.FLAGS.preset, settings=settings
    )
    return StudyTrials(
        output,
        space,
        count=count,
        storage=_STORAGE.value or f"sqlite:///{output.resolve() / 'study.db'}",
        pruner=_PRUNER.value,
        seed=_SAMPLER_SEED.value,
    )


def _given_fields() -> dict[str, Any]:
    """The fields of the configuration that flags set, for all trials."""
    values = {
        name.removeprefix("config."): value
        for name, value in flags.FLAGS.flag_values_dict().items()
        if name.startswith("config.") and value is not None
    }
    return values | ({"data.path": _DATA.value} if _DATA.value else {})


def _base() -> Config:
    """The configuration that overrides apply to, as launch.train makes it."""
    return config_from_flags("sample" if data_from_flags() == "sample" else "tiny")


def _run_one(output: Path, should_stop: Callable[[], bool]) -> int:
    """Run trial --trial and return the exit code of this program."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.local import ListedTrials, available_cores, make_slots, run_locally
    from idgenrec_jax.sweeps.trials import FAILED, FINISHED, trials_of

    if _SAMPLER.value:
        raise InputError(f"--trial={_TRIAL.value}: expected without --sampler, in the --output of a search")
    _listed(output)
    trials = {trial.index: trial for trial in trials_of(output)}
    if _TRIAL.value not in trials:
        raise InputError(f"--trial={_TRIAL.value}: {output} has no such trial; expected 0 to {max(trials, default=0)}")
    trial = trials[_TRIAL.value]
    run_locally(ListedTrials([trial]), make_slots(1, cores=available_cores()), should_stop=should_stop)
    if trial.status == FAILED:
        print(f"error: trial {trial.index}: {trial.failure()}", file=sys.stderr)
    return {FINISHED: 0, FAILED: 1}.get(trial.status, STOPPED)


def _refuse_flags_of_other_engines() -> None:
    """Someone who says what to ask of a cluster, but forgets --engine, does not want his trials on this machine."""
    from idgenrec_jax.errors import InputError

    if _ENGINE.value != "local":
        refuse_without("--engine=local", ["devices"])
    for engine in set(_ENGINE_OPTIONS) - {_ENGINE.value}:
        for name in flags.FLAGS:
            if name.startswith(f"{engine}.") and flags.FLAGS[name].present:
                raise InputError(f"--{name} is for --engine={engine}; found --engine={_ENGINE.value}")


def _hand_over(output: Path) -> None:
    """Leave all unfinished trials of a list to Slurm or Kubernetes."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.trials import trials_of

    if _SAMPLER.value:
        raise InputError(f"--sampler={_SAMPLER.value}: expected with --engine=local, which may run inside a job")
    _listed(output)
    options = _ENGINE_OPTIONS[_ENGINE.value]
    given = {field.name: flags.FLAGS[f"{_ENGINE.value}.{field.name}"].value for field in dataclasses.fields(options)}
    arguments = trials_of(output), output, options(**given), _AT_ONCE.value
    if _ENGINE.value == "slurm":
        from idgenrec_jax.sweeps.slurm import submit_unfinished

        submitted = submit_unfinished(*arguments)
        print(f"submitted the jobs {', '.join(submitted)}" if submitted else "nothing to submit")
    else:
        from idgenrec_jax.sweeps.kubernetes import write_indexed_job

        manifest = write_indexed_job(*arguments)
        if manifest:
            file = shlex.quote(str(manifest))
            delete = f"kubectl delete --ignore-not-found --cascade=foreground -f {file}"
            print(f"written; to begin, or to go on: {delete} && kubectl create -f {file}")


def _summarise(output: Path) -> None:
    """Write and print the summary."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.plot import draw_summary
    from idgenrec_jax.sweeps.summary import summarise, summary_table, write_summary
    from idgenrec_jax.sweeps.trials import trials_of

    configurations = summarise(trials_of(output))
    write_summary(configurations, output)
    print(summary_table(configurations))
    try:
        draw_summary(configurations, output)
    except InputError as error:
        print(error)


if __name__ == "__main__":
    run(main)
