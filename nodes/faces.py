"""Faces out of the pictures, and new mouths back into them."""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..latentsync.errors import UserError
from ..latentsync.face.clip import UNTIMED, FaceClip
from ..latentsync.face.preview import boxes_at, numbered
from ..latentsync.face.track import Tracks, choose, find_tracks
from ..latentsync.video import VideoReader, probe
from . import host, inputs
from .images import Frames, check_crops, check_frames, frames_of, put_pixels


class LatentSyncFindFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncFindFaces",
            display_name="LatentSync: Find Faces",
            category="LatentSync",
            description="Follows every face through the pictures, chooses one and cuts it out of each frame, upright"
            " and steady. The preview shows all faces with their numbers. Find faces in the source, before Fit Length:"
            " they are then not found again when only the sound changes.",
            inputs=[
                io.MultiType.Input(
                    "images",
                    types=[io.Image, io.Video],
                    tooltip="A clip or a still picture (IMAGE), or a VIDEO, which is read frame by frame to save"
                    " memory. Give an IMAGE when the result goes into Composite.",
                ),
                inputs.face(),
                io.Model.Input(
                    "model", optional=True, tooltip="From LatentSync: Load Model; says how large the crops must be."
                ),
                io.Int.Input(
                    "resolution",
                    default=0,
                    min=0,
                    max=1024,
                    step=8,
                    tooltip="Side of the crops in pixels. 0: the model's. Only without a model: 160 for nano, 256 for"
                    " LatentSync 1.5, 512 for 1.6.",
                ),
                io.Int.Input(
                    "preview_frame",
                    default=0,
                    min=0,
                    max=10**6,
                    step=1,
                    tooltip="Number of the frame that the preview shows, from 0. Best is one in which everybody is"
                    " seen.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="crops", tooltip="The face of every frame, square, as the model takes it."
                ),
                inputs.FACE_TRACK.Output(
                    display_name="face_track", tooltip="Where the face is in every frame, if it is there."
                ),
                io.Image.Output(
                    display_name="preview", tooltip="One frame with all faces in numbered boxes, the chosen one green."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Any, face: str, resolution: int, preview_frame: int, model: Any = None) -> io.NodeOutput:
        side = _crop_side(model, resolution)
        stages = host.Stages(cls.hidden.unique_id)
        with _opened(images) as (source, count, fps), host.face_finder() as finder:
            if not 0 <= preview_frame < count:
                raise UserError(
                    f"preview_frame is {preview_frame} and the frames are 0 to {count - 1}; choose one of those."
                )
            tracks = find_tracks(
                source.read(range(count)), finder, on_step=lambda done: stages.step("finding faces", done, count)
            )
            clip = FaceClip.whole(choose(tracks, face), side, fps)
            crops = _cut_out(source, clip, stages)
            shown = next(iter(source.read([preview_frame])))
        boxes = boxes_at(tracks, preview_frame)
        preview = torch.from_numpy(numbered(shown, boxes, clip.track.index))[None].float() / 255
        ui = {"latentsync_faces": [_for_browser(tracks, clip, preview_frame, host.preview_picture(shown))]}
        return io.NodeOutput(crops, clip, preview, ui=ui)


def _crop_side(model: Any, resolution: int) -> int:
    if model is None:
        if resolution <= 0:
            raise UserError(
                "The size of the crops is not known; connect the MODEL of LatentSync: Load Model, or set resolution:"
                " 160 for nano, 256 for LatentSync 1.5, 512 for 1.6."
            )
        return resolution
    side = host.resolution_of(model)
    if resolution not in (0, side):
        raise UserError(f"resolution is {resolution} and the model takes crops of {side} px; set resolution to 0.")
    return side


@contextmanager
def _opened(images: Any) -> Iterator[tuple[Frames | VideoReader, int, Fraction]]:
    """IMAGE or VIDEO: frames by number, how many, how many a second (an IMAGE does not know)."""
    if isinstance(images, Tensor):
        frames = frames_of(images)
        yield frames, len(frames), UNTIMED
        return
    with host.video_file(images) as path, VideoReader(probe(path)) as reader:
        yield reader, reader.info.frames, reader.info.fps


def _cut_out(source: Frames | VideoReader, clip: FaceClip, stages: host.Stages) -> Tensor:
    out = torch.empty(clip.frames, clip.resolution, clip.resolution, 3)
    for i, crop in enumerate(clip.crops(source.read(range(clip.frames)))):
        out[i] = torch.from_numpy(crop).float() / 255
        stages.step("cutting out", i + 1, clip.frames)
    return out


def _for_browser(tracks: Tracks, clip: FaceClip, frame: int, image: dict[str, str]) -> dict[str, Any]:
    """What web/ draws its buttons from: the plain picture and the boxes, in pixels of the source."""
    boxes = boxes_at(tracks, frame)
    return {
        "frame": frame,
        "width": clip.size[0],
        "height": clip.size[1],
        "image": image,
        "faces": [{"index": index, "box": [round(value, 1) for value in box]} for index, box in boxes.items()],
        "chosen": clip.track.index,
    }


class LatentSyncComposite(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LatentSyncComposite",
            display_name="LatentSync: Composite",
            category="LatentSync",
            description="Puts the new mouths back into the pictures: feathered, in the light of the original. Pixels"
            " outside the mask, frames without the face and an alpha channel stay bit for bit as they were.",
            inputs=[
                io.Image.Input("images", tooltip="The pictures that the crops were cut from, in the same order."),
                io.Image.Input(
                    "crops",
                    tooltip="The repainted crops, from VAE Decode: one for each picture, square. They may be enlarged"
                    " or sharpened by other nodes first.",
                ),
                inputs.FACE_TRACK.Input("face_track", tooltip="Where the face is, from Find Faces or Fit Length."),
                inputs.paste(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="images", tooltip="The pictures with new mouths, size and alpha as before."
                ),
                io.Mask.Output(display_name="mask", tooltip="How much of each pixel was repainted, 0 to 1."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(cls, images: Tensor, crops: Tensor, face_track: FaceClip, paste: str) -> io.NodeOutput:
        frames, faces = frames_of(images), frames_of(crops, "crops")
        check_frames(frames, face_track)
        check_crops(faces, face_track)
        return io.NodeOutput(*_pasted(images, frames, faces, face_track, paste, host.Stages(cls.hidden.unique_id)))


def _pasted(
    images: Tensor, frames: Frames, faces: Frames, clip: FaceClip, paste: str, stages: host.Stages
) -> tuple[Tensor, Tensor]:
    """The pictures with their new mouths, and the masks."""
    out = images.clone(memory_format=torch.contiguous_format)
    masks = torch.zeros(out.shape[:3])
    for i in range(len(frames)):
        if clip.stretch_of[i] >= 0:
            made, mask = clip.paste(frames[i], faces.pixels(i), i, reference=paste == "reference")
            put_pixels(out[i], made, mask)
            masks[i] = torch.from_numpy(mask)
        stages.step("pasting", i + 1, len(frames))
    return out, masks
