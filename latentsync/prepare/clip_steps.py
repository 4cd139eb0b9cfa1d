"""Steps 5 to 8, from a piece to a clip: face, crops, sync, quality."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ..dataset import FPS
from ..errors import UserError
from ..face.align import align_matrices, crop_matrix, resample
from ..face.detect import mouth_opening
from ..face.track import FaceTrack, Tracks, find_tracks
from .steps import Dropped, Facts, Item, Step
from .workspace import SAMPLES, read_arrays, read_sound, replace_sound, write_arrays, write_clip

if TYPE_CHECKING:
    from .worker import Shop

JUDGED = 16
"""Frames of a clip, evenly spread, whose quality is measured."""


def face(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """Exactly one face, in every frame, large enough."""
    wanted = range(item.start, item.stop)
    seen = 0

    def count(frames: int) -> None:
        nonlocal seen
        seen = frames

    with shop.reader(item) as reader:
        try:
            tracks = find_tracks(reader.read(wanted), shop.finder, on_step=count)
        except UserError as error:
            if seen < len(wanted):  # not the face is missing but the frames
                raise
            raise Dropped("no_face", f"No face in any of {len(wanted)} frames.") from error
    track = only_face(tracks, shop.settings.min_face)
    arrays = {"points": track.points, "landmarks": track.landmarks, "size": np.array(track.size)}
    write_arrays(shop.face(item), arrays)
    return {"face_px": round(track.height, 1)}


def only_face(tracks: Tracks, min_face: float) -> FaceTrack:
    """The one face of a piece, in every frame and at least min_face pixels from brows to chin (median); or Dropped."""
    track = tracks.faces[0]
    height = round(max(t.height for t in tracks.faces), 1)
    if len(tracks.faces) > 1:
        frames = ", ".join(str(int(t.present.sum())) for t in tracks.faces)
        raise Dropped("several_faces", f"{len(tracks.faces)} faces, in {frames} of {tracks.frames} frames.")
    missing = int((~track.present).sum())
    if missing:
        first = int(np.argmin(track.present))
        detail = f"No face in {missing} of {tracks.frames} frames, the first at {first / int(FPS):.2f} s of the piece."
        raise Dropped("face_lost", detail, face_px=height)
    if len(track.segments) > 1:
        at = track.segments[1][0] / int(FPS)
        raise Dropped("cut", f"The picture jumps at {at:.2f} s of the piece.", face_px=height)
    if height < min_face:
        raise Dropped("small_face", f"{height:g} px from brows to chin; {min_face:g} are needed.", face_px=height)
    return track


def crops(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """clips/<id>.mp4, aligned crops with the sound of the same time, and clips/<id>.npz, landmarks in their pixels."""
    settings = shop.settings
    known = read_arrays(shop.face(item))
    matrices = [
        _with_margin(crop_matrix(matrix, settings.resolution), settings.margin_px)
        for matrix in align_matrices(known["points"], settings.resolution)
    ]
    where = np.stack(matrices)
    landmarks = np.einsum("fij,fpj->fpi", where[:, :, :2], known["landmarks"]) + where[:, None, :, 2]
    arrays = {
        "landmarks": landmarks.astype(np.float32),
        "opening": mouth_opening(known["landmarks"]).astype(np.float32),  # crops are stretched, the source is not
    }
    clip = shop.clip(item)
    write_arrays(clip.with_suffix(".npz"), arrays)
    with shop.reader(item) as reader:
        frames = zip(reader.read(range(item.start, item.stop)), matrices, strict=True)
        cut_out = (resample(frame, matrix, settings.side) for frame, matrix in frames)
        count = write_clip(clip, settings.side, cut_out, _sound(shop, item))
    return {
        "path": clip.relative_to(shop.out).as_posix(),
        "fps": int(FPS),
        "frames": count,
        "resolution": settings.resolution,
        "margin": settings.margin_px,
    }


def _with_margin(matrix: np.ndarray, margin: int) -> np.ndarray:
    wide = matrix.copy()
    wide[:, 2] += margin
    return wide


def _sound(shop: "Shop", item: Item, late: int = 0) -> np.ndarray:
    """Of the piece; late: frames by which it comes after the picture, which is put right."""
    return read_sound(shop.sound(item), (item.start + late) * SAMPLES, (item.stop + late) * SAMPLES)


def sync(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """Offset and confidence by a SyncNet; then the clip gets the sound that belongs to its picture."""
    from ..evaluation.syncnet_sync import chung_crops, sync_offset

    settings, waveform = shop.settings, _sound(shop, item).astype(np.float32) / 32768
    if shop.chung:
        with shop.reader(item) as reader:
            frames = reader.read(range(item.start, item.stop))
            score = sync_offset(shop.syncnet, chung_crops(frames, _track(shop, item)), waveform)
    else:
        score = sync_offset(shop.syncnet, _stored(shop, item), waveform)
    found = {"offset": score.offset, "confidence": round(score.confidence, 3)}
    if score.confidence < shop.min_confidence:
        detail = f"Confidence {score.confidence:.2f}; at least {shop.min_confidence:g} is needed."
        raise Dropped("low_confidence", detail, **found)
    if abs(score.offset) > settings.max_offset:
        detail = f"The sound is {score.offset:+d} frames off; at most {settings.max_offset} are put right."
        raise Dropped("far_offset", detail, **found)
    # from the source's sound, not the clip's: an interrupted step may be taken again
    replace_sound(shop.clip(item), _sound(shop, item, score.offset))
    return found


def unsynced(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """The sound as it came: an earlier run with a SyncNet may have moved it."""
    replace_sound(shop.clip(item), _sound(shop, item))
    return {}


def _track(shop: "Shop", item: Item) -> FaceTrack:
    known = read_arrays(shop.face(item))
    frames = len(known["points"])
    width, height = known["size"].tolist()
    everywhere = ((0, frames),)
    return FaceTrack(0, known["points"], known["landmarks"], np.ones(frames, bool), everywhere, (width, height))


def _stored(shop: "Shop", item: Item) -> Iterator[np.ndarray]:
    """The clip's crops, without the margin."""
    from ..media.probe import probe
    from ..media.reader import VideoReader

    inner = slice(shop.settings.margin_px, shop.settings.margin_px + shop.settings.resolution)
    with VideoReader(probe(shop.clip(item))) as reader:
        for frame in reader.read(range(reader.info.frames)):
            yield frame[inner, inner]


