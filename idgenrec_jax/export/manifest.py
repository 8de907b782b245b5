"""MANIFEST.json: every file of an export with its size and checksum, and the run that it came from."""

import hashlib
import importlib.metadata
from pathlib import Path
from typing import Any

from idgenrec_jax.files import write_json
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
        "files": {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in files
        },
        "selected": selected,
        "data": described["data"],
        "protocol": described["protocol"],
        "config": described["config"],
        "trained_with": described["packages"],
        "exported_with": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    write_json(folder / MANIFEST, manifest)


def sha256_of(path: Path) -> str:
    """Return the checksum of a file, read piece by piece, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
