"""Making a data folder of millions of reviews, beside DuckDB where it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

from idgenrec_jax.benchmark.synthetic_reviews import write_synthetic_reviews
from idgenrec_jax.benchmark.work import Work
from idgenrec_jax.errors import InputError

_OURS = """
import sys
from idgenrec_jax.data.sources.preparation import Filters, prepare
prepare("amazon", [sys.argv[1]], sys.argv[2], Filters())
"""
# What a person would write: the same filters, no order of ties, no cleaning of texts, no check of a record.
_DUCKDB = """
import sys
import duckdb
folder, output = sys.argv[1:]
base = duckdb.connect(config={"threads": 1})
read = "read_json('{}', format='newline_delimited', columns={})"
reviews = read.format(f"{folder}/reviews.json.gz", "{reviewerID: 'VARCHAR', asin: 'VARCHAR', unixReviewTime: 'BIGINT'}")
items = read.format(
    f"{folder}/meta.json.gz",
    "{asin: 'VARCHAR', title: 'VARCHAR', brand: 'VARCHAR', category: 'VARCHAR[]', description: 'VARCHAR[]'}",
)
base.execute(f"create table log as select reviewerID u, asin i, min(unixReviewTime) t from {reviews} group by 1, 2")
while True:
    before = base.execute("select count(*) from log").fetchone()
    base.execute(
        "create or replace table log as select * from log "
        "where u in (select u from log group by u having count(*) >= 5) "
        "and i in (select i from log group by i having count(*) >= 5)"
    )
    if base.execute("select count(*) from log").fetchone() == before:
        break
base.execute(f"copy (select u, list(i order by t) from log group by u) to '{output}/sequences.csv'")
base.execute(f"copy (select * from {items} where asin in (select i from log)) to '{output}/items.json'")
"""
# The system's own account of a child has the memory of its parent in it.
_FIGURES = """
import time
from idgenrec_jax.benchmark.process_memory import process_peak_bytes
print(f"{time.process_time():.1f} s of processor time, {process_peak_bytes() / 2**20:.0f} MiB at its peak")
"""


def preparation(scratch: Path, *, reviews: int, items: int) -> Work:
    """Raw reviews to a data folder; the processor's seconds and the peak of memory stand in the note."""
    folder = scratch / "reviews"
    folder.mkdir()
    write_synthetic_reviews(folder, reviews, items, users=max(1, reviews * 35 // 100))
    ours = _program("preparing data", _OURS, scratch, folder, reviews, fresh=True)
    try:
        import duckdb
    except ImportError:
        return ours
    beside = _program(f"the filters in DuckDB {duckdb.__version__}", _DUCKDB, scratch, folder, reviews, fresh=False)
    return Work(**(vars(ours) | {"beside": beside}))


def _program(name: str, code: str, scratch: Path, folder: Path, reviews: int, *, fresh: bool) -> Work:
    """A process of its own, which tells its processor time and memory when it ends."""
    figures: list[str] = []

    def run() -> None:
        output = scratch / "prepared"
        shutil.rmtree(output, ignore_errors=True)
        if not fresh:
            output.mkdir()
        command = [sys.executable, "-c", code + _FIGURES, str(folder), str(output)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if process.returncode:
            raise InputError(f"{name}: ended with status {process.returncode}, after what is printed above")
        figures.append(process.stdout.splitlines()[-1])

    return Work(name, "review", reviews, run, note=lambda: figures[-1])
