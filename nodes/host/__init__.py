"""All that the nodes ask of ComfyUI: the one package that imports comfy, folder_paths, server and their like."""

from .features import advanced, growing, grown, schema
from .files import (
    find_file,
    hold,
    input_path,
    keep_alive,
    new_video,
    picture_file,
    preview_picture,
    register_folders,
    sound_file,
    steady_file,
    temp_path,
    video_file,
    video_of,
    view_ref,
    workflow_metadata,
)
from .finder import face_finder
from .loras import NO_LORA, lora_time, loras
from .memory import belongings, recalled
from .models import (
    NO_SYNCNET,
    checkpoints,
    download,
    download_sizes,
    downloads,
    load,
    mtime,
    resolution_of,
    syncnet,
    syncnets,
)
from .paths import short_text, with_short_paths
from .progress import Stages, blocked_output, graph, routes, warn
from .samples import bring_samples
from .sampling import OneNoise, engine_models, engine_steps, sample
from .training import PersonalFiles, training, training_checkpoint, training_device

__all__ = [
    "NO_LORA",
    "NO_SYNCNET",
    "OneNoise",
    "PersonalFiles",
    "Stages",
    "advanced",
    "belongings",
    "blocked_output",
    "bring_samples",
    "checkpoints",
    "download",
    "download_sizes",
    "downloads",
    "engine_models",
    "engine_steps",
    "face_finder",
    "find_file",
    "graph",
    "growing",
    "grown",
    "hold",
    "input_path",
    "keep_alive",
    "load",
    "lora_time",
    "loras",
    "mtime",
    "new_video",
    "picture_file",
    "preview_picture",
    "recalled",
    "register_folders",
    "resolution_of",
    "routes",
    "sample",
    "schema",
    "short_text",
    "sound_file",
    "steady_file",
    "syncnet",
    "syncnets",
    "temp_path",
    "training",
    "training_checkpoint",
    "training_device",
    "video_file",
    "video_of",
    "view_ref",
    "warn",
    "with_short_paths",
    "workflow_metadata",
]
