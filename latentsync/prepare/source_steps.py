"""Steps 1 to 4, from a file to clips: readable, rate (25 fps, 16 kHz), shots, clips."""

import numpy as np

from ..audio.load import SILENT_DB, load_audio
from ..dataset import FPS
from ..media.audio_track import has_audio
from .io import SAMPLES_PER_FRAME, as_pcm, read_wav, write_wav
from .shots import find_shots, split_shot
from .steps import Rejected, Step, StepData
from .workspace import Item, Workspace, at_rate

SILENT_PEAK = 32768 * 10 ** (SILENT_DB / 20)


def readable(workspace: Workspace, item: Item, data: StepData) -> StepData:
    info = workspace.source_video(item)
    return {
        "seconds": round(float(info.duration), 3),
        "size": [info.width, info.height],
        "source_fps": str(info.fps),
        "variable_rate": info.variable_rate,
    }


def rate(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """Frames are resampled while reading; the audio is decoded once and stored, cut to the video's length."""
    info = at_rate(workspace.source_video(item))
    if not has_audio(info.path):
        raise Rejected("no_sound", "The file has no audio track that can be decoded.")
    length = info.frames * SAMPLES_PER_FRAME
    samples = as_pcm(load_audio(info.path, info.start).waveform.numpy()[:length])
    write_wav(workspace.audio(item), np.pad(samples, (0, length - len(samples))))
    return {"source_frames": info.frames}


def shots(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """cuts: frames that begin a shot. still: [start, stop] of still pictures."""
    with workspace.reader(item) as reader:
        cuts, still = find_shots(reader.read(range(reader.info.frames)), workspace.settings.shot_threshold)
    return {"cuts": cuts, "still": still}


def clips(workspace: Workspace, item: Item, data: StepData) -> StepData:
    """clips: [start, stop, reason, detail] for every part of every shot; reason is None unless it is rejected."""
    cuts, found = data.get("cuts", []), []
    for start, stop in zip([0, *cuts], [*cuts, data["source_frames"]], strict=True):
        for a, b in split_shot(stop - start, workspace.settings):
            found.append([start + a, start + b, *_reject_early(workspace, item, data, start + a, start + b)])
    return {"clips": found}


def _reject_early(workspace: Workspace, item: Item, data: StepData, start: int, stop: int) -> list[str | None]:
    """[reason, detail] of what needs no face detection to be rejected."""
    settings, fps = workspace.settings, int(FPS)
    if stop - start < settings.min_frames:
        return ["short", f"{(stop - start) / fps:g} s; at least {settings.min_seconds:g} s are needed."]
    for a, b in data.get("still", []):
        if a < stop and b > start:
            return ["frozen", f"The picture does not change from {a / fps:.2f} to {b / fps:.2f} s."]
    samples = read_wav(workspace.audio(item), start * SAMPLES_PER_FRAME, stop * SAMPLES_PER_FRAME)
    if np.abs(samples.astype(np.int32)).max() < SILENT_PEAK:
        return ["silent", f"No sound above {SILENT_DB:g} dB."]
    return [None, None]


STEPS = (
    Step("readable", readable, "unreadable", options=lambda w, item: list(w.size_and_date(item))),
    Step("rate", rate, "bad_sound", files=lambda w, item: (w.audio(item),)),
    Step("shots", shots, "unreadable", options=lambda w, item: w.settings.shot_threshold),
    Step("clips", clips, "unreadable", options=lambda w, item: [w.settings.min_frames, w.settings.max_frames]),
)
