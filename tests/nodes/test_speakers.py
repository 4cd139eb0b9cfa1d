"""LatentSync: Speakers, and the report that it and Video give."""

import json
from fractions import Fraction

import numpy as np
import pytest

from latentsync.audio.load import load_audio
from latentsync.media.audio_track import audio_duration

from .clips import cut, frames_of
from .graphs import Graph
from .parts import QUICK, loaded, save, streamed
from .server import ROOT

FRAMES = 20
SAMPLES = ROOT / "latentsync" / "assets" / "samples"


@pytest.fixture(scope="module")
def two(comfy, tmp_path_factory):
    """In the input folder: 20 frames of two people, and a voice of 0.4 s for each."""
    from ..workflows.inputs import cut_sound

    folder = tmp_path_factory.mktemp("two")
    cut_sound(folder / "first.flac", 0.5, Fraction(2, 5))
    cut_sound(folder / "second.flac", 1.5, Fraction(2, 5))
    for name in ("first.flac", "second.flac"):
        comfy.put(folder / name)
    return comfy.put(cut(SAMPLES / "two_people.mp4", folder / "two.mp4", FRAMES))


def speaking(g, video, voices, faces=("left", "right"), starts=(0.0, -1.0), **inputs):
    """LatentSyncSpeakers. voices: names of files, or nodes."""
    how = {"checkpoint": "nano", "fit": "pingpong", "still_fps": 25, "window_batch": 1, "save_to": "temp"}
    pairs = {}
    for n, (voice, face, start) in enumerate(zip(voices, faces, starts, strict=True), 1):
        sound = g.node("LoadAudio", audio=voice) if isinstance(voice, str) else voice
        pairs |= {f"speakers.voice_{n}": sound, f"speakers.face_{n}": face, f"speakers.start_{n}": start}
    pairs = {name: value for name, value in pairs.items() if value is not None}
    rest = how | QUICK | {"filename_prefix": "video/LatentSync", "speakers": str(len(voices))} | pairs | inputs
    return g.node("LatentSyncSpeakers", "speakers", video=video, **rest)


def report_of(run):
    return json.loads(run.shown("PreviewAny", "text")[0])


def spoken(comfy, video, voices, **inputs):
    """The frames of the result, its file, and the report."""
    g = Graph()
    made = speaking(g, g.node("LoadVideo", file=video), voices, **inputs)
    save(g, made)
    g.node("PreviewAny", source=made[1])
    run = comfy.queue(g).check()
    path = comfy.path(run.shown("SaveVideo", "images")[0])
    return frames_of(path), path, report_of(run)


def test_each_mouth_moves_to_its_own_voice(comfy, two):
    """With other voices each moves otherwise in its own turn, and in the other's turn it is as it was."""
    made, path, report = spoken(comfy, two, ["first.flac", "second.flac"], starts=(0.0, 0.5))
    other, _, _ = spoken(comfy, two, ["second.flac", "first.flac"], starts=(0.0, 0.5))
    source = frames_of(comfy.input / two)
    middle = source.shape[2] // 2  # the right one makes ready 0.44 s before its voice, from frame 1.5 on
    sides = (np.s_[:, :, :middle], slice(3, 7), slice(13, 20)), (np.s_[:, :, middle:], slice(14, 19), slice(0, 1))
    for side, mine, others in sides:
        # the 99.9th percentile: single pixels are the encoder's
        apart = (np.abs(made[side].astype(int)[:FRAMES] - one[side][:FRAMES]) for one in (source, other))
        changed, between = (np.percentile(one, 99.9, axis=(1, 2, 3)) for one in apart)
        assert changed[mine].min() > 2 * changed[others].max(), "it speaks in its own turn only"
        assert between[mine].max() > 2 * between[others].max(), "and what it is given"
    assert len(made) == 23
    assert audio_duration(path) == pytest.approx(0.92, abs=0.1)
    assert {span["face"] for span in report["spans"]} <= {0, 1, None}
    assert {span["face"] for span in report["spans"]} >= {0, 1}
    assert report["frames"] == 23
    assert report["out"].startswith("temp/")


