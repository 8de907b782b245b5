"""H&M Personalized Fashion Recommendations: transactions by day, and articles."""

from collections.abc import Sequence

from idgenrec_jax.data.sources.rows import Form
from idgenrec_jax.data.sources.sniffing import RawFile
from idgenrec_jax.data.sources.source import RawData, Source
from idgenrec_jax.data.sources.tables import InteractionColumns, open_log, text

_COLUMNS = InteractionColumns("customer_id", "article_id", "t_dat", "iso")
_FIELDS = {
    "title": text("prod_name"),
    "product_type": text("product_type_name"),
    "colour": text("colour_group_name"),
    "department": text("department_name"),
    "section": text("section_name"),
    "description": text("detail_desc"),
}
_NOTES = ("rows with equal customer, article and day are several pieces of one purchase; they count once",)


def recognise(files: Sequence[RawFile]) -> RawData | None:
    """Open the transactions of H&M, and the articles where they are there."""
    return open_log(files, Form("csv"), _COLUMNS, _FIELDS, _NOTES)


SOURCE = Source(
    "H&M fashion purchases",
    "transactions_train.csv (t_dat, customer_id, article_id) and perhaps articles.csv (article_id, prod_name)",
    recognise,
    "the rules of the Kaggle competition: research and education, not redistributed",
)
