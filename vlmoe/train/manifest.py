"""Checksums of a folder's files: is it still what was written?"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vlmoe.files import write_json

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write ``manifest.json``: size and SHA-256 of every other file below the folder."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    write_json(folder / MANIFEST, {"files": files})


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that ``write_manifest`` described, in a few words; or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, checksum) in expected.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes, {size} were written"
            if _sha256(path) != checksum:
                return f"{name} is not what was written (its checksum is another)"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
