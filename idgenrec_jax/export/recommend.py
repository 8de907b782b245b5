"""The next items after a history, oldest first: python recommend.py ITEM ITEM ... (needs jax, flatbuffers).

An item whose name has blanks stands in quotation marks: python recommend.py "ITEM WITH BLANKS" ITEM.
"""

import json
import sys
from pathlib import Path

USAGE = "expected the items of a history, oldest first (names with blanks in quotes): python recommend.py ITEM ITEM ..."
MOST_NAMED = 5


class Mistake(Exception):
    """What the user is told, in one line."""


def read(path):
    """Return the text of a file of the export."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Mistake(f"{path}: cannot be read ({reason}); export the run again") from error


def load(path):
    """Return the JSON document in a file of the export."""
    try:
        return json.loads(read(path))
    except ValueError as error:
        raise Mistake(f"{path}: not a JSON document ({error}); export the run again") from error


def load_items(path):
    """Return the lines of item_ids.jsonl, in the order of the program's item numbers."""
    try:
        items = [json.loads(line) for line in read(path).split("\n") if line.strip()]
        return items, {item["item"]: item["tokens"] for item in items}
    except (ValueError, KeyError, TypeError) as error:
        raise Mistake(f"{path}: not a file of this export ({error}); export the run again") from error


def load_program(path):
    """Return the compiled function."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Mistake(f"{path}: cannot be read ({error.strerror}); export the run again") from error
    try:
        import jax
        from jax import export
    # One that does not fit its jaxlib is a RuntimeError.
    except (ImportError, RuntimeError) as error:
        raise Mistake(f"jax cannot be used ({error}); install it as the manifest of the export names it") from error
    try:
        return export.deserialize(content)
    except ImportError as error:
        raise Mistake(f"jax cannot read programs ({error}); pip install flatbuffers") from error
    # Older versions of jax fail on newer files in many ways.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        written = load(path.with_name("MANIFEST.json")).get("exported_with", {}).get("jax", "unknown")
        raise Mistake(
            f"{path}: jax {jax.__version__} cannot read what jax {written} wrote ({reason}); install that version or "
            "one up to six months newer, or export the run again"
        ) from error


def render(prompt, history):
    """Return the tokens of a prompt, and of each the number of the history item it belongs to.

    It is 0 before the history, 1 for its oldest item, and one more than the last item's behind it. Where the history
    does not fit, its oldest items are dropped.
    """
    history = history[-prompt["max_history"] :]
    while True:
        row, numbers, place = [], [], 0
        for piece in [*prompt["pieces"], [prompt["eos"]]]:
            if piece != "history":
                row += piece
                numbers += [place] * len(piece)
                continue
            for place, words in enumerate(history, start=1):
                words = prompt["separator"] * (place > 1) + words
                row += words
                numbers += [place] * len(words)
            place = len(history) + 1
        if len(row) <= prompt["max_length"] or not history:
            return row, numbers
        history = history[1:]


def recommend(folder, names):
    """Return (item, ID, score) of the best items after a history of item names, best first."""
    if not names:
        raise Mistake(f"no items given; {USAGE}")
    items, tokens_of = load_items(folder / "item_ids.jsonl")
    unknown = list(dict.fromkeys(name for name in names if name not in tokens_of))
    if unknown:
        named = ", ".join(repr(name) for name in unknown[:MOST_NAMED])
        more = f" and {len(unknown) - MOST_NAMED} more" if len(unknown) > MOST_NAMED else ""
        raise Mistake(f"{named}{more}: not in the catalogue of {len(items)} items, {folder / 'item_ids.jsonl'}")
    prompt = load(folder / "prompt.json")
    program = load_program(folder / "recommend.stablehlo")
    import numpy as np

    row, numbers = render(prompt, [tokens_of[name] for name in names])
    # One history; the other rows of the batch are padding.
    arrays = {
        name: np.full(expected.shape, -1 if name == "seen" else 0, expected.dtype)
        for name, expected in zip(prompt["inputs"], program.in_avals, strict=True)
    }
    arrays["tokens"][0, : len(row)], arrays["mask"][0, : len(row)] = row, True
    if "prompt_items" in arrays:
        arrays["prompt_items"][0, : len(row)] = numbers
    left_out = set()
    if "seen" in arrays:
        number_of = {item["item"]: number for number, item in enumerate(items)}
        newest = [number_of[name] for name in dict.fromkeys(reversed(names))]
        left_out = set(newest)
        # Those that the search has no room for are dropped from what it finds.
        newest = newest[: arrays["seen"].shape[1]]
        arrays["seen"][0, : len(newest)] = newest
    try:
        found, scores = map(np.asarray, program.call(*arrays.values()))
    except ValueError as error:
        raise Mistake(f"{' '.join(str(error).split())}; export the run again with --platforms=...") from error
    return [
        (items[number]["item"], items[number]["id"], score)
        for number, score in zip(found[0], scores[0], strict=True)
        if number >= 0 and int(number) not in left_out
    ]


def main():
    """Print the items, or one line about a mistake."""
    # A terminal of another encoding must not end the program.
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    try:
        rows = recommend(Path(__file__).parent, sys.argv[1:])
    except Mistake as mistake:
        print(f"error: {' '.join(str(mistake).split())}", file=sys.stderr)
        return 2
    for item, text, score in rows:
        print(f"{item}\t{text}\t{score:.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
