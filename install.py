"""Run once by ComfyUI-Manager from this folder: checks, fetches two small files, says what to do next.

Installs no package, runs no pip, and never fails: what could not be done is printed.
"""

import io
import sys
from pathlib import Path

SMALL = ("face-landmarker", "whisper-tiny.en")


def problems() -> list[str]:
    """What is needed and not here, but for the small files, which are fetched next."""
    from latentsync.doctor import examine

    return [
        f"{c.name}: {c.detail}; {c.fix}" for c in examine() if c.needed and c.state == "missing" and c.name not in SMALL
    ]


def fetch(name: str) -> str:
    """Get a small file by HTTP; what came of it, in a sentence."""
    try:
        from latentsync.download import download

        return f"{name} is in {download(name, allow_wheels=False)}"
    except Exception as error:  # an install script that raises would take the whole pack down
        return f"{name} is still missing: {error}"


def main() -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a letter of a path that the console lacks is no reason to fail
    # an embedded Python (ComfyUI portable) does not look in a script's own folder
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    print("LatentSync: checking")
    try:
        lines = [f"  missing: {line}" for line in problems()]
    except ImportError as error:
        lines = [f"  {error}"]
    if lines:
        lines.append(f"  install the packages of requirements.txt into {sys.executable}, then run install.py again")
    print("\n".join([*lines, *(f"  {fetch(name)}" for name in SMALL)]))
    print("LatentSync: `python -m latentsync doctor`, typed in this folder, says how things stand")


if __name__ == "__main__":
    main()
