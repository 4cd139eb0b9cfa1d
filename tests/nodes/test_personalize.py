"""LatentSync: Personalize on the real server, on three seconds of a real speaker."""

import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from latentsync.audio.load import load_audio
from latentsync.pipeline import lipsync
from latentsync.settings import Settings
from latentsync.weights.bundle import load_models
from latentsync.weights.files import our_metadata
from latentsync.weights.identify import identify

from ..workflows.api import pictures
from ..workflows.inputs import cut_sound
from .clips import cut, frames_of, portrait
from .graphs import Graph
from .parts import in_one, loaded
from .test_schema import choices, inputs

pytestmark = pytest.mark.slow
PATIENCE = 3600.0
"""Seconds for a training. It takes about a minute on a processor that does nothing else."""
SECONDS, STEPS, SIDE, SOUND, PICTURE = 3, 2, 192, "three.flac", "three.png"


@pytest.fixture(scope="module")
def clip(comfy, media, tmp_path_factory):
    """In the input folder: three seconds of a real speaker, 512 x 512, with her own sound. And what no decoder changes:
    one picture of her, and half a second of the sample voice."""
    source, folder = media / "clips" / "hdtf_wda_katiehill.mp4", tmp_path_factory.mktemp("clips")
    comfy.put(cut_sound(folder / SOUND, 0.5, Fraction(12, 25)))
    clip = cut(source, folder / "three.mp4", 25 * SECONDS, start=25)
    Image.fromarray(frames_of(clip)[0]).save(comfy.input / PICTURE)
    return comfy.put(clip)


def asked(**inputs):
    usual = {"fps": 25.0, "checkpoint": "nano", "minutes": 0.0, "face": "auto", "consent": True, "anyway": True}
    return usual | {"training_steps": STEPS} | inputs


def of_video(clip, **inputs):
    """The graph and its node Personalize."""
    g = Graph()
    return g, g.node("LatentSyncPersonalize", "person", **asked(**{"video": g.node("LoadVideo", file=clip)} | inputs))


def of_images(clip, **inputs):
    g = Graph()
    source = loaded(g, clip)
    wired = {"images": source, "audio": source[1], "fps": source[2]}
    return g, g.node("LatentSyncPersonalize", "person", **asked(**wired | inputs))


def said(run):
    return json.loads(run.shown("PreviewAny", "text")[0])


@pytest.fixture(scope="module")
def trained(comfy, clip):
    """One graph, as a user draws it: the LoRA goes by a wire into Lip Sync, the sheet to a file."""
    g, person = of_video(clip, name="anna")
    picture, sound = g.node("LoadImage", image=PICTURE), g.node("LoadAudio", audio=SOUND)
    made = in_one(g, picture, sound, steps=1, guidance=1.0, fit="trim", lora=person[1])
    g.node("SaveImage", "made", images=made, filename_prefix="anna")
    g.node("SaveImage", "sheet", images=person[2], filename_prefix="sheet")
    g.node("PreviewAny", source=person[3])
    return g, comfy.queue(g, timeout=PATIENCE).check()


def test_the_lora_lies_where_it_can_be_chosen(comfy, trained):
    path = comfy.output / "loras" / "anna.safetensors"
    assert identify(path).kind == "lora"
    metadata = our_metadata(path)
    assert (metadata["base"], metadata["person"], metadata["steps"]) == ("nano", "anna", str(STEPS))
    for name in ("LatentSyncLoader", "LoraLoaderModelOnly"):
        facts = comfy.get(f"/object_info/{name}")[name]
        key = "lora" if name == "LatentSyncLoader" else "lora_name"
        kind, options = next((kind, o) for k, kind, o in inputs(facts) if k == key)
        assert "anna.safetensors" in choices(kind, options)
        assert not [choice for choice in choices(kind, options) if "unfinished" in choice]
    assert not [*(comfy.output / "latentsync").glob(".*")], "work of a finished run is left"


