"""The one error that a person, not a programmer, is meant to read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """What was got, what was wanted, what to do: one sentence. Doors print it and exit with code 2."""

    # ComfyUI names a pack's modules by their paths and shows them in error reports, which people publish
    __module__ = "latentsync.errors"


class UnfinishedError(UserError):
    """Work that was begun and did not come to its end; what there is of it was kept. Doors exit with code 1."""

    __module__ = "latentsync.errors"


class NoFaceError(UserError):
    """The face that was asked for is nowhere in the clip."""

    __module__ = "latentsync.errors"


class FootageError(UserError):
    """Recordings from which a good model of a person cannot be made; `anyway` trains on them all the same."""

    __module__ = "latentsync.errors"


REQUIREMENTS = {
    "PIL": "pillow>=10",
    "accelerate": "accelerate>=0.30",
    "aiohttp": "aiohttp>=3.9",
    "av": "av>=12.0",
    "cv2": "opencv-contrib-python>=4.8",
    "diffusers": "diffusers>=0.30",
    "filelock": "filelock>=3.12",
    "matplotlib": "matplotlib>=3.7",
    "mediapipe": "mediapipe>=0.10.14",
    "numpy": "numpy>=1.26",
    "pillow_heif": "pillow-heif>=0.16",
    "pyngrok": "pyngrok>=7",
    "ray": "ray[data,train]>=2.51",
    "rich": "rich>=13",
    "safetensors": "safetensors>=0.4.3",
    "scenedetect": "scenedetect>=0.6.1,<0.7",
    "soxr": "soxr>=0.3.7",
    "streamlit": "streamlit>=1.52",
    "torch": "torch>=2.4",
    "torch_fidelity": "torch-fidelity>=0.3",
    "torchmetrics": "torchmetrics>=1.8",
    "torchvision": "torchvision>=0.19",
    "transformers": "transformers>=4.40",
    "typer": "typer>=0.12",
    "yaml": "pyyaml>=6",
    "yarl": "yarl>=1.9",
}
"""Module: what pip is asked for when it is missing. The package itself may not be in any index, so its extras cannot be
named. A test compares this with requirements.txt and pyproject.toml."""


def missing_package(purpose: str, *modules: str, instead: str = "") -> UserError:
    """purpose: what needs the modules, the subject of the sentence. instead: what to do without them."""
    names = " and ".join(re.split(r"[\[<>=]", REQUIREMENTS[module])[0] for module in modules)
    asked = " ".join(f'"{REQUIREMENTS[module]}"' for module in modules)
    return UserError(f"{purpose} needs {names}; type: pip install {asked}{instead and f', or {instead}'}.")


NO_MEMORY = (
    "The memory (RAM) ran out or is limited; close other programs, raise the limit, or take a smaller or shorter input."
)
_MEMORY_SIGNS = (
    "can't allocate memory",
    "cannot allocate memory",
    "insufficient memory",
    "bad_alloc",
    "bad allocation",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the computer's memory, or a limit on it, was too small; each library says so in its own way."""
    if isinstance(error, MemoryError):
        return True
    return not isinstance(error, UserError) and any(sign in str(error).lower() for sign in _MEMORY_SIGNS)


@contextmanager
def memory_told() -> Iterator[None]:
    """A want of memory as a UserError."""
    try:
        yield
    except (MemoryError, OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise UserError(NO_MEMORY) from error
        raise