def test_both_voices_are_heard_when_they_begin(comfy, two):
    _, path, _ = spoken(comfy, two, ["first.flac", "second.flac"], starts=(0.0, 0.2), fit="silence")
    heard = load_audio(path).waveform
    alone = [load_audio(comfy.input / name).waveform for name in ("first.flac", "second.flac")]
    wanted = np.zeros(16000)
    for sound, start in zip(alone, (0.0, 0.2), strict=True):
        wanted[round(start * 16000) :][: len(sound)] += sound.numpy()
    length = round(0.6 * 16000)
    assert np.corrcoef(heard[:length], wanted[:length])[0, 1] > 0.95


def test_a_third_speaker_grows(comfy, two):
    """There are two faces, so that the third one is refused; by name, so it came that far."""
    g = Graph()
    voices, faces = ["first.flac"] * 3, ("left", "right", "2")
    save(g, speaking(g, g.node("LoadVideo", file=two), voices, faces, (0.0, -1.0, -1.0)))
    run = comfy.queue(g)
    assert run.failure.exception == "UserError"
    assert "There is no face '2'" in run.failure.message


def quiet(g):
    return g.node("OddAudio", batch=1, channels=1, rate=16000, samples=6000, loudness=0.0)


REFUSED = {
    "the same face": ({"faces": ("left", "0")}, ("Two speakers are the same face",)),
    "no face": ({"faces": ("left", "nobody")}, ("face is 'nobody'",)),
    "spans": ({"spans": "4-2"}, ("spans", "4-2")),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(comfy, two, case):
    inputs, words = REFUSED[case]
    g = Graph()
    save(g, speaking(g, g.node("LoadVideo", file=two), ["first.flac", "second.flac"], **inputs))
    run = comfy.queue(g)
    assert (run.failure.kind, run.failure.exception) == ("LatentSyncSpeakers", "UserError")
    for word in words:
        assert word in run.failure.message


def test_a_silent_voice_is_named(comfy, two):
    g = Graph()
    save(g, speaking(g, g.node("LoadVideo", file=two), ["first.flac", quiet(g)]))
    said = comfy.queue(g).failure.message
    assert said.startswith("voice_2 is silent")


def test_a_voice_that_is_missing_is_named(comfy, two):
    """ComfyUI refuses it where it knows that it is needed, else the node does."""
    g = Graph()
    save(g, speaking(g, g.node("LoadVideo", file=two), ["first.flac", "first.flac", None], ("0", "1", "2"), (0,) * 3))
    run = comfy.queue(g)
    assert "voice_3" in (run.failure.message if run.failure else str(run.refusals))


def test_pictures_are_no_video(comfy, two):
    g = Graph()
    images = loaded(g, two)
    save(g, speaking(g, images, ["first.flac", "second.flac"]))
    assert "got 20 images" in comfy.queue(g).failure.message


def test_only_parts_of_a_video(comfy, portrait_clip):
    """What lies outside the spans passes through, and the report says so."""
    g = Graph()
    made = streamed(g, g.node("LoadVideo", file=portrait_clip), spans="0.2-0.6", codec="vp9", quality=100)
    save(g, made)
    g.node("PreviewAny", source=made[1])
    run = comfy.queue(g).check()
    spans = [(span["start"], span["stop"]) for span in report_of(run)["spans"] if span["state"] == "passed through"]
    assert spans == [(0, 5), (15, 20)]
    after = frames_of(comfy.path(run.shown("SaveVideo", "images")[0]))
    changed = np.abs(after.astype(int) - frames_of(comfy.input / portrait_clip)).max((1, 2, 3))
    assert changed[8:12].min() > 2 * changed[:5].max()
