"""README and docs/: links lead somewhere, the map names every file, the figure is what its script draws."""

import importlib.util

import documentation
import pytest
import yaml
from documentation import README, ROOT, anchors, links, mapped_files, pages
from test_module_order import LAYERS

import idgenrec_jax
from idgenrec_jax.config import Config
from idgenrec_jax.launch.console import PROGRAMS
from idgenrec_jax.sweeps.definition import load_space, load_sweep


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.read_bytes()) < 10_000
    assert sorted(pages()[1:]) == sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", [*pages(), ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
    lost = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = (page.parent / path).resolve() if path else page
        if not linked.is_file() or (anchor and anchor not in anchors(linked)):
            lost.append(target)
    assert not lost


def test_the_map_of_the_code_names_every_file_once():
    files = (ROOT / "idgenrec_jax").rglob("*.py")
    found = [str(path.relative_to(ROOT)) for path in files if path.name != "__init__.py"]
    mapped = mapped_files(ROOT / "docs" / "map.md")
    missing, gone = sorted(set(found) - set(mapped)), sorted(set(mapped) - set(found))
    assert missing == [], "not in docs/map.md"
    assert gone == [], "in docs/map.md only"
    assert len(mapped) == len(set(mapped))


def test_a_checkout_has_every_program_under_its_name():
    assert {path.stem for path in (ROOT / "launch").glob("*.py")} == {"__init__", *PROGRAMS}
    assert "\nlaunch/  " in README.read_text(encoding="utf-8")


def test_the_picture_of_the_layers_has_each_module_in_its_layer():
    picture = documentation.section(ROOT / "docs" / "design.md", "Layers").partition("```\n")[2].partition("```")[0]
    shown = [set(line.partition("  ")[0].split()) for line in picture.splitlines()]
    there = {path.name.removesuffix(".py") for path in (ROOT / "idgenrec_jax").glob("[!_]*")}
    layers = [set(names) & there for names in reversed(LAYERS)]
    assert shown == [layer for layer in layers if layer]


def test_the_figure_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("draw_overview", ROOT / "docs" / "draw_overview.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (ROOT / "docs" / "overview.svg").read_text(encoding="utf-8") == script.drawing()


def test_the_sweep_that_is_shown_has_its_trials(tmp_path):
    path = tmp_path / "my_sweep.py"
    path.write_text(documentation.files()["my_sweep.py"])
    assert len(load_sweep(str(path), {}, Config())) == 6
    assert set(load_space(str(path), Config())) == {
        "training.recommender_learning_rate",
        "recommender.dropout_rate",
    }


@pytest.mark.parametrize("name", documentation.files())
def test_the_code_that_is_shown_is_python(name):
    compile(documentation.files()[name], name, "exec")


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == idgenrec_jax.__version__
