"""The wheel: what it holds, and that its programs work in an environment without the checkout."""

import email
import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import idgenrec_jax
from idgenrec_jax.data.sample import sample_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "idgenrec_jax"
PROGRAMS = {path.stem for path in (ROOT / "launch").glob("*.py")} - {"__init__"}

pytestmark = pytest.mark.slow

# Few items and users, IDs of keywords, one epoch, minute models: what has to be compiled is least.
SWEEP = """
def sweep():
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}
    return [{f"{model}.{name}": value for model in ("recommender", "id_generator") for name, value in sizes.items()}]
"""
FLAGS = (
    "--config.ids.scheme=keywords", "--config.training.id_epochs=0", "--config.training.rounds=1",
    "--config.training.warm_start_epochs=0", "--config.training.recommender_epochs=1",
    "--config.training.recommender_examples_per_epoch=64", "--config.evaluation.num_beams=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that nothing of an earlier build is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(PACKAGE, folder / "source" / "idgenrec_jax", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "launch", folder / "source" / "launch")
    for file in [*ROOT.glob("*.md"), *ROOT.glob("requirements*.txt"), *ROOT.glob("LICENSE"), ROOT / "pyproject.toml"]:
        shutil.copy(file, folder / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder]
    built = subprocess.run([*command, folder / "source"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def idgenrec(wheel, tmp_path_factory):
    """Runs the installed command in a folder of its own; the packages it needs are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    (own,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (own / "needed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert installed.returncode == 0, installed.stderr
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XDG_CACHE_HOME": str(folder / "cache"), "LANG": "C"}

    def run(*arguments):
        return subprocess.run(
            [folder / "venv" / "bin" / "idgenrec", *arguments], cwd=folder, env=environment, capture_output=True,
            text=True, check=False, timeout=300,
        )  # fmt: skip

    run.folder = folder
    return run


def write_data(folder):
    """Thirty items, and as many users who walk through them."""
    folder.mkdir()
    items = [f"item{number}" for number in range(30)]
    titles = [f"{('red', 'blue')[number // 2 % 2]} {('kettle', 'jug')[number % 2]} {number}" for number in range(30)]
    records = [json.dumps({"id": item, "title": title}) for item, title in zip(items, titles, strict=True)]
    (folder / "items.jsonl").write_text("\n".join(records))
    walks = [" ".join([f"user{user}", *(items[(user + step) % 30] for step in range(5))]) for user in range(30)]
    (folder / "user_sequence.txt").write_text("\n".join(walks))


def test_the_wheel_holds_the_whole_package_and_owns_no_other_name(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {str(path.relative_to(ROOT)) for path in files} <= names
    assert {name.split("/")[0] for name in names} == {
        "idgenrec_jax", f"idgenrec_jax-{idgenrec_jax.__version__}.dist-info",
    }  # fmt: skip


def test_the_wheel_tells_its_licence_and_what_it_needs_for_what(wheel):
    (name,) = (name for name in zipfile.ZipFile(wheel).namelist() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(zipfile.ZipFile(wheel).read(name))
    assert metadata["License-Expression"] == "Apache-2.0" and metadata["License-File"] == "LICENSE"
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    for file, marker in (
        ("requirements.txt", ""),
        ("requirements-logging.txt", 'extra == "logging"'),
        ("requirements-pages.txt", 'extra == "pages"'),
        ("requirements-sweeps.txt", 'extra == "sweeps"'),
    ):
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        expected = {str(Requirement(line)) for line in lines if not line.startswith("#")}
        found = [one for one in needed if str(one.marker or "") == marker]
        assert {f"{one.name}{one.specifier}" for one in found} == expected


def test_the_command_lists_every_program_and_suggests_the_nearest(idgenrec):
    listed = idgenrec("--help").stdout.splitlines()
    assert {line.split()[0] for line in listed if line.startswith("  ")} == PROGRAMS
    assert all(len(line.split()) > 3 for line in listed if line.startswith("  "))
    assert idgenrec("--version").stdout == f"idgenrec {idgenrec_jax.__version__}\n"
    wrong = idgenrec("trian", "--workdir=run")
    assert wrong.returncode == 2 and wrong.stderr == (
        "error: 'trian': no such command of idgenrec; the nearest is 'train'\n"
    )


def test_messages_name_the_programs_as_they_are_called(idgenrec):
    shown = idgenrec("evaluate", "--help").stdout
    assert shown.startswith("Score a trained run on a held-out split: idgenrec evaluate --workdir=DIR")
    assert "--coordinator" in shown and "launch." not in shown
    error = idgenrec("evaluate", "--workdir=nowhere").stderr
    assert error.endswith("expected the --workdir of a run of idgenrec train\n")


def test_an_installed_command_trains_in_a_sweep_and_exports(idgenrec):
    """A trial is a process that the sweep starts, so both find the programs without a checkout."""
    write_data(idgenrec.folder / "data")
    sample_tokenizer().save(idgenrec.folder / "tokenizer")
    (idgenrec.folder / "mine.py").write_text(SWEEP)
    data = "--data=data", "--config.data.tokenizer=tokenizer"
    trained = idgenrec("sweep", "--sweep=mine.py", "--output=out", *data, *FLAGS)
    log = idgenrec.folder / "out" / "trial_00000" / "log.txt"
    assert trained.returncode == 0, trained.stderr + (log.read_text() if log.exists() else "")
    # Of what is logged in site-packages, the package's own is shown.
    assert "ready to train after" in log.read_text() and "Ten IDs" in log.read_text()
    assert "ndcg@10" in trained.stdout
    run = "--workdir=out/trial_00000/run"
    exported = idgenrec("export", run, "--output=program", "--format=stablehlo", "--platforms=cpu")
    assert exported.returncode == 0, exported.stderr
    assert (idgenrec.folder / "program" / "recommend.py").read_text() == (PACKAGE / "export/recommend.py").read_text()
