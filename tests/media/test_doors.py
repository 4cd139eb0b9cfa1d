"""The same awkward files through the app's door: taken in, and lips and sound together behind it. ComfyUI's nodes hand
the file of a VIDEO to the same job (tests/nodes)."""

import io
from types import SimpleNamespace
from typing import Any

import pytest

from latentsync import pipeline
from latentsync.audio.load import load_audio
from latentsync.errors import UserError
from latentsync.settings import Settings
from latentsync.webapp.config import Limits
from latentsync.webapp.uploads import browser_copy, take_face, take_voice

from .clicks import click_times, write_clicks
from .test_lips import GAP, NEAR, TIMES, apart, check, film, in_file, seen_in

LIMITS = Limits(megabytes=20, seconds=10)
FILMS = {
    "in.avi": ("pcm_s16le", {"fps": "60000/1001"}),
    "in.ts": ("ac3", {"gap": GAP}),
    "in.flv": ("aac", {"late": 0.064}),
    "in.mkv": ("libopus", {"gap": GAP}),
    "in.mp4": ("aac", {"other": (0.5, 1.5)}),
    "trimmed.mp4": ("aac", {"cut": 1.53}),
    "in.mov": ("pcm_s16le", {"late": -0.2}),
    "in.webm": ("vorbis", {}),
    "in.wmv": ("wmav2", {}),
    "in.mpg": ("mp2", {"damage": (1.2, 1.5)}),
}
VOICES = {
    "in.mp3": ("libmp3lame", "stereo"), "in.m4a": ("aac", "5.1"), "in.flac": ("flac", "7.1"),
    "in.ogg": ("libopus", "mono"), "in.opus": ("libopus", "stereo"), "in.wav": ("pcm_s16le", "16 channels"),
    "in.mkv": ("pcm_f32le", "7.1"), "in.webm": ("libopus", "stereo"), "in.aiff": ("pcm_s16be", "stereo"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "session").mkdir()
    return tmp_path / "session"


@pytest.mark.parametrize("name", FILMS)
def test_films(tmp_path, folder, name):
    sound, faults = FILMS[name]
    film(tmp_path / name, sound, **faults)
    media = take_face(io.BytesIO((tmp_path / name).read_bytes()), name, folder, LIMITS)
    assert (media.kind, media.has_sound) == ("video", True)
    assert 1.4 < media.seconds < 3.1
    gap = GAP if "damage" in faults else None
    check(media.path, [".mp4"], faults.get("late", 0.0), gap, count=len(seen_in(tmp_path / name)))
    if not media.playable:  # what the page shows instead
        seen, (wave, rate) = in_file(browser_copy(media, folder, lambda *_: None))
        assert abs(apart(seen, wave, rate, gap) - faults.get("late", 0.0)).max() < 2 * NEAR


@pytest.mark.parametrize("name", VOICES)
def test_voices(tmp_path, folder, name):
    sound, layout = VOICES[name]
    write_clicks(tmp_path / name, sound, layout=layout)
    media = take_voice(io.BytesIO((tmp_path / name).read_bytes()), name, folder, LIMITS)
    assert float(media.seconds) == pytest.approx(3, abs=0.08)
    assert len(click_times(load_audio(media.path).waveform, 16000)) == len(TIMES)


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "empty"), (b"<html>", "could not be read"), (b"\0" * 5000, "could not be read")]
)
@pytest.mark.parametrize("take", [take_face, take_voice])
def test_what_is_none_is_refused_in_a_sentence(folder, take, content, word):
    with pytest.raises(UserError, match=word) as error:
        take(io.BytesIO(content), "clip.mp4", folder, LIMITS)
    assert str(folder) not in str(error.value)
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_a_want_of_memory_in_mid_run_is_one_sentence(tmp_path, monkeypatch, fault):
    """Wherever it strikes: nodes and app run lipsync_file, and show a UserError as it is."""

    def wanting(*_args, **_more):
        raise fault

    monkeypatch.setattr(pipeline, "render", wanting)
    monkeypatch.setattr(pipeline, "face_asked_for", lambda *_, **__: SimpleNamespace(track=None, faces=1))
    monkeypatch.setattr(pipeline, "WindowRenderer", lambda *_, **__: None)
    film(tmp_path / "in.mp4", "aac")
    models: Any = SimpleNamespace(defaults=Settings(), finder=None)
    with pytest.raises(UserError, match=r"The memory \(RAM\) ran out or is limited; close other programs"):
        pipeline.lipsync_file(tmp_path / "in.mp4", None, tmp_path / "out.mp4", models=models)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4"}
