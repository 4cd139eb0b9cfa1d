"""Whether we lie in a ComfyUI, where its models are then, and what users there can do about a missing one."""

import os
from pathlib import Path

PACK = Path(__file__).absolute().parents[2]
"""Not resolved: a pack may be linked into custom_nodes."""
OUR_MODELS = "latentsync"
_WHERE_MODELS_LIE = (OUR_MODELS, "vae", "audio_encoders")

in_terminal = False
"""The command line runs: what it advises is typed."""


def comfyui_folder(pack: Path = PACK) -> Path | None:
    """ComfyUI's base folder, which has custom_nodes with this pack in it, and models; None outside ComfyUI."""
    if pack.parent.name.casefold() != "custom_nodes":
        return None
    # ComfyUI may have its models elsewhere than its packs; its manager says where
    said = [os.environ.get(name, "") for name in ("COMFYUI_FOLDERS_BASE_PATH", "COMFYUI_PATH")]
    bases = [pack.parents[1], *(Path(folder).expanduser() for folder in said if folder.strip())]
    return next((base for base in bases if (base / "models").is_dir()), bases[0])


def comfyui_models() -> list[Path]:
    """The folders of a ComfyUI around us in which our weights may lie, our own first; empty outside."""
    base = comfyui_folder()
    return [] if base is None else [base / "models" / name for name in _WHERE_MODELS_LIE]


def command() -> str:
    """How the command line is called here."""
    return "latentsync" if comfyui_folder() is None else "python -m latentsync"


def getting(name: str) -> str:
    """What to do to get a known file."""
    if in_terminal or comfyui_folder() is None:
        return f"type `{command()} download {name}`"
    return f"run the node LatentSync: Download Model with the name {name}"
