"""LatentSync: Score on the real server: a video, its pictures and sound, and every wrong way of connecting it."""

import json

import numpy as np
import pytest
from PIL import Image

from .clips import VOICE, cut, portrait
from .graphs import Graph


@pytest.fixture(scope="module")
def speaker(comfy, media, tmp_path_factory):
    """In the input folder: two seconds of a real speaker with his own sound."""
    source = media / "clips" / "hdtf_wda_bobmenendez.mp4"
    return comfy.put(cut(source, tmp_path_factory.mktemp("clips") / "talker.mp4", 50, start=30))


def test_a_video_and_its_parts_score_alike(comfy, speaker):
    g = Graph()
    video = g.node("LoadVideo", file=speaker)
    whole = g.node("LatentSyncScore", "whole", video=video, fps=25.0, face="largest")
    parts = g.node("GetVideoComponents", video=video)
    g.node("LatentSyncScore", "parts", images=parts, audio=parts[1], fps=parts[2], face="largest")
    g.node("PreviewImage", images=whole[3])
    before = comfy.files()
    run = comfy.queue(g).check()
    facts, again = (run.outputs[node]["latentsync_score"][0] for node in ("whole", "parts"))
    assert (facts["fps"], facts["frames"], facts["lags"]) == (25, 50, list(range(-15, 16)))
    assert len(facts["opening"]) == len(facts["loudness"]) == 50
    assert abs(facts["offset"]) <= 2
    assert facts["confidence"] > 0.3
    assert again["offset"] == facts["offset"]
    assert again["confidence"] == pytest.approx(facts["confidence"], abs=0.05)
    json.dumps(facts, allow_nan=False)
    (preview,) = run.shown("PreviewImage", "images")
    picture = np.asarray(Image.open(comfy.path(preview)))
    assert picture.shape == (634, 960, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50
    assert len(comfy.files() - before) == 1  # the preview


def test_another_sound_for_a_video(comfy, speaker):
    g = Graph()
    voice = g.node("LoadAudio", audio=comfy.put(VOICE))
    video = g.node("LoadVideo", file=speaker)
    g.node("LatentSyncScore", "own", video=video, fps=25.0, face="largest")
    g.node("LatentSyncScore", "other", video=video, audio=voice, fps=25.0, face="largest")
    before = comfy.files()
    run = comfy.queue(g).check()
    own, other = (run.outputs[node]["latentsync_score"][0] for node in ("own", "other"))
    assert own["opening"] == other["opening"]
    assert own["loudness"] != other["loudness"]
    assert own["confidence"] > other["confidence"]
    assert comfy.files() == before


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "Nothing to score"),
        ({"video", "images"}, "Both video and images"),
        ({"images"}, "no sound"),
    ],
)
def test_wrong_connections_are_one_sentence(comfy, tmp_path, inputs, said):
    g = Graph()
    video = g.node("LoadVideo", file=comfy.put(portrait(tmp_path / "short.mp4", 30)))
    given = {"video": video, "images": g.node("GetVideoComponents", video=video)}
    g.node("LatentSyncScore", fps=25.0, face="largest", **{name: given[name] for name in inputs})
    run = comfy.queue(g)
    assert run.status == "error"
    assert said in run.failure.message


def test_too_short_and_no_such_face(comfy, portrait_clip, speaker):
    for file, face, said in ((portrait_clip, "largest", "longer clip"), (speaker, "7", "no face '7'")):
        g = Graph()
        g.node("LatentSyncScore", video=g.node("LoadVideo", file=file), fps=25.0, face=face)
        assert said in comfy.queue(g).failure.message
