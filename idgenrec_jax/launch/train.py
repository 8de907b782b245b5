"""Train ID generator and recommender in alternation: python -m launch.train [--workdir=DIR] [--data=sample|DIR] ..."""

from pathlib import Path

from absl import flags

from idgenrec_jax.launch.command_line import (
    config_from_flags,
    data_from_flags,
    define_config_flags,
    define_path,
    define_process_flags,
    refuse_without,
    run,
    start_processes,
    stop_on_terminate,
    use_compilation_cache,
)
from idgenrec_jax.training.record_writers import WRITERS

_WORKDIR = define_path(
    "workdir", None, "folder of the run, runs/DATA-PRESET by default; an unfinished run goes on"
)
define_path("data", None, "'sample' (the embedded catalogue, the default) or a data folder")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "print parameters, operations and bytes per device of the run, and do nothing else"
)
_TEMPORARIES = flags.DEFINE_enum(
    "temporaries",
    "compiled",
    ["compiled", "extrapolated", "none"],
    "with --dry_run: those of the compiled steps; from those of one and of two layers, which compile sooner; left out",
)
_LOG_TO = {name: flags.DEFINE_bool(name, False, writer.flag_help) for name, writer in WRITERS.items()}
_RESTART = flags.DEFINE_bool(
    "restart_without_checkpoint", False, "train from the beginning where all checkpoints of a run are broken"
)
define_config_flags()
define_process_flags()


def main() -> None:
    """Train, then print ten IDs and the table of metrics."""
    data = data_from_flags()
    name = flags.FLAGS.preset or ("sample" if data == "sample" else "tiny")
    config = config_from_flags(name)
    workdir = Path(_WORKDIR.value or Path("runs") / f"{Path(data).resolve().name if data != 'sample' else data}-{name}")
    if _DRY_RUN.value:
        from idgenrec_jax.dry_run import plan_run, report, simulate_devices

        simulate_devices(config.mesh)
        print(report(plan_run(config, temporaries=_TEMPORARIES.value)))
        return
    refuse_without("--dry_run", ["temporaries"])
    start_processes()
    should_stop = stop_on_terminate()
    use_compilation_cache()

    from idgenrec_jax.evaluation.metrics import results_table
    from idgenrec_jax.experiment import examples_table, train
    from idgenrec_jax.training.alternation import Interrupted

    try:
        results = train(
            config,
            workdir,
            should_stop=should_stop,
            restart_without_checkpoint=_RESTART.value,
            log_to=[name for name, flag in _LOG_TO.items() if flag.value],
        )
    except Interrupted:
        print(f"stopped and saved; the same command goes on ({workdir})")
        return
    print(f"\nTen IDs, and the items they stand for:\n{examples_table(results['example_ids'])}")
    print(f"\n{results_table(results)}\n\n{workdir}/results.json, {results['seconds']:.0f} s of training")


if __name__ == "__main__":
    run(main)
