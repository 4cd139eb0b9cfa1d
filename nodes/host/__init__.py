"""All that the nodes ask of ComfyUI: the one package that imports comfy, folder_paths, server and their like."""

from .features import advanced, schema
from .files import (
    find_file,
    hold,
    input_path,
    lasting,
    new_video,
    picture_file,
    preview_picture,
    register_folders,
    shown,
    sound_file,
    temp_path,
    video_file,
    video_of,
    workflow_metadata,
)
from .finder import face_finder
from .memory import belongings, recalled
from .models import (
    NO_SYNCNET,
    changed,
    checkpoints,
    download,
    download_sizes,
    downloads,
    load,
    resolution_of,
    syncnet,
    syncnets,
)
from .paths import short_text, with_short_paths
from .progress import Stages, blocked, graph, routes, warn
from .samples import bring_samples
from .sampling import OneNoise, engine_models, engine_steps, sample

__all__ = [
    "NO_SYNCNET",
    "OneNoise",
    "Stages",
    "advanced",
    "belongings",
    "blocked",
    "bring_samples",
    "changed",
    "checkpoints",
    "download",
    "download_sizes",
    "downloads",
    "engine_models",
    "engine_steps",
    "face_finder",
    "find_file",
    "graph",
    "hold",
    "input_path",
    "lasting",
    "load",
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
    "shown",
    "sound_file",
    "syncnet",
    "syncnets",
    "temp_path",
    "video_file",
    "video_of",
    "warn",
    "with_short_paths",
    "workflow_metadata",
]
