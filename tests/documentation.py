"""README and the pages of docs/, taken apart: their order, their blocks of code, their links, the map of the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INLINE_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^()\s]+)\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_NAMED_FILE = re.compile(r"# (\S+\.py)\n")


def pages() -> list[Path]:
    """Return README and the pages that it links to, in the order in which it first does."""
    linked = [target for target in links(README) if re.fullmatch(r"docs/\w+\.md", target)]
    return [README, *(ROOT / target for target in dict.fromkeys(linked))]


def blocks(page: Path, language: str) -> list[str]:
    """Return what stands between the fences of a page's blocks of one language ("" for none), in order."""
    found = _BLOCK.findall(page.read_text(encoding="utf-8"))
    return [text for block_language, text in found if block_language == language]


def commands() -> list[str]:
    """Return every command of every page, in the order in which a reader meets them."""
    return [line for page in pages() for text in blocks(page, "bash") for line in text.strip().split("\n")]


def scripts() -> list[str]:
    """Return the Python code that the pages show to be run."""
    return [text for page in pages() for text in blocks(page, "python") if not _NAMED_FILE.match(text)]


def files() -> dict[str, str]:
    """Return the Python files that the pages show, by the name that each one's first line gives."""
    shown = (text for page in pages() for text in blocks(page, "python"))
    return {match.group(1): match.string for match in map(_NAMED_FILE.match, shown) if match}


def links(page: Path) -> list[str]:
    """Return the targets of a page's links, those in its code left out."""
    return _LINK.findall(_INLINE_CODE.sub("``", _prose(page)))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(_prose(page)))
    return {heading.replace(" ", "-") for heading in kept}


def section(page: Path, heading: str) -> str:
    """Return what stands under a heading of the second level."""
    return page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def mapped_files(page: Path) -> list[str]:
    """Return the files that the map of the code names: behind a line `FOLDER/`, each as `  FILE  what it is`."""
    folder, found = "", []
    for line in _BLOCK.search(section(page, "Map of the code")).group(2).splitlines():
        if line.startswith("  "):
            found.append(folder + line.split()[0])
        else:
            folder = line
    return found


def _prose(page: Path) -> str:
    return _BLOCK.sub("", page.read_text(encoding="utf-8"))
