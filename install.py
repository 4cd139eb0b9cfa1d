"""Run once by ComfyUI-Manager from this folder: checks, fetches two small files, says what to do next.

Installs no package, runs no pip, and never fails: what could not be done is printed.
"""

import io
import sys
from pathlib import Path

CHECKPOINT = "nano"
"""The built-in model; the small files that it requires are fetched here."""


def problems() -> list[str]:
    """What is needed and not here, but for the small files, which are fetched next."""
    from latentsync.cli.doctor import examine

    return [
        f"{c.name}: {c.detail}; {c.fix}"
        for c in examine()
        if c.needed and c.state == "missing" and " download " not in c.fix
    ]


def required() -> list[str]:
    """Names of the files that the built-in model needs beside it; none where the packages are missing."""
    try:
        from latentsync.weights.registry import get
    except ImportError:
        return []
    return list(get(CHECKPOINT).requires)


def fetch(name: str) -> tuple[bool, str]:
    """Get a small file by HTTP: whether it is here, and what came of it, in a sentence."""
    try:
        from latentsync.weights.download import download

        return True, f"{name} is in {download(name, allow_wheels=False)}"
    except Exception as error:  # an install script that raises would take the whole pack down
        return False, f"{name} is still missing: {error}"


def next_steps(whole: bool) -> list[str]:
    """What a user does now, in ComfyUI or outside."""
    from latentsync.files import comfyui_models

    folders = comfyui_models()
    python = sys.executable if folders else "python"  # ComfyUI's own, which "python" need not be
    steps = [f"`{python} -m latentsync doctor`, typed in this folder, says how things stand"]
    if folders and whole:
        steps.insert(0, "everything is installed; restart ComfyUI")
    elif folders:
        later = f"in ComfyUI by the node LatentSync: Download Model, by hand into {folders[0]}"
        steps.insert(0, f"a missing file can be fetched {later}, or by `{python} install.py`, typed in this folder")
    return steps


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter of a path that the console lacks is no reason to fail
    # an embedded Python (ComfyUI portable) does not look in a script's own folder
    sys.path.insert(0, str(Path(__file__).absolute().parent))
    print("LatentSync: checking")
    try:
        lines = [f"missing: {line}" for line in problems()]
    except ImportError as error:
        lines = [str(error)]
    if lines:
        lines.append(f"install the packages of requirements.txt into {sys.executable}, then run install.py again")
    files = [fetch(name) for name in required()]
    print(*(f"  {line}" for line in [*lines, *(said for _, said in files)]), sep="\n")
    print(*(f"LatentSync: {step}" for step in next_steps(not lines and all(here for here, _ in files))), sep="\n")


if __name__ == "__main__":
    main()
