"""What the programs share: flags of the configuration and of processes, one-line errors, logging."""

import errno
import io
import logging as python_logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

from idgenrec_jax.compilation_cache import use_compilation_cache as use_compilation_cache
from idgenrec_jax.config import Config, fields_with_help
from idgenrec_jax.errors import InputError, nearest
from idgenrec_jax.files import expand_home, is_disk_full
from idgenrec_jax.host_memory import keep_freed_memory
from idgenrec_jax.presets import PRESETS, preset

USER_ERROR = 2
CONSOLE = "idgenrec"
"""The command of an installed package, whose first argument names the program."""

_CONFIG_FLAG = re.compile(r"--(config\.\w+\.\w+)")
# What programs without --config call the same.
_SHORT_NAMES = {
    "config.data.path": "data",
    "config.data.tokenizer": "tokenizer",
    "config.id_generator.folder": "id_generator",
}
_PACKAGE = str(Path(__file__).parents[1])
# What is wrong with a path, whatever is done with it.
_PATH_FAULTS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP)
# Characters of another's message that are shown.
_SHOWN = 200
_DEFINE: dict[type, Callable[[str, None, str], flags.FlagHolder]] = {
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    bool: flags.DEFINE_bool,
}


class _PathParser(flags.ArgumentParser):
    """Takes a path as a shell would: the shell itself leaves the ~ of --NAME=~/FILE as it is."""

    def parse(self, argument: str) -> str:
        return expand_home(argument)


def define_path(name: str, default: str | None, help: str, *, required: bool = False) -> flags.FlagHolder[str]:
    """Define a flag that names a file or folder; a leading ~ is the home folder, and a name without it stays."""
    return flags.DEFINE(
        _PathParser(), name, default, help, serializer=flags.ArgumentSerializer(), required=required
    )


def define_config_flags() -> None:
    """Define --preset and one flag --config.SECTION.FIELD for every field of the configuration."""
    flags.DEFINE_string("preset", None, f"named configuration to start from: {', '.join(PRESETS)}")
    for name, kind, text in fields_with_help():
        _DEFINE[kind](f"config.{name}", None, text)