def quality(shop: "Shop", item: Item, facts: Facts) -> Facts:
    """Mean score of some frames by a network that takes (N, 3, R, R) in 0 … 1."""
    import torch

    frames = list(_stored(shop, item))
    chosen = np.linspace(0, len(frames) - 1, min(JUDGED, len(frames))).round().astype(int)
    pixels = torch.from_numpy(np.stack([frames[i] for i in chosen])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        score = round(float(shop.quality(pixels).float().mean()), 2)
    if not score >= shop.settings.min_quality:
        detail = f"Quality {score:g}; at least {shop.settings.min_quality:g} is needed."
        raise Dropped("low_quality", detail, quality=score)
    return {"quality": score}


STEPS = (
    Step("face", face, "unreadable", lambda s, i: s.settings.min_face, lambda s, i: (s.face(i),)),
    Step(
        "crops",
        crops,
        "unreadable",
        lambda s, i: [s.settings.resolution, s.settings.margin_px],
        lambda s, i: (s.clip(i), s.clip(i).with_suffix(".npz")),
    ),
    Step(
        "sync",
        sync,
        "unmeasured",
        lambda s, i: [s.plan.syncnet_mark, s.min_confidence, s.settings.max_offset],
        skipped=unsynced,
    ),
    Step("quality", quality, "unreadable", lambda s, i: [s.plan.quality_mark, s.settings.min_quality]),
)
