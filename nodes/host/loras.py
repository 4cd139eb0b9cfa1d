"""LoRAs of ours in ComfyUI's folders: which there are, and what the loaders make of a choice."""

import dataclasses
from pathlib import Path

import folder_paths

from ...latentsync.errors import UserError
from ...latentsync.weights.lora import Lora, open_lora
from ...latentsync.weights.registry import ENTRIES
from .files import MODEL_FOLDER

NO_LORA = "none"
FOLDER = "loras"
"""ComfyUI's name for its folders of LoRAs; one of them is output/loras, where Save LoRA Weights writes."""


def loras() -> list[str]:
    """What the loaders offer: none, then the files of ComfyUI's LoRA folders and of ours, but for known models."""
    known = {form.file for entry in ENTRIES for form in entry.files}
    found = [name for folder in (FOLDER, MODEL_FOLDER) for name in folder_paths.get_filename_list(folder)]
    return list(dict.fromkeys([NO_LORA, *(name for name in found if name not in known)]))


def lora_path(name: str) -> Path:
    """The file of a name that `loras` offers."""
    for folder in (FOLDER, MODEL_FOLDER):
        if path := folder_paths.get_full_path(folder, name):
            return Path(path)
    raise UserError(
        f"There is no LoRA {name} in models/{FOLDER} or models/{MODEL_FOLDER}; choose another one from the list."
    )


def chosen_lora(name: str | None, strength: float) -> Lora | None:
    """The LoRA of a choice, read; None for none."""
    if not name or name == NO_LORA:
        return None
    return dataclasses.replace(open_lora(lora_path(name)), strength=strength)


def lora_time(name: str | None) -> int:
    """When a LoRA's file was last changed, in ns; 0 where there is none, which is not said here."""
    try:
        return lora_path(name).stat().st_mtime_ns if name and name != NO_LORA else 0
    except (UserError, OSError):
        return 0
