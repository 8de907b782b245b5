"""The page of launch.check_data: one HTML file that needs nothing else, with charts."""

import importlib.util
from pathlib import Path

from idgenrec_jax.data.inspection import percent
from idgenrec_jax.errors import InputError
from idgenrec_jax.evaluation.untrained import RANKINGS
from idgenrec_jax.files import atomic_writer
from idgenrec_jax.report.data_check import COLUMNS, SPREAD, DataCheck
from idgenrec_jax.report.figures import Bars, draw

TEMPLATE = "data_page.html"
_NEEDED = ("jinja2", "matplotlib")


def check_page_requirements(flag: str) -> None:
    """Check that the libraries are there which a page is made with.

    Raises:
        InputError: one is missing; `flag` asked for the page.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{flag}: {' and '.join(missing)} not installed, expected for pages; pip install -r "
            "requirements-pages.txt, or pip install 'idgenrec-jax[pages]'"
        )


def write_data_page(check: DataCheck, path: str | Path) -> None:
    """Write the page of a data set, for every screen, dark or light, and for paper.

    Raises:
        InputError: the file cannot be written.
    """
    import jinja2

    # Everything in the page is escaped, except for the charts, which this package draws.
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = [(chart.title, draw(chart, f"chart{number}")) for number, chart in enumerate(_charts(check))]
    page = environment.get_template(TEMPLATE).render(
        check=check, charts=charts, spread=list(SPREAD), columns=COLUMNS, floors=check.floor_rows()
    )
    with atomic_writer(path) as file:
        file.write(page)


def _charts(check: DataCheck) -> list[Bars]:
    order = check.data.order
    shares = {"users wholly": order.in_key_order, "transitions": order.share_ascending}
    charts = [
        Bars(
            "In the order of the item keys; the line is what transitions have by chance",
            list(shares),
            list(shares.values()),
            [percent(share, 1) for share in shares.values()],
            limit=1.0,
            reference=0.5,
        )
    ]
    tested = [floor for floor in check.floors if floor.split == "test"]
    for floor in tested:
        for metric in ("hr@10", "ndcg@10"):
            values = [floor.metrics[name][metric] for name in RANKINGS]
            labels = [name.replace("_", " ") for name in RANKINGS]
            charts.append(
                Bars(f"Without training, test: {metric.upper()}", labels, values, [f"{one:.4f}" for one in values])
            )
    charts += [
        Bars(heading, list(counts), list(counts.values()), [f"{count:,}" for count in counts.values()])
        for heading, counts in check.buckets().items()
    ]
    return charts
