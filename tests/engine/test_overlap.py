"""Threads that compute ahead, memory that runs out, and what is kept for a later run."""

import dataclasses
import os
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from latentsync import conditions, prepared, rendering
from latentsync.errors import UserError
from latentsync.face.choose import choose
from latentsync.face.track import find_tracks
from latentsync.media.source import ArraySource
from latentsync.models.vae import VAE
from latentsync.pipeline import lipsync, lipsync_file
from latentsync.rendering import Timings, WindowRenderer, render
from latentsync.sampling import denoise_window
from latentsync.timeline import Cut, fit_timeline
from latentsync.weights.vae_files import load_vae

from ..tiny import write_clip, write_speech
from .test_pipeline import QUICK, RATE, models, pan, speech

__all__ = ["models"]  # a fixture


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("torn"), RuntimeError("MPS backend out of memory (torn)")])
def test_where_memory_runs_out_it_goes_on_with_less_at_once(models, monkeypatch, caplog, error):
    settings = dataclasses.replace(QUICK, guidance=2.0, window_batch=3)
    source, sound = pan(50), speech(2.0)
    whole = lipsync(source, sound, RATE, 25, models=models, settings=settings)
    tried = []

    def short(unet, noise, *args, together, **more):
        tried.append((len(noise), together))
        if len(noise) > 1 or together:
            more["on_step"](1, 1, noise)  # some of it is done when it fails
            raise error
        return denoise_window(unet, noise, *args, together=together, **more)

    monkeypatch.setattr(rendering, "denoise_window", short)
    seen = []
    made = lipsync(source, sound, RATE, 25, models=models, settings=settings, on_step=seen.append)
    assert tried[:4] == [(3, True), (1, True), (1, False), (1, False)]
    assert set(tried[3:]) == {(1, False)}  # what did not fit is not tried again
    assert np.array_equal(made.frames, whole.frames)
    assert max(p.done for p in seen if p.stage == "sample") == seen[-1].total
    assert sum("ran out of memory" in record.message for record in caplog.records) == 2


def test_what_is_no_lack_of_memory_and_what_does_not_fit_at_all_are_raised(models, monkeypatch):
    for error in (RuntimeError("shapes"), torch.OutOfMemoryError("torn")):

        def fails(*_, error=error, **__):
            raise error

        monkeypatch.setattr(rendering, "denoise_window", fails)
        with pytest.raises(type(error), match=str(error)):
            lipsync(pan(4), speech(0.2), RATE, 25, models=models, settings=QUICK)


@pytest.mark.parametrize("speakers", [1, 2])
def test_threads_that_compute_ahead_change_nothing(models, tmp_path, monkeypatch, speakers):
    source, sound = pan(40), speech(1.6)
    timeline = fit_timeline(Fraction(25), 40, Fraction(8, 5), "pingpong")
    tracked = choose(find_tracks(source, models.finder), "largest")

    def made():
        renderers = [WindowRenderer(timeline, tracked, sound, models, QUICK, Timings()) for _ in range(speakers)]
        return np.stack([frame for frame, _ in render(ArraySource(source), renderers)])

    plain = made()
    monkeypatch.setattr(WindowRenderer, "overlapped", True)
    assert np.array_equal(made(), plain)


def test_a_run_that_is_cancelled_in_a_thread_ends(models, monkeypatch):
    monkeypatch.setattr(WindowRenderer, "overlapped", True)

    class Cancelled(Exception):
        pass

    def cancel(progress):
        if progress.stage == "sample" and progress.done > 1:
            raise Cancelled

    before = threading.active_count()
    with pytest.raises(Cancelled):
        lipsync(pan(40), speech(1.6), RATE, 25, models=models, settings=QUICK, on_step=cancel)
    assert threading.active_count() <= before


class NoFinder:
    """Whoever asks it has looked for faces again."""

    def __getattr__(self, name):
        raise AssertionError(f"finder.{name}")


class NoEncoder(VAE):
    def encode(self, pixels):
        raise AssertionError(f"{len(pixels)} pictures are encoded")


@pytest.fixture
def spoken(tmp_path):
    """A clip of 40 frames and two voices, the second longer than the clip."""
    voices = [write_speech(tmp_path / f"{s}.wav", s) for s in (1.2, 2.0)]
    return write_clip(tmp_path / "clip.mp4", pan(40), Fraction(25), audio=voices[0]), *voices


