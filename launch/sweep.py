"""Run many trainings: python -m launch.sweep --sweep=FILE|NAME --output=DIR [--at_once=N] [--summary] ..."""

import sys
from pathlib import Path

from absl import flags

from launch.command_line import config_from_flags, define_config_flags, run, stop_on_terminate

# sysexits.h, EX_TEMPFAIL: neither done nor wrong, try again.
STOPPED = 75

_SWEEP = flags.DEFINE_string(
    "sweep", None, "a named sweep, or FILE.py[:FUNCTION], whose function (default: sweep) returns a list of overrides"
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of the sweep; one that was begun goes on", required=True)
_DATA = flags.DEFINE_string("data", None, "'sample' (the embedded catalogue, the default) or a data folder")
_ENGINE = flags.DEFINE_enum("engine", "local", ["local"], "where trials run: as processes on this machine")
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "local: trials at a time, each on its share of the cores", lower_bound=1)
_DEVICES = flags.DEFINE_list("devices", [], "local: numbers of the accelerators to share out; default: not told apart")
_TRIAL = flags.DEFINE_integer(
    "trial",
    None,
    "run trial N of the sweep in --output, on all the cores and accelerators this process has, and end with exit code "
    f"0 when it is finished, 1 when it failed, {STOPPED} when it was stopped before its end",
    lower_bound=0,
)
_SUMMARY = flags.DEFINE_bool("summary", False, "print and write the table of trials, and run nothing")
define_config_flags()


def main() -> None:
    """Run the trials that are not finished, then print the summary."""
    from idgenrec_jax.sweeps.local import ListedTrials, available_cores, make_slots, run_locally
    from idgenrec_jax.sweeps.trials import trials_of

    output = Path(_OUTPUT.value)
    if not _SUMMARY.value:
        _claim(output)
        should_stop = stop_on_terminate()
        if _TRIAL.value is not None:
            sys.exit(_run_one(output, should_stop))
        slots = make_slots(_AT_ONCE.value, cores=available_cores(), devices=_DEVICES.value)
        run_locally(ListedTrials(trials_of(output)), slots, should_stop=should_stop)
    _summarise(output)


def _claim(output: Path) -> None:
    """Make `output` the folder of the sweep that the flags describe; without --sweep it already is one."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.definition import load_sweep
    from idgenrec_jax.sweeps.named import NAMED
    from idgenrec_jax.sweeps.trials import SWEEP_FILE, claim_sweep

    given = {
        name.removeprefix("config."): value
        for name, value in flags.FLAGS.flag_values_dict().items()
        if name.startswith("config.") and value is not None
    }
    if not _SWEEP.value:
        if not (output / SWEEP_FILE).exists():
            raise InputError(f"--sweep: expected a file or one of the named sweeps: {', '.join(NAMED)}")
        if given or _DATA.value or flags.FLAGS.preset:
            raise InputError(f"--sweep is missing; without it {output / SWEEP_FILE} says what its trials share")
        return
    data = _DATA.value or given.get("data.path") or "sample"
    given["data.path"] = data
    base = config_from_flags("sample" if data == "sample" else "tiny").override({"data.path": data})
    sweep = load_sweep(_SWEEP.value, NAMED, base)
    claim_sweep(output, name=_SWEEP.value, trials=sweep, config=given, preset=flags.FLAGS.preset)


def _run_one(output: Path, should_stop) -> int:
    """Run trial --trial and return the exit code of this program."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.local import ListedTrials, available_cores, make_slots, run_locally
    from idgenrec_jax.sweeps.trials import FAILED, FINISHED, trials_of

    trials = {trial.index: trial for trial in trials_of(output)}
    if _TRIAL.value not in trials:
        raise InputError(f"--trial={_TRIAL.value}: {output} has no such trial; expected 0 to {max(trials, default=0)}")
    trial = trials[_TRIAL.value]
    run_locally(ListedTrials([trial]), make_slots(1, cores=available_cores()), should_stop=should_stop)
    if trial.status == FAILED:
        print(f"error: trial {trial.index}: {trial.failure()}", file=sys.stderr)
    return {FINISHED: 0, FAILED: 1}.get(trial.status, STOPPED)


def _summarise(output: Path) -> None:
    from idgenrec_jax.sweeps.summary import summary_table, write_summary
    from idgenrec_jax.sweeps.trials import trials_of

    trials = trials_of(output)
    write_summary(trials, output)
    print(summary_table(trials))


if __name__ == "__main__":
    run(main)
