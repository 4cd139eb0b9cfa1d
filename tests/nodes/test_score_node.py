"""LatentSync: Score on the real server: a video, its pictures and sound, and every wrong way of connecting it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentsync.evaluation.clips import sync_clip, track_clip
from latentsync.face.detect import FaceFinder
from latentsync.models.syncnet import PUBLISHED, ChungSyncNet, StableSyncNet
from latentsync.weights.syncnet_files import save_syncnet

from ..evaluation.talking import TINY
from ..tiny import face_model
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
    assert picture.shape == (622, 960, 3)
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
        ({"images"}, "There is no audio"),
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


@pytest.fixture(scope="module")
def judges(comfy):
    """In models/latentsync: a small StableSyncNet of ours and Chung's under its public name, random weights."""
    torch.manual_seed(5)
    folder = comfy.models / "latentsync"
    folder.mkdir(exist_ok=True)
    own, public = folder / "mine" / "judge.safetensors", folder / "syncnet_v2.model"
    own.parent.mkdir()
    save_syncnet(own, StableSyncNet(TINY), {})
    torch.save(ChungSyncNet().state_dict(), public)
    yield {"mine/judge.safetensors": own, "syncnet-v2": public}
    own.unlink()
    own.parent.rmdir()
    public.unlink()


def of_the_engine(clip: Path, net: Path):
    """What `latentsync eval sync` would say."""
    from latentsync.weights.syncnet_files import load_syncnet

    with FaceFinder(face_model()) as finder:
        tracked = track_clip(clip, finder)
    return sync_clip(load_syncnet(net), tracked, tracked.speech())


@pytest.mark.parametrize("name", ["mine/judge.safetensors", "syncnet-v2"])
def test_a_syncnet_judges_as_the_command_line_does(comfy, speaker, judges, name):
    g = Graph()
    video = g.node("LoadVideo", file=speaker)
    found = g.node("LatentSyncScore", "score", video=video, fps=25.0, face="largest", syncnet=name)
    for output in (4, 5, 6):
        g.node("PreviewAny", f"output {output}", source=found[output])
    g.node("PreviewImage", images=found[3])
    run = comfy.queue(g).check()
    facts = run.outputs["score"]["latentsync_score"][0]["syncnet"]
    wanted = of_the_engine(comfy.input / speaker, judges[name])
    assert facts["name"] == name
    assert facts["offset"] == wanted.offset
    assert facts["lse_c"] == pytest.approx(wanted.confidence, abs=1e-3)
    assert facts["distances"] == pytest.approx(wanted.distances.tolist(), abs=1e-3)
    shown = [float(run.outputs[f"output {output}"]["text"][0]) for output in (4, 5, 6)]
    assert shown == pytest.approx([facts["lse_c"], facts["lse_d"], facts["offset"]], abs=1e-4)
    (preview,) = run.shown("PreviewImage", "images")
    assert np.asarray(Image.open(comfy.path(preview))).shape == (2 * 622, 960, 3)
    assert any(text.startswith("running the SyncNet") for text in run.stages()["score"])


def test_pictures_and_another_rate_are_judged_too(comfy, speaker, judges):
    g = Graph()
    parts = g.node("GetVideoComponents", video=g.node("LoadVideo", file=speaker))
    for name, fps in (("same", 25.0), ("slower", 20.0)):
        wires = {"images": parts, "audio": parts[1], "fps": fps, "face": "largest"}
        g.node("LatentSyncScore", name, **wires, syncnet="mine/judge.safetensors")
    run = comfy.queue(g).check()
    same, slower = (run.outputs[name]["latentsync_score"][0]["syncnet"] for name in ("same", "slower"))
    wanted = of_the_engine(comfy.input / speaker, judges["mine/judge.safetensors"])
    assert same["frames"] == 50
    assert same["distances"] == pytest.approx(wanted.distances.tolist(), abs=0.02)
    assert slower["frames"] == 62  # 50 frames last 2.5 s at 20 a second: 62 at 25


def test_without_a_syncnet_its_numbers_are_unknown_and_say_so(comfy, speaker):
    g = Graph()
    video = g.node("LoadVideo", file=speaker)
    g.node("PreviewAny", "unknown", source=g.node("LatentSyncScore", video=video, fps=25.0, face="largest")[4])
    run = comfy.queue(g)
    assert run.status == "error"
    assert "choose one on LatentSync: Score" in run.failure.message


def test_judges_that_cannot_be_used_are_one_sentence(comfy, speaker, tmp_path):
    folder = comfy.models / "latentsync"
    folder.mkdir(exist_ok=True)
    latent = PUBLISHED["16_latent"]
    files = {"latent.safetensors": "sees pixels", "none.pt": "none.pt"}
    small = dict.fromkeys(("audio", "visual"))
    for side in small:
        part = getattr(latent, side)
        widths = (*(32,) * (len(part.widths) - 1), 64)
        small[side] = type(part)(part.in_channels, widths, part.factors, part.attention)
    save_syncnet(folder / "latent.safetensors", StableSyncNet(type(latent)(**small, space="latent", size=(32, 32))), {})
    (folder / "none.pt").write_text("no network")
    try:
        for name, said in {**files, "syncnet-1.5": "Download Model"}.items():
            g = Graph()
            g.node("LatentSyncScore", video=g.node("LoadVideo", file=speaker), fps=25.0, face="largest", syncnet=name)
            run = comfy.queue(g)
            assert run.failure is not None, name
            assert run.failure.exception == "UserError"
            assert said in run.failure.message
    finally:
        for name in files:
            (folder / name).unlink()


def test_too_short_and_no_such_face(comfy, portrait_clip, speaker):
    for file, face, said in ((portrait_clip, "largest", "longer clip"), (speaker, "7", "no face '7'")):
        g = Graph()
        g.node("LatentSyncScore", video=g.node("LoadVideo", file=file), fps=25.0, face=face)
        assert said in comfy.queue(g).failure.message
