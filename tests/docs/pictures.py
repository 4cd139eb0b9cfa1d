"""Retakes the pictures that show the product, and notes what they show: python -m tests.docs.pictures [PART …]

PART: templates, comfyui, app; all of them unless told. Real ComfyUI and a real browser, one after the other, so a
busy computer takes longer and no more. All that is shown is made from the samples that come with the pack.
"""

import sys
import tempfile
import time
from pathlib import Path

import pytest

from ..nodes.server import find_comfyui
from ..web import pictures as comfyui
from ..webapp import pictures as app
from ..workflows import thumbnails as templates

PARTS = {"templates": templates.main, "comfyui": comfyui.main, "app": app.main}


def main(*parts: str) -> None:
    chosen = parts or tuple(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"There is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    if "comfyui" in chosen and find_comfyui() is None:
        sys.exit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages.")
    for part in chosen:
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            try:
                PARTS[part](Path(folder))
            except pytest.skip.Exception as missing:
                sys.exit(str(missing))
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
