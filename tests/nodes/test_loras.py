"""The input lora of the nodes that load a checkpoint, on the real server."""

import os
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import load_models

from ..tiny import person_lora, tiny_checkpoint
from ..workflows.api import pictures
from ..workflows.inputs import cut_sound
from .clips import frames_of, portrait
from .graphs import Graph
from .parts import in_one, loaded, loader, streamed
from .test_schema import choices, inputs
from .test_speakers import speaking

FRAMES, STRENGTH, SOUND, PICTURE = 6, 0.5, "lora.flac", "lora.png"
NODES = ("LatentSyncLoader", "LatentSyncLipSync", "LatentSyncVideo", "LatentSyncSpeakers")


@pytest.fixture(scope="module")
def short(comfy, tmp_path_factory):
    """In the input folder: six frames of a portrait, 320 x 280, with the sample voice. And what no decoder changes: one
    picture of them, and as much of the voice."""
    folder = tmp_path_factory.mktemp("clips")
    comfy.put(cut_sound(folder / SOUND, 0.5, Fraction(FRAMES, 25)))
    clip = portrait(folder / "lora.mp4", FRAMES)
    Image.fromarray(frames_of(clip)[0]).save(comfy.input / PICTURE)
    return comfy.put(clip)


@pytest.fixture(scope="module")
def me(comfy):
    """A model of one person, of random numbers, in models/loras."""
    (comfy.models / "loras").mkdir(exist_ok=True)
    path = person_lora(comfy.models / "loras" / "me.safetensors", "nano", base="nano")
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def theirs(comfy):
    """One of another checkpoint, in models/latentsync."""
    (comfy.models / "latentsync").mkdir(exist_ok=True)
    path = comfy.models / "latentsync" / "theirs.safetensors"
    yield person_lora(path, "nano", base="1.5", resolution="256")
    path.unlink()


def speaker(**more):
    g = Graph()
    picture, sound = g.node("LoadImage", image=PICTURE), g.node("LoadAudio", audio=SOUND)
    made = in_one(g, picture, sound, steps=1, guidance=1.0, fit="trim", **more)
    g.node("SaveImage", "made", images=made, filename_prefix="lora")
    return g


def test_frames_are_those_of_the_engine(comfy, short, me):
    """What `latentsync run --lora me.safetensors:0.5` makes of them."""
    run = comfy.queue(speaker(lora=me.name, lora_strength=STRENGTH)).check()
    made = pictures(comfy, run, "made")
    picture = np.asarray(Image.open(comfy.input / PICTURE).convert("RGB"))
    waveform, rate = load_audio(comfy.input / SOUND)
    settings = Settings(face="largest", fit="trim", steps=1, guidance=1.0, seed=1)
    wanted = {}
    for name, loras in (("with", [f"{me}:{STRENGTH}"]), ("without", [])):
        with load_models("nano", lora=loras) as models:
            wanted[name] = lipsync(picture[None], waveform, rate, Fraction(25), models=models, settings=settings).frames
    apart = {name: np.abs(made.astype(int) - theirs).max() for name, theirs in wanted.items()}
    assert apart["with"] <= 1, apart
    assert apart["without"] > 20


def test_another_strength_or_file_runs_again(comfy, short, me):
    first = comfy.queue(speaker(lora=me.name, lora_strength=0.25)).check()
    assert "lipsync" in first.ran
    assert not comfy.queue(speaker(lora=me.name, lora_strength=0.25)).check().ran
    assert "lipsync" in comfy.queue(speaker(lora=me.name, lora_strength=0.3)).check().ran
    before = pictures(comfy, comfy.queue(speaker(lora=me.name)).check(), "made")
    stat = me.stat()
    person_lora(me, "nano", base="nano", seed=6)
    os.utime(me, ns=(stat.st_atime_ns, stat.st_mtime_ns + 10**9))
    after = pictures(comfy, comfy.queue(speaker(lora=me.name)).check(), "made")
    assert np.abs(after.astype(int) - before).max() > 20, "the file has changed, the frames have not"


@pytest.mark.parametrize("name", NODES)
def test_all_are_offered_and_none_comes_first(comfy, me, theirs, name):
    said = comfy.get(f"/object_info/{name}")[name]
    kind, options = next((kind, o) for key, kind, o in inputs(said) if key == "lora")
    assert choices(kind, options)[0] == options["default"] == "none"
    assert {me.name, theirs.name} <= set(choices(kind, options))
    assert "face_landmarker.task" not in choices(kind, options)


def graph_of(kind, clip, **lora):
    g = Graph()
    if kind == "LatentSyncLoader":
        g.node("PreviewAny", source=loader(g, **lora))
    elif kind == "LatentSyncLipSync":
        return speaker(**lora)
    elif kind == "LatentSyncVideo":
        streamed(g, g.node("LoadVideo", file=clip), **lora)
    else:
        speaking(g, g.node("LoadVideo", file=clip), [loaded(g, clip)[1]] * 2, **lora)
    return g


@pytest.mark.parametrize("name", NODES)
def test_one_of_another_checkpoint_is_one_sentence(comfy, short, theirs, name):
    run = comfy.queue(graph_of(name, short, lora=theirs.name))
    assert (run.failure.kind, run.failure.exception) == (name, "UserError")
    said = run.failure.message
    assert said.startswith("models/latentsync/theirs.safetensors was trained on 1.5 at 256 px, but nano.safetensors is")


def test_what_is_no_lora_is_one_sentence(comfy, short, me):
    path = tiny_checkpoint(comfy.models / "loras" / "unet.safetensors")
    said = comfy.queue(graph_of("LatentSyncLoader", short, lora=path.name)).failure.message
    path.unlink()
    assert said.startswith("models/loras/unet.safetensors is")
    assert "not a LoRA" in said


@pytest.mark.parametrize("name", NODES[1:])
def test_a_connected_model_would_not_get_it(comfy, short, me, name):
    """So that is said: nobody should believe that a model of them was used."""
    g = graph_of(name, short, lora=me.name)
    node = next(node for node, said in g.prompt.items() if said["class_type"] == name)
    model = loader(g)
    run = comfy.queue(g.changed(node, model=model))
    assert run.failure.exception == "UserError"
    assert "choose the LoRA on the LatentSync: Load Model" in run.failure.message
