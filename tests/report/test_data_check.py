"""What is said of a data set: as text, as JSON and as a page that needs nothing else."""

import html.parser
import json
import re
import sys

import numpy as np
import pytest

from idgenrec_jax.data.dataset import Dataset
from idgenrec_jax.errors import InputError
from idgenrec_jax.report.data_check import check_data
from idgenrec_jax.report.data_page import check_page_requirements, write_data_page


def make_dataset(name="shop", is_sorted=False):
    rng = np.random.default_rng(0)
    rows = [rng.permutation(20)[:7] for _ in range(30)]
    return Dataset(
        name=name,
        users=tuple(map(str, range(30))),
        items=tuple(f"item{number:02}" for number in range(20)),
        item_texts=tuple(f"title: kettle {number % 7}" for number in range(20)),
        sequences=tuple((np.sort(row) if is_sorted else row).astype(np.int32) for row in rows),
    )


@pytest.fixture(scope="module")
def found():
    return check_data(make_dataset())


def test_plain_text_is_short_aligned_and_has_every_number(found):
    text = found.to_text()
    lines = text.splitlines()
    assert lines[0] == "shop: 30 users, 20 items, 210 interactions"
    assert "  wholly in the order of item keys      0.0% of 30 users with 5 items or more" in lines
    assert "  with the text of another item         100.0% of 20 items" in lines
    history = next(line for line in lines if line.startswith("  history before a test target"))
    assert history.split()[-7:] == ["6"] * 7
    assert "Without training (validation: all 30 targets; test: all 30 targets)" in lines
    test = found.floors[1].metrics["transitions_and_text"]
    row = next(line for line in lines if line.startswith("transitions and text, test"))
    assert row.split()[-4:] == [f"{test[name]:.4f}" for name in ("hr@5", "hr@10", "ndcg@5", "ndcg@10")]
    judgement = " ".join(text.partition("\nJudgement\n")[2].split())
    assert "- 100.0% of the items have the text of another item: numbers" in judgement
    assert max(map(len, lines)) <= 100


def test_a_fault_is_loud_everywhere(tmp_path):
    found = check_data(make_dataset(is_sorted=True))
    assert found.defeats_test and found.to_json()["defeats_test"]
    assert "  - THE TEST SPLIT MEANS NOTHING. Not in the order of time" in found.to_text()
    write_data_page(found, tmp_path / "page.html")
    assert '<li class="fault"><b>The test split means nothing.</b>' in (tmp_path / "page.html").read_text()


def test_json_has_every_number(found):
    values = json.loads(json.dumps(found.to_json()))
    assert set(values) == {"data", "texts", "untrained", "findings", "defeats_test"}
    assert {"order", "held_out", "history_lengths", "users_by_interactions", "blank_texts"} < set(values["data"])
    assert values["data"]["order"]["share_ascending"] == found.data.order.ascending / 180
    assert values["texts"]["unit"] == "words" and values["texts"]["lengths"]["median"] == 3
    assert set(values["untrained"]) == {"validation", "test"}
    assert values["untrained"]["test"]["metrics"]["popularity"] == found.floors[1].metrics["popularity"]
    assert values["untrained"]["test"]["targets"] == 30 and values["untrained"]["test"]["is_sample"] is False


class Elements(html.parser.HTMLParser):
    """The elements of a page, and whether every one is closed in its turn."""

    VOID = {"meta", "use", "path", "rect", "br"}

    def __init__(self, page):
        super().__init__()
        self.open, self.found, self.ids = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_holds_the_charts(found, tmp_path):
    write_data_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//|@import|url\((?!#)", page)
    elements = Elements(page).found
    names = [name for name, _ in elements]
    assert not {"script", "link", "iframe", "img", "object"} & set(names)
    assert not any(key.startswith("on") for _, attributes in elements for key in attributes)
    assert names.count("svg") == names.count("figure") == 6
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert referred <= set(ids)
    # Letters stay letters, in the colours of the page.
    assert "transitions and text</text>" in page and "var(--ink)" in page and "#010101" not in page
    assert f"{found.floors[1].metrics['transitions_and_text']['hr@10']:.4f}</text>" in page
    assert "prefers-color-scheme: dark" in page and "@media print" in page


def test_the_name_of_a_folder_cannot_become_a_part_of_the_page(tmp_path):
    write_data_page(check_data(make_dataset(name="<script>$a$</script>")), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in page and "&lt;script&gt;$a$" in page


@pytest.mark.parametrize("rows", [[[0, 0, 0, 0]], [[0]], [[0, 1], [1, 0, 1]]])
def test_one_item_one_user_nobody_to_evaluate(tmp_path, rows):
    dataset = Dataset(
        "shop", tuple(map(str, range(len(rows)))), ("a", "b"), ("title: red", ""),
        tuple(np.asarray(row, np.int32) for row in rows),
    )  # fmt: skip
    found = check_data(dataset)
    assert found.to_text().startswith("shop: ") and json.dumps(found.to_json(), allow_nan=False)
    write_data_page(found, tmp_path / "page.html")
    Elements((tmp_path / "page.html").read_text())


def test_a_page_without_its_packages_is_one_line(monkeypatch):
    check_page_requirements("--page=x.html")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(InputError, match=r"^--page=x.html: jinja2 not installed.* -r requirements-pages.txt"):
        check_page_requirements("--page=x.html")
