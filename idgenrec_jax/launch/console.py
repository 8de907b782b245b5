"""The console command `idgenrec`: `idgenrec train --workdir=DIR` is `python -m idgenrec_jax.launch.train ...`."""

import importlib
import sys

from idgenrec_jax import __version__
from idgenrec_jax.errors import nearest
from idgenrec_jax.launch.command_line import CONSOLE, USER_ERROR, run

PROGRAMS = {
    "train": "train ID generator and recommender in alternation",
    "evaluate": "score a trained run on a held-out split",
    "generate_ids": "write a unique textual ID for every item of a catalogue",
    "compare_ids": "compare tables of IDs by the recommenders that learn them",
    "export": "export a trained run to Hugging Face folders or a compiled program",
    "prepare_data": "make a data folder from raw files",
    "check_data": "say what a data folder asks of a model, and what is wrong with it",
    "sweep": "run many trainings",
    "benchmark": "time the work that matters",
}
"""The programs of this package, each a module beside this one, and what each does."""


def main() -> None:
    """Run the program that the first argument names, with the flags that follow it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-h", "-help", "help"):
        print(usage())
    elif name == "--version":
        print(f"{CONSOLE} {__version__}")
    elif name in PROGRAMS:
        sys.argv = [f"{CONSOLE} {name}", *sys.argv[2:]]
        # Only now: a program defines its flags when it is imported, and several have flags of one name.
        run(importlib.import_module(f"idgenrec_jax.launch.{name}").main)
    else:
        valid = nearest(name, PROGRAMS)
        print(f"error: {name!r}: no such command of {CONSOLE}; the nearest is {valid!r}", file=sys.stderr)
        sys.exit(USER_ERROR)


def usage() -> str:
    """Return the list of programs, a line each."""
    width = max(map(len, PROGRAMS))
    programs = (f"  {name:<{width}}  {text}" for name, text in PROGRAMS.items())
    return "\n".join([f"{CONSOLE} PROGRAM --FLAG=VALUE ...; {CONSOLE} PROGRAM --help lists its flags", "", *programs])