def define_process_flags() -> None:
    """Define --distributed, --coordinator, --num_processes and --process_id."""
    flags.DEFINE_bool(
        "distributed", False, "one of several processes, which Slurm, Kubernetes, Cloud TPU or MPI tell of each other"
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where no cluster manager tells it")
    flags.DEFINE_integer("num_processes", None, "with --coordinator: how many processes there are", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "with --coordinator: this process, 0 to N-1", lower_bound=0)


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
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
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


def data_from_flags() -> str:
    """Return what --data or --config.data.path names, "sample" where neither is given.

    Raises:
        InputError: they name different data.
    """
    short, long = flags.FLAGS["data"].value, expand_home(flags.FLAGS["config.data.path"].value or "")
    if short and long and short != long:
        raise InputError(f"--data={short} and --config.data.path={long}: both name the data; leave out one of them")
    return short or long or "sample"


def config_from_flags(default_preset: str) -> Config:
    """Return the preset with the data and every --config flag that was given applied to it."""
    values = flags.FLAGS.flag_values_dict()
    overrides = {name: values[f"config.{name}"] for name, _, _ in fields_with_help()}
    given = {name: value for name, value in overrides.items() if value is not None}
    return preset(values["preset"] or default_preset).override(given | {"data.path": data_from_flags()})


def refuse_without(needed: str, names: Collection[str]) -> None:
    """Check that flags which do something only beside another, `needed`, were not given without it.

    Raises:
        InputError: one of `names` was given.
    """
    for name in names:
        if flags.FLAGS[name].present:
            raise InputError(f"{flags.FLAGS[name].serialize()}: expected with {needed} only")


def run(main: Callable[[], Any]) -> None:
    """Parse flags, run `main`, and turn a user's mistakes into one line and exit code 2."""
    keep_freed_memory()
    print_what_can_be_printed()
    _describe_in_help(main)
    try:
        try:
            app.run(lambda arguments: sys.exit(_guarded(main, arguments[1:])), flags_parser=_parse_flags)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has had enough (| head); what is still in the buffer must not be tried at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def print_what_can_be_printed() -> None:
    """Have a terminal that cannot print a character show its escape: a title in any script is no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


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


def _describe_in_help(main: Callable[[], Any]) -> None:
    """Have --help tell about the program, whatever file it was started by: absl looks into that file alone."""
    sys.modules["__main__"].__doc__ = _as_called(sys.modules[main.__module__].__doc__ or "")
    for module in (main.__module__, __name__):
        for flag in flags.FLAGS.get_flags_for_module(module):
            flag.help = _as_called(flag.help)
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def with_own_flags(message: str, own: Collection[str]) -> str:
    """Return an error in terms of this program's flags, `own`: what reports it knows those of launch.train alone.

    A flag that has another name here gets it; of others it is said whose they are.
    """
    for name in _CONFIG_FLAG.findall(message):
        short = _SHORT_NAMES.get(name)
        if name not in own and short in own:
            message = re.sub(rf"--{re.escape(name)}\b", f"--{short}", message)
    has_config_flags = any(_CONFIG_FLAG.match(f"--{name}") for name in own)
    foreign = not has_config_flags and bool(_CONFIG_FLAG.search(message))
    return f"{message} (flags --config.SECTION.FIELD are those of launch.train)" if foreign else message


def _as_called(text: str) -> str:
    """Name the programs as this one was called: an installed package has no `launch`, a checkout no `idgenrec`."""
    return re.sub(r"(python -m )?\blaunch\.(?=[a-z])", f"{CONSOLE} ", text) if _is_console() else text


def _is_console() -> bool:
    return sys.argv[0].startswith(f"{CONSOLE} ")


def _parse_flags(arguments: list[str]) -> list[str]:
    try:
        return flags.FLAGS(arguments)
    except SystemExit:
        sys.exit(0)  # --help was asked for and given; absl calls that a failure.
    except flags.UnrecognizedFlagError as error:
        valid = nearest(error.flagname, flags.FLAGS)
        _fail(f"--{error.flagname}: no such flag; the nearest valid one is --{valid}")
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))


def _guarded(main: Callable[[], Any], surplus: list[str]) -> int:
    if not flags.FLAGS["verbosity"].present:
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
        if isinstance(error, OSError) and error.errno in _PATH_FAULTS and error.filename is not None:
            _fail(f"{error.filename}: {error.strerror}; expected a file or folder that this process may use")
        if isinstance(error, MemoryError) or str(error).startswith("RESOURCE_EXHAUSTED"):
            reason = str(error)[:_SHOWN] or "of this machine"
            _fail(
                f"out of memory ({reason}); smaller batches and models need less, and so do "
                "--config.training.gradient_accumulation, --config.training.id_chunks and "
                "--config.recommender.rematerialise=layers"
            )
        if _is_one_of_several():
            _fail_beside_others(error)
        if fault := _fault_of_devices():
            _fail(fault)
        raise
    return 0


def _fault_of_devices() -> str | None:
    """What keeps JAX from any device, where something does: its first use, wherever that is, fails for it."""
    if "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        platforms, reason = os.environ.get("JAX_PLATFORMS", ""), str(error) or "it finds none of these platforms"
        return f"JAX_PLATFORMS={platforms}: JAX has no device ({reason}); unset it, or install the jax of that platform"
    return None


def _is_ours(record: python_logging.LogRecord) -> bool:
    """Drop what libraries log below a warning: Orbax alone writes 30 lines a checkpoint."""
    ours = "site-packages" not in record.pathname or record.pathname.startswith(_PACKAGE)
    return ours or record.levelno >= python_logging.WARNING


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


def _fail(message: str) -> NoReturn:
    print(f"error: {' '.join(_as_called(with_own_flags(message, list(flags.FLAGS))).split())}", file=sys.stderr)
    sys.stderr.flush()
    if _is_one_of_several():
        sys.modules["idgenrec_jax.processes"].leave(USER_ERROR)
    sys.exit(USER_ERROR)
