"""Run many trainings: python -m launch.sweep --sweep=FILE|NAME --output=DIR [--at_once=N] [--summary] ..."""

import os
from pathlib import Path

from absl import flags

from launch.command_line import config_from_flags, define_config_flags, run, stop_on_terminate

_SWEEP = flags.DEFINE_string(
    "sweep", None, "a named sweep, or FILE.py[:FUNCTION], whose function (default: sweep) returns a list of overrides"
)
_OUTPUT = flags.DEFINE_string("output", None, "folder of the sweep; one that was begun goes on", required=True)
_DATA = flags.DEFINE_string("data", "sample", "'sample' (the embedded catalogue) or a data folder")
_ENGINE = flags.DEFINE_enum("engine", "local", ["local"], "where trials run: as processes on this machine")
_AT_ONCE = flags.DEFINE_integer("at_once", 1, "local: trials at a time, each on its share of the cores", lower_bound=1)
_DEVICES = flags.DEFINE_list("devices", [], "local: numbers of the accelerators to share out; default: not told apart")
_TRIAL = flags.DEFINE_integer("trial", None, "run this trial alone, in the sweep's folder", lower_bound=0)
_SUMMARY = flags.DEFINE_bool("summary", False, "print and write the table of trials, and run nothing")
define_config_flags()


def main() -> None:
    """Run the trials that are not finished, then print the summary."""
    from idgenrec_jax.errors import InputError
    from idgenrec_jax.sweeps.definition import load_sweep
    from idgenrec_jax.sweeps.local import run_locally, slots
    from idgenrec_jax.sweeps.named import NAMED
    from idgenrec_jax.sweeps.summary import summary_table, write_summary
    from idgenrec_jax.sweeps.trials import claim_sweep, trials_of

    if _SUMMARY.value:
        trials = trials_of(_OUTPUT.value)
    else:
        if not _SWEEP.value:
            raise InputError(f"--sweep: expected a file or one of the named sweeps: {', '.join(NAMED)}")
        base = config_from_flags("sample" if _DATA.value == "sample" else "tiny").override({"data.path": _DATA.value})
        sweep = load_sweep(_SWEEP.value, NAMED, base)
        shared = _shared_flags()
        trials = claim_sweep(_OUTPUT.value, _SWEEP.value, sweep, shared)
        if _TRIAL.value is not None:
            if _TRIAL.value >= len(trials):
                raise InputError(f"--trial={_TRIAL.value}: expected 0 to {len(trials) - 1}, the trials of the sweep")
            trials = [trials[_TRIAL.value]]
        places = slots(_AT_ONCE.value, cores=sorted(os.sched_getaffinity(0)), devices=list(map(int, _DEVICES.value)))
        run_locally(trials, shared, places, should_stop=stop_on_terminate())
        trials = trials_of(_OUTPUT.value)
    write_summary(trials, Path(_OUTPUT.value))
    print(summary_table(trials))


def _shared_flags() -> list[str]:
    """The flags of the command line that are launch.train's, for every trial."""
    given = [f"--data={_DATA.value}"]
    for name, value in flags.FLAGS.flag_values_dict().items():
        if (name == "preset" or name.startswith("config.")) and value is not None:
            given.append(f"--{name}={value}")
    return given


if __name__ == "__main__":
    run(main)