def test_report_and_sheet(comfy, trained):
    _, run = trained
    report = said(run)
    assert report["lora"] == "output/loras/anna.safetensors"
    assert report["page"] == "output/latentsync/anna.html"
    assert {"opening", "similarity", "sharpness"} <= report["before"].keys() & report["after"].keys()
    (sheet,) = pictures(comfy, run, "sheet")
    assert sheet.shape == (3 * SIDE, 8 * SIDE, 3)
    assert sheet.std() > 20
    true, before, _ = sheet.reshape(3, SIDE, -1, 3).astype(int)
    assert np.abs(true[: SIDE // 3] - before[: SIDE // 3]).mean() < 3, "above the mouth nothing is made"
    assert run.shown("LatentSyncPersonalize", "images"), "the node shows it"


def test_it_tells_how_far_it_is(trained):
    _, run = trained
    lines = run.stages()["person"]
    assert any(line.startswith("looking for the face in three.mp4: frame 75 of 75") for line in lines)
    assert any(line.startswith(f"step {STEPS} of {STEPS}") for line in lines)
    bars = [one.value / one.total for one in run.progress if one.node == "person"]
    assert bars[-1] == 1


def test_a_wire_into_lip_sync_gives_the_frames_of_the_engine(comfy, clip, trained):
    _, run = trained
    picture = np.asarray(Image.open(comfy.input / PICTURE).convert("RGB"))
    waveform, rate = load_audio(comfy.input / SOUND)
    settings = Settings(face="largest", fit="trim", steps=1, guidance=1.0, seed=1)
    with load_models("nano", lora=[comfy.output / "loras" / "anna.safetensors"]) as models:
        wanted = lipsync(picture[None], waveform, rate, Fraction(25), models=models, settings=settings).frames
    assert np.abs(pictures(comfy, run, "made").astype(int) - wanted).max() <= 1


def test_the_same_graph_does_not_train_again(comfy, clip, trained):
    """Also where ComfyUI knows nothing of it, as after a restart: for its cache another fps, which a video does
    not need, is another node."""
    g, first = trained
    assert "person" not in comfy.queue(g).check().ran
    g, person = of_video(clip, name="anna", fps=24.0)
    g.node("PreviewAny", source=person[3])
    again = comfy.queue(g).check()
    assert "person" in again.ran
    assert not [line for line in again.stages().get("person", []) if line.startswith(("step", "looking"))]
    assert said(again) == said(first)


def test_a_name_that_is_taken_is_said(comfy, clip, trained):
    failed = comfy.queue(of_video(clip, name="anna", training_seed=3)[0]).failure
    assert failed.exception == "UserError"
    assert failed.message.startswith("There is a LoRA output/loras/anna.safetensors already")


def test_cancel_and_go_on(comfy, clip):
    """Of pictures in memory, whose file is written anew each time."""
    graph, _ = of_images(clip, name="bert", training_steps=40)

    class Cancel:
        """Presses Cancel when the node says something that begins like this."""

        def __init__(self, words):
            self.words, self.done = words, False

        def __call__(self, run, event):
            if not self.done and event == "text" and run.texts[-1].text.startswith(self.words):
                self.done = True
                comfy.interrupt()

    assert comfy.queue(graph, watch=Cancel("step 3 of 40"), timeout=PATIENCE).status == "interrupted"
    assert not (comfy.output / "loras" / "bert.safetensors").exists()
    run = comfy.queue(graph, watch=Cancel("goes on at step"), timeout=PATIENCE)
    assert run.status == "interrupted"
    lines = run.stages()["person"]
    (again,) = [line for line in lines if line.startswith("goes on at step")]
    assert again in ("goes on at step 3 of 40", "goes on at step 4 of 40")
    assert not [line for line in lines if line.startswith("looking for the face")]
    assert not [*comfy.temp.glob("latentsync_*.mp4")], "the file of the pictures is left"


def test_cancel_while_the_clip_is_read(comfy, clip):
    def cancel(run, event):
        if event == "text" and run.texts[-1].text.startswith("looking for the face"):
            comfy.interrupt()

    run = comfy.queue(of_video(clip, name="carl")[0], watch=cancel)
    assert run.status == "interrupted"
    assert not [line for line in run.stages()["person"] if line.startswith("step")]


REFUSED = {
    "consent": ({"consent": False}, "Make a model only of yourself"),
    "too short": ({"anyway": False}, "switch anyway on"),
    "a folder": ({"name": "../anna"}, "name is '../anna'"),
    "a face": ({"face": "nobody"}, "face is 'nobody'"),
    "nothing": ({"video": None}, "Nothing to learn from"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_one_sentence(comfy, clip, case):
    changes, words = REFUSED[case]
    g, _ = of_video(clip, **{"name": "dora"} | changes)
    g.prompt["person"]["inputs"] = {key: one for key, one in g.prompt["person"]["inputs"].items() if one is not None}
    failed = comfy.queue(g).failure
    assert (failed.kind, failed.exception) == ("LatentSyncPersonalize", "UserError")
    assert words in failed.message
    assert "--" not in failed.message


def test_pictures_need_sound(comfy, tmp_path):
    name = comfy.put(portrait(tmp_path / "quiet.mp4", 6))
    g, _ = of_images(name, name="emil")
    del g.prompt["person"]["inputs"]["audio"]
    assert comfy.queue(g).failure.message == "images came without audio; connect what the person says."
