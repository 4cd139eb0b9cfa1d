"""All that the nodes ask of ComfyUI: the one package that imports comfy, folder_paths, server and their like."""

from .files import (
    find_file,
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
)
from .finder import face_finder
from .models import changed, checkpoints, download, download_sizes, downloads, load, resolution_of
from .progress import Stages, graph, routes
from .sampling import OneNoise, engine_models, engine_steps, sample

__all__ = [
    "OneNoise",
    "Stages",
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
    "input_path",
    "lasting",
    "load",
    "new_video",
    "picture_file",
    "preview_picture",
    "register_folders",
    "resolution_of",
    "routes",
    "sample",
    "shown",
    "sound_file",
    "temp_path",
    "video_file",
    "video_of",
]
