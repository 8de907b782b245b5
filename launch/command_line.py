"""What the programs share: flags of the configuration and of processes, one-line errors, logging."""

import difflib
import logging as python_logging
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from idgenrec_jax.compilation_cache import use_compilation_cache as use_compilation_cache
from idgenrec_jax.config import PRESETS, Config, fields_with_help, preset
from idgenrec_jax.errors import InputError
from idgenrec_jax.files import is_disk_full

USER_ERROR = 2

_DEFINE = {int: flags.DEFINE_integer, float: flags.DEFINE_float, str: flags.DEFINE_string, bool: flags.DEFINE_bool}


def define_config_flags() -> None:
    """Define --preset and one flag --config.SECTION.FIELD for every field of the configuration."""
    flags.DEFINE_string("preset", None, f"named configuration to start from: {', '.join(PRESETS)}")
    for name, kind, text in fields_with_help():
        _DEFINE[kind](f"config.{name}", None, text)
    _list_in_help()


def define_process_flags() -> None:
    """Define --distributed, --coordinator, --num_processes and --process_id."""
    flags.DEFINE_bool(
        "distributed", False, "one of several processes, which Slurm, Kubernetes, Cloud TPU or MPI tell of each other"
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster manager tells it")
    flags.DEFINE_integer("num_processes", None, "with --coordinator: how many processes there are", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "with --coordinator: this process, 0 to N-1", lower_bound=0)
    _list_in_help()


def start_processes() -> None:
    """Join the other processes where flags tell of any; all but process 0 fall silent, except for warnings.

    Raises:
        InputError: the flags are incomplete, or the others were not found.
    """
    values = flags.FLAGS.flag_values_dict()
    given = {name: values[name] for name in ("coordinator", "num_processes", "process_id")}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if not values["distributed"] and len(missing) == len(given):
        return
    if not values["distributed"] and missing:
        raise InputError(
            f"{' and '.join(missing)}: missing; expected --coordinator, --num_processes and --process_id together, or "
            "--distributed where a cluster manager tells them"
        )
    if None not in given.values() and given["process_id"] >= given["num_processes"]:
        raise InputError(
            f"--process_id={given['process_id']}: expected 0 to {given['num_processes'] - 1}, below --num_processes"
        )
    coordinator = given["coordinator"]
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise InputError(f"--coordinator={coordinator}: expected HOST:PORT")

    from idgenrec_jax import processes

    processes.start(**given)
    if processes.is_main():
        return
    import jax

    number = jax.process_index()

    def name_process(record: python_logging.LogRecord) -> bool:
        record.msg = f"process {number}: {record.msg}"
        return True

    logging.get_absl_handler().addFilter(name_process)
    logging.set_verbosity(logging.WARNING)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (it stays open to the end)


def _list_in_help() -> None:
    """Have --help list the flags of this file, too: by default it lists those of the program's own file alone."""
    for flag in flags.FLAGS.get_flags_for_module(__name__):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def config_from_flags(default_preset: str) -> Config:
    """Return the preset with every --config flag that was given applied to it."""
    values = flags.FLAGS.flag_values_dict()
    overrides = {name: values[f"config.{name}"] for name, _, _ in fields_with_help()}
    given = {name: value for name, value in overrides.items() if value is not None}
    return preset(values["preset"] or default_preset).override(given)


def run(main: Callable[[], Any]) -> None:
    """Parse flags, run `main`, and turn a user's mistakes into one line and exit code 2."""
    app.run(lambda arguments: sys.exit(_guarded(main, arguments[1:])), flags_parser=_parse_flags)


def stop_on_terminate() -> Callable[[], bool]:
    """Return a function that tells whether SIGTERM or SIGINT (once) has asked the process to stop."""
    received: list[int] = []

    def note(number, _frame):
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        logging.warning("%s: saving, then stopping", signal.Signals(number).name)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return lambda: bool(received)


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except SystemExit:
        sys.exit(0)  # --help was asked for and given; absl calls that a failure.
    except flags.UnrecognizedFlagError as error:
        nearest = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1, cutoff=0.0)
        _fail(f"--{error.flagname}: no such flag; the nearest valid one is --{nearest[0]}")
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))


def _guarded(main: Callable[[], Any], surplus: list[str]) -> int:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_ours)
    if surplus:
        _fail(f"found the argument {surplus[0]!r}, expected flags only, as --NAME=VALUE")
    try:
        main()
    except InputError as error:
        _fail(str(error))
    except Exception as error:
        if is_disk_full(error):
            _fail("no space left on the disk; free some and run the same command again, it goes on where it was")
        if _is_one_of_several():
            _fail_beside_others(error)
        raise
    return 0


def _is_ours(record: python_logging.LogRecord) -> bool:
    """Drop what libraries log below a warning: Orbax alone writes 30 lines a checkpoint."""
    return record.levelno >= python_logging.WARNING or "site-packages" not in record.pathname


def _is_one_of_several() -> bool:
    """Tell whether this process has joined others, without importing JAX where nothing else has."""
    return "idgenrec_jax.processes" in sys.modules and sys.modules["idgenrec_jax.processes"].has_others()


def _fail_beside_others(error: Exception) -> None:
    from jax.errors import JaxRuntimeError

    from idgenrec_jax import processes

    if isinstance(error, JaxRuntimeError):
        processes.await_loss(error)
    traceback.print_exception(error)
    processes.leave(1)


def _fail(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.stderr.flush()
    if _is_one_of_several():
        sys.modules["idgenrec_jax.processes"].leave(USER_ERROR)
    sys.exit(USER_ERROR)
