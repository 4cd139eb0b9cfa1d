"""LatentSync: a face and a speech in, a talking video out.

Everything listed in __all__ is loaded when it is first asked for, so that importing the package costs nothing.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .settings import Progress, Settings

if TYPE_CHECKING:
    from .audio.whisper_features import audio_windows, encode_audio
    from .face.align import align_matrices
    from .pipeline import Report, Result, lipsync, lipsync_file
    from .sampling import denoise
    from .weights.bundle import Models, load_models
    from .weights.load import load_unet
    from .weights.vae_files import load_vae
    from .weights.whisper_files import load_whisper

__all__ = [
    "Models",
    "Progress",
    "Report",
    "Result",
    "Settings",
    "UserError",
    "align_matrices",
    "audio_windows",
    "denoise",
    "encode_audio",
    "lipsync",
    "lipsync_file",
    "load_models",
    "load_unet",
    "load_vae",
    "load_whisper",
]

_HOMES = {
    "Models": ".pipeline",
    "Report": ".pipeline",
    "Result": ".pipeline",
    "align_matrices": ".face.align",
    "audio_windows": ".audio.whisper_features",
    "denoise": ".sampling",
    "encode_audio": ".audio.whisper_features",
    "lipsync": ".pipeline",
    "lipsync_file": ".pipeline",
    "load_models": ".pipeline",
    "load_unet": ".weights.load",
    "load_vae": ".weights.vae_files",
    "load_whisper": ".weights.whisper_files",
}


def read_version(package: Path = Path(__file__).parent) -> str:
    """From the pyproject.toml beside the package (a checkout, a pack in ComfyUI), else from what pip installed.

    The file goes first: ComfyUI's Python may have another version installed than the pack that it loads.
    """
    project = package.parent / "pyproject.toml"
    text = project.read_text(encoding="utf-8") if project.is_file() else ""
    # tomllib came with Python 3.11 only
    if found := re.search(r'^\[project\]\nname = "latentsync"\nversion = "(.+)"', text, re.MULTILINE):
        return found[1]
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("latentsync")
    except PackageNotFoundError:
        return "unknown"


__version__ = read_version()


if not TYPE_CHECKING:  # to a type checker, names that are not here would be Any

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
