"""Seconds that ComfyUI waits for the pack when it starts: python -m benchmarks.importing [--comfyui FOLDER] [--json]

With ComfyUI's Python and after ComfyUI's own imports, each time in a new process: the root module, then the nodes
(what comfy_entrypoint imports), and the making of the schemas. "cpu": processor time of it all, which a busy machine
does not lengthen. The median of several runs; the first is left out.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

CODE = """
import asyncio, importlib.util, json, os, sys, time
pack = sys.argv[1]
del sys.argv[1:]
sys.path.insert(0, os.getcwd())
import comfy.options
comfy.options.enable_args_parsing()
sys.argv.append("--cpu")
import utils.extra_config
import nodes, server

async def main():
    server.PromptServer(asyncio.get_running_loop())
    known = set(sys.modules)
    start, work = time.perf_counter(), time.process_time()
    spec = importlib.util.spec_from_file_location("pack", pack + "/__init__.py", submodule_search_locations=[pack])
    module = importlib.util.module_from_spec(spec)
    sys.modules["pack"] = module
    spec.loader.exec_module(module)
    root = time.perf_counter()
    found = await (await module.comfy_entrypoint()).get_node_list()
    listed = time.perf_counter()
    for node in found:
        node.GET_SCHEMA()
    done, work = time.perf_counter(), time.process_time() - work
    fresh = {name.split(".")[0] for name in set(sys.modules) - known} - {"pack"}
    print("RESULT", json.dumps(dict(root=root - start, nodes=listed - root, schemas=done - listed, all=done - start,
          cpu=work, new=sorted(fresh))))

asyncio.run(main())
"""


def once(python: Path, folder: Path) -> dict[str, Any]:
    command = [str(python), "-c", CODE, str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfyui", type=Path, default=Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser())
    parser.add_argument("--python", type=Path, help="ComfyUI's Python; by default that of its .venv")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    own = options.comfyui / ".venv" / "bin" / "python"
    python = options.python or Path(os.environ.get("COMFYUI_PYTHON", own if own.is_file() else sys.executable))
    runs = [once(python, options.comfyui) for _ in range(options.repeats + 1)][1:]
    report = {key: round(median(run[key] for run in runs), 3) for key in ("root", "nodes", "schemas", "all", "cpu")}
    if options.json:
        print(json.dumps(report | {"new": runs[0]["new"]}, indent=2))
        return
    print("\n".join(f"{name:8} {seconds:7.3f} s" for name, seconds in report.items()))
    print("libraries first imported by the pack:", ", ".join(runs[0]["new"]) or "none")


if __name__ == "__main__":
    main()
