"""The H&M format on tiny raw files."""

import pytest

from idgenrec_jax.data.dataset import load_dataset
from idgenrec_jax.data.sources.preparation import Filters, prepare
from idgenrec_jax.errors import InputError

ALL = Filters(user_core=1, item_core=1)
ANN, BEA = "0" * 60 + "a1b2", "f" * 64

TRANSACTIONS = f"""\
t_dat,customer_id,article_id,price,sales_channel_id
2018-09-21,{ANN},0108775015,0.0508,2
2018-09-20,{ANN},0663713001,0.0304,2
2018-09-20,{ANN},0663713001,0.0304,2
2018-09-20,{BEA},0108775015,0.0152,1
"""
ARTICLES = """\
article_id,product_code,prod_name,product_type_name,colour_group_name,department_name,section_name,detail_desc
0108775015,0108775,Strap top,Vest top,Black,Jersey Basic,Womens Everyday Basics,"Jersey top, with narrow straps."
0663713001,0663713,"Atlanta ""Push"" Body",Underwear body,White,Expressive Lingerie,Womens Lingerie,
"""


def write_raw(folder, transactions=TRANSACTIONS):
    folder.mkdir()
    (folder / "transactions_train.csv").write_text(transactions)
    (folder / "articles.csv").write_text(ARTICLES)
    (folder / "customers.csv").write_text(f"customer_id,FN,Active,age\n{ANN},,,49\n")
    (folder / "sample_submission.csv").write_text(f"customer_id,prediction\n{ANN},0108775015 0663713001\n")
    return folder


def test_transactions_and_articles(tmp_path):
    card = prepare("auto", [write_raw(tmp_path / "raw")], tmp_path / "out", ALL)
    assert (card.source, card.interactions, card.exact_repeats) == ("hm", 3, 1)
    assert card.reason == "transactions_train.csv has customer_id, article_id, t_dat"
    assert card.notes == [
        "rows with equal customer, article and day are several pieces of one purchase; they count once"
    ]
    dataset = load_dataset(tmp_path / "out")
    assert (dataset.users, dataset.items) == ((ANN, BEA), ("0108775015", "0663713001"))
    assert [sequence.tolist() for sequence in dataset.sequences] == [[1, 0], [0]]
    assert dataset.item_texts == (
        "title: Strap top; description: Jersey top, with narrow straps.; product_type: Vest top; colour: Black; "
        "department: Jersey Basic; section: Womens Everyday Basics",
        'title: Atlanta "Push" Body; product_type: Underwear body; colour: White; department: Expressive Lingerie; '
        "section: Womens Lingerie",
    )


def test_a_faulty_day_names_its_line(tmp_path):
    folder = write_raw(tmp_path / "raw", TRANSACTIONS + f"20.09.2018,{BEA},0663713001,0.0152,1\n")
    with pytest.raises(InputError) as caught:
        prepare("auto", [folder], tmp_path / "out", ALL)
    expected = f"{folder / 'transactions_train.csv'}:6: t_dat is '20.09.2018', expected a date such as 2023-06-01"
    assert str(caught.value).startswith(expected)
