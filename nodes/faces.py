"""Faces out of the pictures, and new mouths back into them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..latentsync.audio.clues import clues_for
from ..latentsync.errors import UserError
from ..latentsync.face.aligned import UNTIMED, AlignedFace
from ..latentsync.face.choose import choose
from ..latentsync.face.composite import Look
from ..latentsync.face.points import Points, track_points
from ..latentsync.face.preview import boxes_at, numbered
from ..latentsync.face.rest import rested
from ..latentsync.face.track import Tracks, find_tracks
from ..latentsync.media.probe import probe
from ..latentsync.media.reader import VideoReader
from ..latentsync.settings import FACE_PLACE, Settings, check_face
from . import host, inputs
from .images import Frames, check_crops, check_frames, check_track, fitted_mask, frames_of, lay
from .regions import GivenFaces, as_boxes, as_masks, held, within


class LatentSyncFindFaces(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="LatentSyncFindFaces",
            display_name="LatentSync: Find Faces",
            description="Follows every face through the frames, chooses one and crops it from each frame, upright and"
            " steady. The preview shows all faces with their numbers. Find faces in the source, before Fit"
            " Length, so that they are not searched for again when only the audio changes.",
            inputs=[
                io.MultiType.Input(
                    "images",
                    types=[io.Image, io.Video],
                    tooltip="A clip or a still image (IMAGE), or a VIDEO, which is read frame by frame to save"
                    " memory. Use an IMAGE if the result goes into Composite.",
                ),
                inputs.face(),
                io.Model.Input(
                    "model", optional=True, tooltip="From LatentSync: Load Model; sets how large the crops must be."
                ),
                host.advanced(
                    io.Int.Input(
                        "resolution",
                        default=0,
                        min=0,
                        max=1024,
                        step=8,
                        tooltip="Side of the crops in pixels. 0: the model's. Only without a model: 192 for nano, 256"
                        " for LatentSync 1.5, 512 for 1.6.",
                    )
                ),
                host.advanced(
                    io.Int.Input(
                        "preview_frame",
                        default=0,
                        min=0,
                        max=10**6,
                        step=1,
                        tooltip="Number of the frame that the preview shows, from 0. Choose one in which everyone is"
                        " visible.",
                    )
                ),
                io.MultiType.Input(
                    "region",
                    types=[io.Mask, inputs.BOUNDING_BOX, inputs.BBOX, inputs.SEGS],
                    optional=True,
                    tooltip="Only faces in this region count: a MASK, ComfyUI's BOUNDING_BOX, a BBOX (x, y, width,"
                    " height) or"
                    " Impact Pack's SEGS, one for all frames or one for each.",
                ),
                inputs.FACE_LANDMARKS.Input(
                    "landmarks",
                    optional=True,
                    tooltip="Faces that ComfyUI's Detect Face Landmarks (MediaPipe) found in these images; they are"
                    " followed instead of being searched for here.",
                ),
                inputs.points(),
            ],
            outputs=[
                io.Image.Output(
                    display_name="crops", tooltip="The face in every frame, square, at the size that the model takes."
                ),
                inputs.FACE_TRACK.Output(
                    display_name="face_track", tooltip="Where the face is in every frame, if it is there."
                ),
                io.Image.Output(
                    display_name="preview", tooltip="One frame with all faces in numbered boxes, the chosen one green."
                ),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(
        cls,
        images: Any,
        face: str,
        resolution: int,
        preview_frame: int,
        model: Any = None,
        region: Any = None,
        landmarks: Any = None,
        points: str = Settings.points,
    ) -> io.NodeOutput:
        check_face(face)
        asked = Points.parse(points) if points else None
        side = _crop_side(model, resolution)
        stages = host.Stages(cls.hidden.unique_id)
        host.belongings(images)["model"] = model
        with _opened(images) as (source, count, fps):
            if not 0 <= preview_frame < count:
                raise UserError(
                    f"preview_frame is {preview_frame} and the frames are 0 to {count - 1}; choose one of those."
                )
            face = Settings.face if asked else face
            clues = clues_for(face, source, count, fps, host.face_finder)
            tracks = _tracks(images, source, count, landmarks, asked, stages)
            wanted = tracks if asked or region is None or FACE_PLACE.fullmatch(face) else within(tracks, region)
            clip = AlignedFace.from_track(choose(wanted, face, clues), side, fps)
            crops = _cut_out(source, clip, stages)
            shown = next(iter(source.read([preview_frame])))
        boxes = boxes_at(tracks, preview_frame)
        preview = torch.from_numpy(numbered(shown, boxes, clip.track.index))[None].float() / 255
        ui = {"latentsync_faces": [_for_browser(tracks, clip, preview_frame, host.preview_picture(shown))]}
        return io.NodeOutput(crops, clip, preview, ui=ui)


def _tracks(
    images: Any,
    source: Frames | VideoReader,
    count: int,
    landmarks: Any,
    asked: Points | None,
    stages: host.Stages,
) -> Tracks:
    """All faces, or the one that was pointed out; those that were searched for in these very pictures before are not
    searched for again."""

    def on_step(done: int) -> None:
        stages.step("finding faces", done, count)

    if asked is not None:
        track = track_points(source.read, count, asked, on_step=on_step)
        return Tracks((track,), count, track.size)
    if landmarks is not None:
        given = GivenFaces(landmarks, count)
        return find_tracks(given.watched(source.read(range(count))), given, on_step=on_step)

    def search() -> Tracks:
        return find_tracks(source.read(range(count)), host.face_finder(), on_step=on_step)

    return host.recalled(images, ("tracks",), search)


def _crop_side(model: Any, resolution: int) -> int:
    if model is None:
        if resolution <= 0:
            raise UserError(
                "The size of the crops is not known; connect the MODEL of LatentSync: Load Model, or set resolution:"
                " 192 for nano, 256 for LatentSync 1.5, 512 for 1.6."
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


def _cut_out(source: Frames | VideoReader, clip: AlignedFace, stages: host.Stages) -> Tensor:
    out = torch.empty(clip.frames, clip.resolution, clip.resolution, 3)
    for i, crop in enumerate(clip.crops(source.read(range(clip.frames)))):
        out[i] = torch.from_numpy(crop).float() / 255
        stages.step("cropping", i + 1, clip.frames)
    return out


def _for_browser(tracks: Tracks, clip: AlignedFace, frame: int, image: dict[str, str]) -> dict[str, Any]:
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
        return host.schema(
            node_id="LatentSyncComposite",
            display_name="LatentSync: Composite",
            description="Puts the new mouths back into the images: feathered, in the light of the original. Pixels"
            " outside the mask, frames without the face and an alpha channel are unchanged, bit for bit.",
            inputs=[
                io.Image.Input("images", tooltip="The images that the crops were cut from, in the same order."),
                io.Image.Input(
                    "crops",
                    tooltip="The repainted crops, from VAE Decode: one for each image, square. Other nodes can"
                    " enlarge or sharpen them first.",
                ),
                inputs.FACE_TRACK.Input("face_track", tooltip="Where the face is, from Find Faces or Fit Length."),
                host.advanced(
                    io.Int.Input(
                        "grow",
                        optional=True,
                        default=0,
                        min=-200,
                        max=200,
                        step=1,
                        tooltip="Image pixels by which to grow the network's mask, or shrink it if negative.",
                    )
                ),
                host.advanced(
                    io.Int.Input(
                        "feather",
                        optional=True,
                        default=0,
                        min=0,
                        max=200,
                        step=1,
                        tooltip="Width of the soft edge in image pixels. 0: 4 % of the face crop.",
                    )
                ),
                host.advanced(
                    io.Boolean.Input(
                        "match_color",
                        optional=True,
                        default=True,
                        tooltip="Remove gradual color differences between the new mouth and the skin around it.",
                    )
                ),
                inputs.keep_out(),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The images with new mouths, same size and alpha."),
                io.Mask.Output(display_name="mask", tooltip="How much of each pixel was repainted, 0 to 1."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        images: Tensor,
        crops: Tensor,
        face_track: AlignedFace,
        grow: int = 0,
        feather: int = 0,
        match_color: bool = True,
        keep_out: Tensor | None = None,
    ) -> io.NodeOutput:
        frames, faces = frames_of(images), frames_of(crops, "crops")
        check_frames(frames, face_track)
        check_crops(faces, face_track)
        kept = None if keep_out is None else fitted_mask(keep_out, frames, face_track)
        look = Look(match_color, grow, feather)
        stages = host.Stages(cls.hidden.unique_id)
        return io.NodeOutput(*_pasted(images, frames, faces, face_track, look, kept, stages))


def _pasted(
    images: Tensor,
    frames: Frames,
    faces: Frames,
    clip: AlignedFace,
    look: Look,
    kept: Callable[[int], Tensor] | None,
    stages: host.Stages,
) -> tuple[Tensor, Tensor]:
    """The pictures with their new mouths, and the masks. kept: 1 = not repainted."""
    out = images.clone(memory_format=torch.contiguous_format)
    masks = torch.zeros(out.shape[:3])
    for i in range(len(frames)):
        if clip.segment_index[i] >= 0:
            crop, rest = faces.pixels(i), 0.0 if clip.rest is None else float(clip.rest[i])
            if rest > 0:
                source = clip.crop(frames[i], i, len(crop))
                crop = rested(crop, host.face_finder(), rest, source)
            over = clip.layer(frames[i], crop, i, look)
            if over is not None:
                masks[i] = lay(out[i], over, None if kept is None else kept(i))
        stages.step("pasting", i + 1, len(frames))
    return out, masks


class LatentSyncFaceRegions(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            "bbox",
            "mask",
            node_id="LatentSyncFaceRegions",
            display_name="LatentSync: Face Regions",
            description="Where the face of a FACE_TRACK is in every frame, as boxes and masks for other nodes:"
            " ComfyUI's"
            " Draw BBoxes, crop nodes, detailers, inpainting.",
            inputs=[
                inputs.FACE_TRACK.Input("face_track", tooltip="From LatentSync: Find Faces or Fit Length."),
                io.Combo.Input(
                    "part",
                    options=["face", "mouth"],
                    default="face",
                    tooltip="What the mask covers. face: from the brows to the chin. mouth: what Composite repaints,"
                    " with its soft edge.",
                ),
            ],
            outputs=[
                inputs.BOUNDING_BOX.Output(
                    display_name="bounding_boxes",
                    tooltip="ComfyUI's boxes of the face, a list for each frame; empty where the face is not visible.",
                ),
                inputs.BBOX.Output(
                    display_name="bbox",
                    tooltip="The same as (x, y, width, height) in pixels, one for each frame, as KJNodes and others"
                    " take them; the last known one where the face is not visible.",
                ),
                io.Mask.Output(
                    display_name="mask", tooltip="The mask of that part in every frame, 0 where there is no face."
                ),
            ],
        )

    @classmethod
    def execute(cls, face_track: AlignedFace, part: str) -> io.NodeOutput:
        check_track(face_track)
        boxes = as_boxes(face_track)
        lines = [
            [dict(zip(("x", "y", "width", "height"), box, strict=True), label="face")] if box else [] for box in boxes
        ]
        return io.NodeOutput(lines, held(boxes), as_masks(face_track, part))
