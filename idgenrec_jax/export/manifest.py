"""MANIFEST.json: every file of an export with its size and checksum, and the run that it came from."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from idgenrec_jax.errors import InputError
from idgenrec_jax.files import read_json, write_json
from idgenrec_jax.workdir import PACKAGES, described_run

MANIFEST = "MANIFEST.json"
_PIECE = 2**22


def write_manifest(folder: Path, workdir: Path, *, selected: dict[str, Any]) -> None:
    """Write `folder`/MANIFEST.json about all files in `folder`.

    `selected` describes the exported state of the run in `workdir`.
    """
    described = described_run(workdir)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "files": {str(path.relative_to(folder)): _size_and_checksum(path) for path in files},
        "selected": selected,
        "data": described["data"],
        "protocol": described["protocol"],
        "config": described["config"],
        "trained_with": described["packages"],
        "exported_with": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    write_json(folder / MANIFEST, manifest)


def is_export_of(folder: Path, workdir: Path, *, selected: dict[str, Any], file: str) -> bool:
    """Tell whether `folder` is an export, with this `file` in it, of that state of the run, and holds nothing else.

    Such a folder may be written anew: nothing is lost with it.
    """
    if not (folder / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(folder / MANIFEST, remedy="", fields={"files": dict})
    except InputError:
        return False
    described = described_run(workdir)
    listed = manifest["files"]
    present = {str(path.relative_to(folder)): path for path in folder.rglob("*") if not path.is_dir()}
    present.pop(MANIFEST)
    try:
        return (
            file in listed
            and all(manifest.get(name) == described[name] for name in ("data", "config"))
            and manifest.get("selected") == selected
            and present.keys() == listed.keys()
            and all(listed[name] == _size_and_checksum(path) for name, path in present.items())
        )
    except OSError:
        # What cannot be read, as a link that leads nowhere, is not what was written.
        return False


def _size_and_checksum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, read piece by piece, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
