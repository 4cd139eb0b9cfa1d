"""Threads that compute ahead, memory that runs out, and what is kept for a later run."""

import dataclasses
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch

from latentsync import rendering
from latentsync.face.choose import choose
from latentsync.face.track import find_tracks
from latentsync.media.source import ArraySource
from latentsync.pipeline import lipsync
from latentsync.rendering import Timings, WindowRenderer, render
from latentsync.sampling import denoise_window
from latentsync.timeline import fit_timeline

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
