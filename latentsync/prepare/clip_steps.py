"""Steps 5 to 8 of a clip: face, crops, sync, quality."""

from collections.abc import Iterator

import numpy as np

from ..dataset import FPS
from ..errors import UserError
from ..face.align import align_matrices, crop_matrix, resample
from ..face.detect import mouth_opening
from ..face.track import FaceTrack, Tracks, find_tracks
from ..media.probe import probe
from ..media.reader import VideoReader
from .io import SAMPLES_PER_FRAME, read_arrays, read_wav, replace_audio, write_arrays, write_clip
from .steps import Rejected, Step, StepData
from .workspace import Item, Workspace

QUALITY_FRAMES = 16
"""Frames of a clip, evenly spaced, whose quality is measured."""


def face(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """Exactly one face, in every frame, large enough."""
    wanted = range(item.start, item.stop)
    seen = 0

    def count(frames: int) -> None:
        nonlocal seen
        seen = frames

    with workspace.reader(item) as reader:
        try:
            tracks = find_tracks(reader.read(wanted), workspace.finder, on_step=count)
        except UserError as error:
            if seen < len(wanted):  # a frame could not be read
                raise
            raise Rejected("no_face", f"No face in any of {len(wanted)} frames.") from error
    track = only_face(tracks, workspace.settings.min_face)
    arrays = {"points": track.points, "landmarks": track.landmarks, "size": np.array(track.size)}
    write_arrays(workspace.face(item), arrays)
    return {"face_px": round(track.height, 1)}


def only_face(tracks: Tracks, min_face: float) -> FaceTrack:
    """The only face of a clip, in every frame and at least min_face pixels from brows to chin (median); or Rejected."""
    track = tracks.faces[0]
    height = round(max(t.height for t in tracks.faces), 1)
    if len(tracks.faces) > 1:
        frames = ", ".join(str(int(t.present.sum())) for t in tracks.faces)
        raise Rejected("several_faces", f"{len(tracks.faces)} faces, in {frames} of {tracks.frames} frames.")
    missing = int((~track.present).sum())
    if missing:
        first = int(np.argmin(track.present))
        detail = f"No face in {missing} of {tracks.frames} frames, the first at {first / int(FPS):.2f} s of the clip."
        raise Rejected("face_lost", detail, face_px=height)
    if len(track.segments) > 1:
        at = track.segments[1][0] / int(FPS)
        raise Rejected("cut", f"The picture jumps at {at:.2f} s of the clip.", face_px=height)
    if height < min_face:
        raise Rejected("small_face", f"{height:g} px from brows to chin; {min_face:g} are needed.", face_px=height)
    return track


def crops(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """clips/<id>.mp4, aligned crops with the audio of the same time, and clips/<id>.npz, landmarks in their pixels."""
    settings, clip = workspace.settings, workspace.clip(item)
    found = read_arrays(workspace.face(item))
    aligned = align_matrices(found["points"], settings.resolution)
    matrices = np.stack([crop_matrix(matrix, settings.resolution) for matrix in aligned])
    matrices[:, :, 2] += settings.margin_px
    landmarks = np.einsum("fij,fpj->fpi", matrices[:, :, :2], found["landmarks"]) + matrices[:, None, :, 2]
    arrays = {
        "landmarks": landmarks.astype(np.float32),
        "opening": mouth_opening(found["landmarks"]).astype(np.float32),  # crops are stretched, the source is not
    }
    write_arrays(clip.with_suffix(".npz"), arrays)
    with workspace.reader(item) as reader:
        frames = zip(reader.read(range(item.start, item.stop)), matrices, strict=True)
        cropped = (resample(frame, matrix, settings.frame_side) for frame, matrix in frames)
        count = write_clip(clip, settings.frame_side, cropped, _audio(workspace, item))
    return {
        "path": clip.relative_to(workspace.out).as_posix(),
        "fps": int(FPS),
        "frames": count,
        "resolution": settings.resolution,
        "margin": settings.margin_px,
    }


def _audio(workspace: Workspace, item: Item, offset: int = 0) -> np.ndarray:
    """(T,) int16 of the clip; offset: frames by which it comes after the picture, which is corrected."""
    start, stop = item.start + offset, item.stop + offset
    return read_wav(workspace.audio(item), start * SAMPLES_PER_FRAME, stop * SAMPLES_PER_FRAME)


def sync(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """Offset and confidence by a SyncNet; then the clip gets the audio that belongs to its frames."""
    from ..evaluation.syncnet_sync import chung_crops, sync_offset

    max_offset, waveform = workspace.settings.max_offset, _audio(workspace, item).astype(np.float32) / 32768
    if workspace.uses_chung:
        with workspace.reader(item) as reader:
            frames = reader.read(range(item.start, item.stop))
            score = sync_offset(workspace.syncnet, chung_crops(frames, _track(workspace, item)), waveform)
    else:
        score = sync_offset(workspace.syncnet, _stored_crops(workspace, item), waveform)
    found = {"offset": score.offset, "confidence": round(score.confidence, 3)}
    if score.confidence < workspace.min_confidence:
        detail = f"Confidence {score.confidence:.2f}; at least {workspace.min_confidence:g} is needed."
        raise Rejected("low_confidence", detail, **found)
    if abs(score.offset) > max_offset:
        detail = f"The audio is {score.offset:+d} frames off; at most {max_offset} are corrected."
        raise Rejected("far_offset", detail, **found)
    # from the source's audio, not the clip's: an interrupted step may run again
    replace_audio(workspace.clip(item), _audio(workspace, item, score.offset))
    return found


def restore_audio(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """The audio without a correction: an earlier run with a SyncNet may have moved it."""
    replace_audio(workspace.clip(item), _audio(workspace, item))
    return {}


def _track(workspace: Workspace, item: Item) -> FaceTrack:
    found = read_arrays(workspace.face(item))
    frames = len(found["points"])
    width, height = found["size"].tolist()
    return FaceTrack(0, found["points"], found["landmarks"], np.ones(frames, bool), ((0, frames),), (width, height))


def _stored_crops(workspace: Workspace, item: Item) -> Iterator[np.ndarray]:
    """The clip's crops, without the margin."""
    inner = slice(workspace.settings.margin_px, workspace.settings.margin_px + workspace.settings.resolution)
    with VideoReader(probe(workspace.clip(item))) as reader:
        for frame in reader.read(range(reader.info.frames)):
            yield frame[inner, inner]


def quality(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """Mean score of some frames by a network that takes (N, 3, R, R) in 0 … 1."""
    import torch

    frames = list(_stored_crops(workspace, item))
    chosen = np.linspace(0, len(frames) - 1, min(QUALITY_FRAMES, len(frames))).round().astype(int)
    pixels = torch.from_numpy(np.stack([frames[i] for i in chosen])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        score = round(float(workspace.quality(pixels).mean()), 2)
    if not score >= workspace.settings.min_quality:
        detail = f"Quality {score:g}; at least {workspace.settings.min_quality:g} is needed."
        raise Rejected("low_quality", detail, quality=score)
    return {"quality": score}


STEPS = (
    Step(
        "face", face, "unreadable", options=lambda w, item: w.settings.min_face, files=lambda w, item: (w.face(item),)
    ),
    Step(
        "crops",
        crops,
        "unreadable",
        options=lambda w, item: [w.settings.resolution, w.settings.margin_px],
        files=lambda w, item: (w.clip(item), w.clip(item).with_suffix(".npz")),
    ),
    Step(
        "sync",
        sync,
        "unmeasured",
        options=lambda w, item: [w.plan.syncnet_hash, w.min_confidence, w.settings.max_offset],
        skipped=restore_audio,
    ),
    Step("quality", quality, "unreadable", options=lambda w, item: [w.plan.quality_hash, w.settings.min_quality]),
)
