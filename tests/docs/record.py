"""What the pictures of the product show: docs/screens/pictures.json, written whenever one is taken.

{path of the picture: what can be read in it}. tests/docs/test_pictures.py holds it to the product of today.
"""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from .pages import ROOT

RECORD = ROOT / "docs" / "screens" / "pictures.json"
LARGEST = 300_000
"""Bytes of a picture."""


def shown() -> dict[str, dict[str, Any]]:
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.is_file() else {}


def keep(path: Path, shot: bytes, said: dict[str, Any], *, side: int = 2400) -> None:
    """Store a screen shot as JPEG, at most so many pixels wide or high, and note what it says."""
    picture = Image.open(BytesIO(shot)).convert("RGB")
    picture.thumbnail((side, side))
    picture.save(path, quality=82, optimize=True, progressive=True)
    note(path, said)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB", flush=True)


def note(path: Path, said: dict[str, Any]) -> None:
    """Pictures that are gone leave the record."""
    known = shown() | {path.relative_to(ROOT).as_posix(): said}
    kept = {name: known[name] for name in sorted(known) if (ROOT / name).is_file()}
    RECORD.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