def frames_of(path):
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_second_speech_finds_faces_and_latents_in_the_cache(models, tmp_path, spoken):
    """Though it is longer than the first, of which half the clip was seen."""
    video, short, long = spoken
    settings = dataclasses.replace(QUICK, fit="pingpong")
    how = {"models": models, "settings": settings}
    plain = lipsync_file(video, long, tmp_path / "plain.mp4", **how)
    lipsync_file(video, short, tmp_path / "first.mp4", cache=tmp_path / "cache", **how)
    whole = lipsync_file(video, long, tmp_path / "second.mp4", cache=tmp_path / "cache", **how)
    known = dataclasses.replace(models, finder=NoFinder(), vae=NoEncoder(models.vae.model, scaling=models.vae.scaling))
    again = lipsync_file(video, long, tmp_path / "third.mp4", cache=tmp_path / "cache", models=known, settings=settings)
    assert plain.frames == whole.frames == again.frames == 50
    for name in ("second.mp4", "third.mp4"):
        assert np.array_equal(frames_of(tmp_path / name), frames_of(tmp_path / "plain.mp4"))


def test_another_clip_part_face_or_network_is_not_taken_from_the_cache(models, tmp_path, spoken):
    video, short, _ = spoken
    known = dataclasses.replace(models, finder=NoFinder())

    def run(out, models=models, **more):
        settings = dataclasses.replace(QUICK, **more.pop("settings", {}))
        lipsync_file(video, short, out, models=models, settings=settings, cache=tmp_path / "cache", **more)

    run(tmp_path / "a.mp4")
    run(tmp_path / "b.mp4", known)
    run(tmp_path / "c.mp4", known, settings={"seed": 5, "fit": "trim", "silence": "relax"})
    with pytest.raises(AssertionError, match="finder"):
        run(tmp_path / "d.mp4", known, cut=Cut(Fraction(1, 5)))
    os.utime(video, (1, 1))
    with pytest.raises(AssertionError, match="finder"):
        run(tmp_path / "e.mp4", known)


def test_a_torn_cache_is_made_anew(models, tmp_path, spoken):
    video, short, _ = spoken
    how = {"models": models, "settings": QUICK, "cache": tmp_path / "cache"}
    lipsync_file(video, short, tmp_path / "a.mp4", **how)
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-9])
    lipsync_file(video, short, tmp_path / "b.mp4", **how)
    assert np.array_equal(frames_of(tmp_path / "a.mp4"), frames_of(tmp_path / "b.mp4"))


def test_a_cache_that_cannot_be_written_is_said_and_a_full_disk_costs_nothing(models, tmp_path, spoken, monkeypatch):
    video, _, long = spoken
    how = {"models": models, "settings": QUICK}
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=r"cache .*file cannot be used"):
        lipsync_file(video, long, tmp_path / "a.mp4", cache=tmp_path / "file", **how)
    lipsync_file(video, long, tmp_path / "a.mp4", **how)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(conditions, "_write_at", full)
    monkeypatch.setattr(prepared, "save_tracks", full)
    lipsync_file(video, long, tmp_path / "b.mp4", cache=tmp_path / "cache", **how)
    assert np.array_equal(frames_of(tmp_path / "a.mp4"), frames_of(tmp_path / "b.mp4"))


@torch.inference_mode()
def test_a_draft_is_decoded_by_the_built_in_tiny_vae(models):
    source, sound = pan(4), speech(0.2)
    timeline = fit_timeline(Fraction(25), 4, Fraction(1, 5), "pingpong")
    tracked = choose(find_tracks(source, models.finder), "largest")
    latents = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    for mode, vae in (("exact", models.vae), ("draft", load_vae("taesd"))):
        settings = dataclasses.replace(QUICK, mode=mode)
        encoder = WindowRenderer(timeline, tracked, sound, models, settings, Timings()).encoder
        wanted = (vae.decode(latents.transpose(0, 1)).clamp(-1, 1) + 1) * 127.5
        assert torch.allclose(encoder.decode(latents), wanted.permute(0, 2, 3, 1), atol=1e-3)
        assert encoder.vae is models.vae  # conditions are those that the network was trained with
