"""Write example_workflows/ anew: python -m tests.workflows.build [name …]

The API files come from flows.py, the others from ComfyUI's own front end, which also draws the pictures; needs
ComfyUI, playwright and a browser.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..nodes.server import ROOT, ComfyServer, find_comfyui
from .browser import front_end, lay_out, load_api, load_ui, picture
from .flows import FLOWS, Sheet
from .inputs import put_inputs

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "example_workflows"


def build(names: list[str]) -> None:
    found = find_comfyui()
    if found is None:
        sys.exit("No ComfyUI here: COMFYUI_PATH names its folder, COMFYUI_PYTHON the Python that has its packages.")
    with tempfile.TemporaryDirectory() as folder:
        base, files = Path(folder, "base"), Path(folder, "files")
        files.mkdir()
        with ComfyServer(found, base, packs={"ComfyUI-LatentSync": ROOT}) as server, front_end(server) as page:
            put_inputs(server, files, None)
            page.evaluate("() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
            for name in names:
                _write(page, name, FLOWS[name]())


def _write(page: "Page", name: str, sheet: Sheet) -> None:
    _save(FOLDER / "api" / f"{name}.json", sheet.flow.prompt)
    load_api(page, sheet.flow.prompt, name)
    page.wait_for_timeout(1000)
    workflow = lay_out(page, sheet)
    _save(FOLDER / f"{name}.json", workflow)
    load_ui(page, workflow)
    (FOLDER / f"{name}.jpg").write_bytes(picture(page))


def _save(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    build(sys.argv[1:] or list(FLOWS))
