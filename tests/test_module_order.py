"""The order of the modules: each imports only from those above it; production code knows no benchmark, no program."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "idgenrec_jax"

# Modules and packages of idgenrec_jax, what builds on nothing first; those of one line are apart from each other.
LAYERS = (
    ("errors",),
    ("locks",),
    ("files", "host_memory", "switches"),
    ("config", "run_files", "processes", "compilation_cache"),
    ("presets",),
    ("background", "progress", "sharding"),
    ("data",),
    ("models",),
    ("decoding",),
    ("ids",),
    ("training",),
    ("evaluation",),
    ("baselines",),
    ("inputs",),
    ("workdir",),
    ("experiment",),
    ("id_comparison", "report", "trained_run"),
    ("recommender",),
    ("export", "sweeps", "serving", "benchmark", "dry_run"),
    ("launch",),
)
_LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}


def imports_of(path):
    """The modules of this package that a file imports, whether at its top or inside a function: (line, name)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "idgenrec_jax":
            inner = node.module.split(".")[1:]
            yield from ((node.lineno, inner[0] if inner else alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("idgenrec_jax."):
                    yield node.lineno, alias.name.split(".")[1]


def room_of(path):
    """The module or package of idgenrec_jax that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_every_module_has_its_layer():
    assert {room_of(path) for path in FILES} <= set(_LAYER_OF)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_above_it(path):
    room = room_of(path)
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for line, name in imports_of(path)
        if name in _LAYER_OF and name != room and _LAYER_OF[name] >= _LAYER_OF[room]
    ]
    assert not wrong, f"{wrong} not above {room}"
