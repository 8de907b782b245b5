"""What all programs share: flags of paths, messages in the program's own terms, output that any terminal can print."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import idgenrec_jax
from idgenrec_jax.launch.command_line import with_own_flags
from idgenrec_jax.launch.console import PROGRAMS

PACKAGE = Path(idgenrec_jax.__file__).parent
ROOT = PACKAGE.parent

# Flags of other programs, which messages and scripts name as well.
OTHERS = {
    "array", "cascade", "constraint", "format", "help", "ignore-not-found", "jobs", "me", "noheader", "parsable", "qos",
    "requeue", "signal", "version",
}  # fmt: skip


LIST_FLAGS = """
import importlib, json, sys
from absl import flags
from idgenrec_jax.errors import InputError
program = importlib.import_module(f"idgenrec_jax.launch.{sys.argv[1]}")
by_module = flags.FLAGS.flags_by_module_dict()
own = [flag for module, defined in by_module.items() if "absl" not in module for flag in defined]
is_text = [flag for flag in own if type(flag.parser).__name__ in ("ArgumentParser", "_PathParser")]
error = ""
if len(sys.argv) > 2:
    flags.FLAGS(sys.argv[1:])
    try:
        program.main()
    except InputError as caught:
        error = str(caught)
texts = {flag.name: [flag.help, flag.parser.parse("~/x")] for flag in is_text}
print(json.dumps([list(flags.FLAGS), texts, error]))
"""

# Flags that do nothing alone, and what the program says to them.
ALONE = {
    "train": (["--temporaries=none"], "--temporaries=none: expected with --dry_run only"),
    "generate_ids": (
        ["--workdir=run", "--data=sample", "--output=out", "--tokenizer=t5"],
        "--tokenizer=t5: expected with --id_generator only",
    ),
    "export": (
        ["--workdir=run", "--output=out", "--platforms=cpu,tpu"],
        "--platforms=cpu,tpu: expected with --format=stablehlo only",
    ),
    "sweep": (["--output=out", "--sampler_seed=1"], "--sampler_seed=1: expected with --sampler only"),
    "benchmark": (
        ["--data=sample", "--config.data.path=shop", "--only=ids"],
        "--data=sample and --config.data.path=shop: both name the data; leave out one of them",
    ),
}


@pytest.fixture(scope="module")
def programs_flags():
    """Of every program the names of its flags; those that take text: their help, and what they make of ~/x; its error.

    Each defines its own when it is imported, so each is imported alone.
    """
    found = {}
    for program in PROGRAMS:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": "/home/me"}
        command = [sys.executable, "-c", LIST_FLAGS, program, *ALONE.get(program, ([], ""))[0]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found[program] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def flags_of(programs_flags):
    return {program: set(names) for program, (names, _, _) in programs_flags.items()}


def flags_in_texts(path):
    """(line, pattern) of every --flag in a string of a file; what is only known when it runs matches anything."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            text = node.value
        else:
            continue
        for name in re.findall(r"(?<![\w-])--([\w\0][\w\0.-]*)", text):
            # SECTION, FIELD, ENGINE stand for any.
            yield node.lineno, re.sub(r"\\0|[A-Z]+", "\0", name.rstrip(".-"))


def test_every_flag_that_a_text_names_is_one_of_a_program(flags_of):
    known = set().union(*flags_of.values())
    sections = {name.rpartition(".")[0] for name in known} | {"config"}
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: --{name!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.name.startswith("peer")
        for line, name in flags_in_texts(path)
        if name not in OTHERS
        and not any(re.fullmatch(re.escape(name).replace("\0", ".*"), flag) for flag in known | sections)
    ]
    assert not wrong


def test_an_error_names_the_flags_of_the_program_that_prints_it(flags_of):
    message = "--config.data.tokenizer=x: no tokenizer; give --config.data.tokenizer, or --config.recommender.folder"
    assert with_own_flags(message, flags_of["train"]) == message
    assert with_own_flags(message, flags_of["generate_ids"]) == (
        "--tokenizer=x: no tokenizer; give --tokenizer, or --config.recommender.folder (flags "
        "--config.SECTION.FIELD are those of launch.train)"
    )
    assert with_own_flags("--data=x: no such folder", flags_of["evaluate"]) == "--data=x: no such folder"


@pytest.mark.parametrize("program", ALONE)
def test_a_flag_that_would_do_nothing_is_refused(programs_flags, program):
    assert programs_flags[program][2] == ALONE[program][1]


def test_every_flag_of_a_path_knows_the_home_folder(programs_flags):
    """Those of the configuration are expanded where the configuration is made (tests/test_config.py)."""
    # An address, of which the journal's file is expanded where it is opened.
    others = {"storage"}
    for program, (_, texts, _) in programs_flags.items():
        own = {name: text for name, text in texts.items() if not name.startswith("config.") and name not in others}
        paths = {name for name, (text, _) in own.items() if re.search("folder|file|FILE|Folder|data_", text)}
        expanded = {name for name, (_, value) in own.items() if value == "/home/me/x"}
        assert paths - {"kubernetes.name"} <= expanded, program
        assert {"data"} & set(own) <= expanded and {"workdir", "output"} & set(own) <= expanded, program


PRINT_TITLE = r"""
from absl import logging
from idgenrec_jax.experiment import examples_table
from idgenrec_jax.launch.command_line import run

def main():
    print(examples_table([{"item": "i1", "id": "\u624b \u58f6", "text": "title: \u624b\u51b2 \ud800"}]))
    logging.info("item %s", "\u624b")

run(main)
"""


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [("ascii", rb"  \u624b \u58f6  <-  title: \u624b\u51b2 \ud800"), ("utf-8", "  手 壶  <-  title: 手冲 ".encode())],
)
def test_a_terminal_that_cannot_print_a_title_shows_its_escapes(encoding, expected):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", PRINT_TITLE], env=environment, capture_output=True, check=False)
    assert done.returncode == 0 and b"Error" not in done.stderr, done.stderr
    assert expected in done.stdout and rb"\ud800" in done.stdout


@pytest.mark.parametrize(("given", "is_said"), [([], True), (["--verbosity=-1"], False)])
def test_the_log_is_as_verbose_as_asked(given, is_said):
    code = "from absl import logging; from idgenrec_jax.launch.command_line import run; run(lambda: logging.info('hm'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ("hm" in done.stderr) == is_said


def test_a_platform_that_jax_does_not_have_is_one_line():
    code = "import jax; from idgenrec_jax.launch.command_line import run; run(jax.devices)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "abacus"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: JAX_PLATFORMS=abacus: JAX has no device (") and done.stderr.count("\n") == 1


def test_a_reader_that_has_had_enough_is_no_error():
    """As with | head: the help is longer than what a pipe holds unread."""
    code = "import sys; sys.argv = ['train', '--help']; from idgenrec_jax.launch.train import main, run; run(main)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
