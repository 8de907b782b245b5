"""What can be downloaded, by name: the publishers' addresses, checksums and terms, as of November 2026.

The addresses were found in their publishers' pages and in code that uses them; none could be tried where this was
written, which has no network.
"""

from idgenrec_jax.data.download import Download, RemoteFile

_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
# The MD5 that GroupLens keeps beside each archive as NAME.zip.md5. They are quoted from there, 1M and 20M by MLPerf
# (recommendation/verify_dataset.sh), 100K to 25M by eli-osherovich/papers_with_code (datasets/movielens/dl_config.py),
# 32M by several who compared it. ml-latest-small changes; its sum is read from there at each download.
_MOVIELENS_FILES: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "ml-100k": ("0e33842e24a9c977be4e0107933c0723", ("ml-100k/u.data", "ml-100k/u.item")),
    "ml-1m": ("c4d9eecfca2ab87c1945afe126590906", ("ml-1m/ratings.dat", "ml-1m/movies.dat")),
    "ml-10m": ("ce571fd55effeba0271552578f2648bd", ("ml-10M100K/ratings.dat", "ml-10M100K/movies.dat")),
    "ml-20m": ("cd245b17a1ae2cc31bb14903e1204af3", ("ml-20m/ratings.csv", "ml-20m/movies.csv")),
    "ml-25m": ("6b51fb2759a8657d3bfcbfc42b592ada", ("ml-25m/ratings.csv", "ml-25m/movies.csv")),
    "ml-32m": ("d472be332d4daa821edc399621853b57", ("ml-32m/ratings.csv", "ml-32m/movies.csv")),
    "ml-latest-small": (None, ("ml-latest-small/ratings.csv", "ml-latest-small/movies.csv")),
}
_MOVIELENS_TERMS = (
    "research use; no redistribution and no commercial use without permission of GroupLens, unless its README says "
    "otherwise; cite Harper and Konstan 2015"
)

_AMAZON = "https://mcauleylab.ucsd.edu/public_datasets/data"
# Names of categories that are shortened as the literature does; all others are in lower case.
_SHORT_NAMES = {"Sports_and_Outdoors": "sports", "Toys_and_Games": "toys", "Office_Products": "office"}
# Categories of which the publisher keeps 5-core reviews (2014, 2018) or raw reviews (2023).
_AMAZON_2014 = """
    Amazon_Instant_Video Apps_for_Android Automotive Baby Beauty Books CDs_and_Vinyl Cell_Phones_and_Accessories
    Clothing_Shoes_and_Jewelry Digital_Music Electronics Grocery_and_Gourmet_Food Health_and_Personal_Care
    Home_and_Kitchen Kindle_Store Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
    Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_AMAZON_2018 = """
    AMAZON_FASHION All_Beauty Appliances Arts_Crafts_and_Sewing Automotive Books CDs_and_Vinyl
    Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Home_and_Kitchen Industrial_and_Scientific Kindle_Store Luxury_Beauty
    Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products Patio_Lawn_and_Garden Pet_Supplies
    Prime_Pantry Software Sports_and_Outdoors Tools_and_Home_Improvement Toys_and_Games Video_Games
"""
_AMAZON_2023 = """
    All_Beauty Amazon_Fashion Appliances Arts_Crafts_and_Sewing Automotive Baby_Products Beauty_and_Personal_Care Books
    CDs_and_Vinyl Cell_Phones_and_Accessories Clothing_Shoes_and_Jewelry Digital_Music Electronics Gift_Cards
    Grocery_and_Gourmet_Food Handmade_Products Health_and_Household Health_and_Personal_Care Home_and_Kitchen
    Industrial_and_Scientific Kindle_Store Magazine_Subscriptions Movies_and_TV Musical_Instruments Office_Products
    Patio_Lawn_and_Garden Pet_Supplies Software Sports_and_Outdoors Subscription_Boxes Tools_and_Home_Improvement
    Toys_and_Games Video_Games
"""
# Year: categories, reviews and metadata, the publisher's page, and what it asks to cite.
_AMAZON_YEARS = {
    "2014": (
        _AMAZON_2014,
        ("amazon/categoryFiles/reviews_{}_5.json.gz", "amazon/categoryFiles/meta_{}.json.gz"),
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        "McAuley et al. 2015",
    ),
    "2018": (
        _AMAZON_2018,
        ("amazon_v2/categoryFilesSmall/{}_5.json.gz", "amazon_v2/metaFiles2/meta_{}.json.gz"),
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        "Ni et al. 2019",
    ),
    "2023": (
        _AMAZON_2023,
        ("amazon_2023/raw/review_categories/{}.jsonl.gz", "amazon_2023/raw/meta_categories/meta_{}.jsonl.gz"),
        "https://amazon-reviews-2023.github.io/",
        "Hou et al. 2024",
    ),
}


def _movielens(name: str) -> Download:
    md5, members = _MOVIELENS_FILES[name]
    address = f"{_MOVIELENS}/{name}.zip"
    file = RemoteFile(address, f"{name}.zip", md5, f"{address}.md5" if md5 is None else None, members)
    return Download(name, "movielens", (file,), "https://grouplens.org/datasets/movielens/", _MOVIELENS_TERMS)


def _amazon(category: str, year: str) -> Download:
    _, paths, page, cited = _AMAZON_YEARS[year]
    addresses = [f"{_AMAZON}/{path.format(category)}" for path in paths]
    return Download(
        f"{_SHORT_NAMES.get(category, category.lower())}_{year}",
        "amazon",
        tuple(RemoteFile(address, address.rpartition("/")[2]) for address in addresses),
        page,
        f"no licence is known here, see {page}; cite {cited}",
    )


DOWNLOADS: dict[str, Download] = {
    download.name: download
    for download in (
        *map(_movielens, _MOVIELENS_FILES),
        *(_amazon(category, year) for year, row in _AMAZON_YEARS.items() for category in row[0].split()),
    )
}
