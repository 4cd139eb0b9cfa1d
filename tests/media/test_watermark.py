"""Marking: nothing unless asked for; metadata in every container; words that change only their corner."""

from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest

from latentsync.media.watermark import COMMENT, MAX_WIDTH, draw_watermark
from latentsync.pipeline import lipsync, lipsync_file
from latentsync.settings import WATERMARKS, Settings

from ..tiny import RATE, pan, speech, tiny_models, write_clip, write_speech

QUICK = Settings(steps=1, guidance=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    with tiny_models(tmp_path_factory.mktemp("mark")) as models:
        yield models


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    voice = write_speech(folder / "voice.wav", 0.2)
    return write_clip(folder / "clip.mp4", pan(5), Fraction(25), audio=voice)


def comment(path):
    with av.open(str(path)) as container:
        return {key.lower(): value for key, value in container.metadata.items()}.get("comment")


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv", ".webm"])
def test_the_file_says_it_in_every_container(models, clip, tmp_path, ending):
    out = tmp_path / f"out{ending}"
    lipsync_file(clip, None, out, models=models, settings=replace(QUICK, watermark="metadata"))
    assert comment(out) == COMMENT


def test_nothing_is_said_unless_asked_for(models, clip, tmp_path):
    assert Settings().watermark == WATERMARKS[0] == "none"
    lipsync_file(clip, None, tmp_path / "out.mp4", models=models, settings=QUICK)
    assert comment(tmp_path / "out.mp4") is None


def test_only_the_picture_of_that_name_is_drawn_on(models):
    plain, file, picture = (
        lipsync(pan(4), speech(0.16), RATE, 25, models=models, settings=replace(QUICK, watermark=mark))
        for mark in WATERMARKS
    )
    assert np.array_equal(plain.frames, file.frames)
    assert np.array_equal(plain.mask, picture.mask)
    changed = (plain.frames != picture.frames).any((0, 3))
    rows, columns = np.nonzero(changed)
    assert rows.min() > changed.shape[0] * 0.8
    assert columns.max() < changed.shape[1] * (MAX_WIDTH + 0.1)
    assert changed.sum() > 100


@pytest.mark.parametrize("size", [(64, 48), (101, 67), (1920, 1080), (1080, 1920), (3840, 2160)])
def test_words_are_inside_and_can_be_read(size):
    width, height = size
    for gray in (0, 128, 255):
        frame = np.full((height, width, 3), gray, np.uint8)
        made = draw_watermark(frame)
        rows, columns = np.nonzero((made != frame).any(2))
        assert 0 < columns.min() < columns.max() < width - 1
        assert rows.max() < height - 1
        tall = rows.max() - rows.min() + 1
        assert tall >= min(8, height // 8)
        assert int(made.max()) - int(made.min()) > 200, "white on black edges"
        assert np.array_equal(frame, np.full_like(frame, gray)), "the frame itself stays"
