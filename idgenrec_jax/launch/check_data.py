"""Say what a data folder asks of a model, and what is wrong with it: python -m launch.check_data --data=DIR ..."""

import sys

from absl import flags

from idgenrec_jax.launch.command_line import define_path, run

DEFEATED = 1
"""The exit code with --strict where the test split measures nothing."""

_DATA = define_path("data", "sample", "'sample' (the embedded catalogue) or a data folder")
_TOKENIZER = define_path("tokenizer", None, "tokenizer folder or name; texts are measured in its tokens, not in words")
_JSON = define_path("json", None, "file for the numbers")
_PAGE = define_path("page", None, "HTML file for the numbers with charts; needs the packages of requirements-pages.txt")
_STRICT = flags.DEFINE_bool(
    "strict",
    False,
    f"exit with {DEFEATED} where the test split measures nothing: sequences by item key instead of time, nearly all "
    "interactions tied in time, most targets equal to the item right before, no target at all, nothing to train on",
)


def main() -> None:
    """Count, rank without training, print, and write what is asked for."""
    from idgenrec_jax.data.sample import data_folder, load_data
    from idgenrec_jax.data.text import Tokenizer
    from idgenrec_jax.files import write_json
    from idgenrec_jax.report.data_check import check_data
    from idgenrec_jax.report.data_page import check_page_requirements, write_data_page

    if _PAGE.value:
        check_page_requirements(f"--page={_PAGE.value}")
    tokenizer = Tokenizer.load(_TOKENIZER.value) if _TOKENIZER.value else None
    dataset = load_data(_DATA.value)
    found = check_data(dataset, data_folder(_DATA.value), tokenizer)
    print(found.to_text())
    if _JSON.value:
        write_json(_JSON.value, found.to_json())
    if _PAGE.value:
        write_data_page(found, _PAGE.value)
    if _STRICT.value and found.defeats_test:
        sys.exit(DEFEATED)


if __name__ == "__main__":
    run(main)
