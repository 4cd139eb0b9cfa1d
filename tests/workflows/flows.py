"""The example workflows, written once: what each one wires up, and how it lies on the canvas."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from latentsync.settings import Settings

from ..nodes.graphs import Graph, Node
from .layout import Group, Note, Part, Row, Stack

FACE, PORTRAIT, TWO = "latentsync_face.mp4", "latentsync_portrait.jpg", "latentsync_two_people.mp4"
VOICE, LEFT, RIGHT = "latentsync_voice.flac", "latentsync_voice_left.flac", "latentsync_voice_right.flac"
"""The samples that nodes/host/samples.py brings into the input folder."""

NANO = {"steps": 1, "cfg": 1.0}
"""What nano asks for. Our own nodes take it from the checkpoint; KSampler cannot."""


TRY = "Press **Run** to try it with the sample files. "
AFTER = -1.0
"""A voice's start: when the one before has ended."""
LANE = 40
"""Room above a node for wires that pass by: behind it they look like its own."""
UNDER_WIRE = 80
"""The same for a wire from the third output of the node before."""


class Flow(Graph):
    """A graph whose nodes have titles for people who read the JSON or the canvas."""

    def add(self, kind: str, title: str, /, **inputs: Any) -> Node:
        node = self.node(kind, **inputs)
        self.prompt[node.id]["_meta"] = {"title": title}
        return node

    def video(self, name: str = FACE, title: str = "Video of a face") -> Node:
        return self.add("LoadVideo", title, file=name)

    def parts(self, video: Node) -> Node:
        return self.add("GetVideoComponents", "Frames, audio, frame rate", video=video)

    def speech(self, name: str = VOICE, title: str = "Speech") -> Node:
        return self.add("LoadAudio", title, audio=name)

    def loader(self) -> Node:
        return self.add("LatentSyncLoader", "LatentSync: Load Model")

    def save(self, video: Any, title: str = "Save Video") -> Node:
        return self.add(
            "SaveVideo", title, video=video, filename_prefix="video/LatentSync", format="auto", codec="auto"
        )

    def join(self, images: Any, audio: Any, fps: Any) -> Node:
        return self.add("CreateVideo", "Create Video", images=images, fps=fps, audio=audio)


def filled(prompt: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The prompt with the defaults that our nodes' widgets have. known: what /object_info says."""
    out = copy.deepcopy(dict(prompt))
    for node in out.values():
        if not node["class_type"].startswith("LatentSync"):
            continue
        kinds = known[node["class_type"]]["input"]
        for name, rules in {**kinds.get("required", {}), **kinds.get("optional", {})}.items():
            facts = rules[1] if len(rules) > 1 else {}
            if "default" in facts and "." not in name:  # what belongs to a count is there or not: speakers.face_3
                node["inputs"].setdefault(name, facts["default"])
    return out


@dataclass(frozen=True)
class Form:
    """App mode: node, widget and label of what the form asks for, and the node whose result it shows."""

    asked: list[tuple[Node, str, str]]
    result: Node


@dataclass(frozen=True)
class Sheet:
    """title: the file's name, which the template browser shows. note: its text."""

    title: str
    flow: Flow
    note: str
    layout: Part
    form: Form | None = field(default=None)


def lip_sync_a_video() -> Sheet:
    g = Flow()
    speech, video = g.speech(), g.video()
    clip = g.parts(video)
    made = g.add("LatentSyncLipSync", "LatentSync: Lip Sync", images=clip, audio=speech, fps=clip[2])
    joined = g.join(made, made[1], clip[2])
    saved = g.save(joined)
    note = (
        "### Lip-sync a video\n\n" + TRY + "Then choose your own **speech**"
        " and **video**. The result appears at Save Video and is saved in ComfyUI's output folder."
    )
    groups = Row(
        [
            Group("1 · Choose files", [[video], [clip, speech]]),
            Group("2 · Lip sync", [[UNDER_WIRE, made]]),
            Group("3 · Result", [[joined, saved]]),
        ]
    )
    return Sheet("1 Lip sync a video", g, note + MODELS, Stack([Note(96), groups]))


def talking_portrait() -> Sheet:
    g = Flow()
    speech, picture = g.speech(), g.add("LoadImage", "Picture of a face", image=PORTRAIT)
    made = g.add("LatentSyncVideo", "LatentSync: Video", video=picture, audio=speech)
    saved = g.save(made)
    note = (
        "### Make a picture talk\n\n" + TRY + "Then choose your own **speech** and a"
        " **picture** with a face. The video is as long as the speech; still_fps sets its frame rate."
    )
    form = Form([(picture, "image", "Picture"), (speech, "audio", "Speech"), *_who(made)], saved)
    return Sheet("2 Talking portrait", g, note + MODELS, _three(speech, picture, made, saved), form)


def speakers(g: Flow) -> tuple[tuple[Node, Node, Node], Node]:
    """The nodes that load two voices and the video, and the one that makes them speak one after the other."""
    first, second = g.speech(LEFT, "Voice of the left face"), g.speech(RIGHT, "Voice of the right face")
    video = g.video(TWO, "Video with two faces")
    pairs = {"speakers.voice_1": first, "speakers.face_1": "left", "speakers.start_1": 0.0}
    pairs |= {"speakers.voice_2": second, "speakers.face_2": "right", "speakers.start_2": AFTER}
    made = g.add("LatentSyncSpeakers", "LatentSync: Speakers", video=video, speakers="2", **pairs)
    return (first, second, video), made


def two_people() -> Sheet:
    g = Flow()
    files, made = speakers(g)
    saved = g.save(made)
    note = (
        "### Two people, two voices\n\n" + TRY + "Then choose a **video with two"
        " faces** and a **voice for each**. The left face speaks first, then the right one; the other mouth rests"
        " meanwhile. **start** sets when a voice begins, in seconds; -1 means after the previous one. Set"
        " **speakers** to 3"
        " or more for more people."
    )
    layout = Row(
        [
            Group("1 · Choose files", [list(files)]),
            Group("2 · Lip sync", [[made]]),
            Stack([Note(290), Group("3 · Result", [[saved]])]),
        ]
    )
    return Sheet("3 Two people", g, note + MODELS, layout)


def long_video() -> Sheet:
    g = Flow()
    speech, video = g.speech(), g.video()
    made = g.add("LatentSyncVideo", "LatentSync: Video", video=video, audio=speech)
    saved = g.save(made)
    note = (
        "### Long videos\n\n" + TRY + "Then choose your own **speech** and **video**."
        " The video is streamed from file to file: long videos need no more memory than short ones. Without a speech"
        " node, the video's own audio is used."
    )
    form = Form([(video, "file", "Video"), (speech, "audio", "Speech"), *_who(made)], saved)
    return Sheet("4 Long video", g, note + MODELS, _three(speech, video, made, saved), form)


def score_a_video() -> Sheet:
    g = Flow()
    video = g.video(title="Video to score")
    found = g.add("LatentSyncScore", "LatentSync: Score", video=video)
    chart = g.add("PreviewImage", "Chart", images=found[3])
    note = (
        "### Do the lips follow the audio?\n\n" + TRY + "Then choose your own **video**"
        " with sound. The chart shows how open the mouth is against how loud the speech is, and which shift of the"
        " audio fits best. Clips of five seconds or more give reliable numbers."
    )
    groups = Row(
        [
            Group("1 · Choose a file", [[video]]),
            Group("2 · Score", [[found]], grown=650),
            Group("3 · Chart", [[chart]]),
        ]
    )
    return Sheet("5 Score a video", g, note + FACE_FILE, Stack([Note(96), groups]))


def single_nodes() -> Sheet:
    return _by_parts("6 Single nodes", PARTS_NOTE, sampler)


def ksampler() -> Sheet:
    return _by_parts("7 KSampler", KSAMPLER_NOTE, _ksampler)


def _by_parts(title: str, note: str, sampling: Callable[[Flow, Node, Node], Node]) -> Sheet:
    g = Flow()
    loader, speech, video = g.loader(), g.speech(), g.video()
    clip = g.parts(video)
    done, sound, nodes = by_parts(g, loader, speech, clip, clip[2], sampling)
    joined = g.join(done, sound, clip[2])
    saved = g.save(joined)
    layout = Row(
        [
            Stack([Note(250), Group("1 · Choose files", [[speech, video]])]),
            Group("2 · Model and face", [[loader, clip, nodes.faces]]),
            Group("3 · Listen", [[LANE, nodes.fitted, nodes.heard, nodes.asked]]),
            Group("4 · Repaint the mouth", [[LANE, LANE, nodes.crops, nodes.latent]]),
            Group("5 · Result", [[nodes.pasted, joined, saved]]),
        ]
    )
    return Sheet(title, g, note + MODELS, layout)


@dataclass(frozen=True)
class Parts:
    """The single nodes by what they do."""

    faces: Node
    fitted: Node
    heard: Node
    asked: Node
    latent: Node
    crops: Node
    pasted: Node


def by_parts(
    g: Flow, loader: Node, speech: Any, images: Any, fps: Any, sampler: Callable[[Flow, Node, Node], Node]
) -> tuple[Any, Any, Parts]:
    """All nodes from Find Faces to Composite: the pictures, the sound, and the nodes."""
    faces = g.add("LatentSyncFindFaces", "LatentSync: Find Faces", images=images, model=loader)
    found = {"crops": faces, "face_track": faces[1]}
    fitted = g.add("LatentSyncFitLength", "LatentSync: Fit Length", images=images, audio=speech, fps=fps, **found)
    heard = g.add("LatentSyncEncodeAudio", "LatentSync: Encode Audio", audio_encoder=loader[2], audio=fitted[1])
    found = {"crops": fitted[2], "face_track": fitted[3]}
    asked = g.add("LatentSyncCondition", "LatentSync: Condition", vae=loader[1], audio=heard, fps=fps, **found)
    latent = sampler(g, loader, asked)
    crops = g.add("VAEDecode", "VAE Decode", samples=latent, vae=loader[1])
    done = g.add("LatentSyncComposite", "LatentSync: Composite", images=fitted, crops=crops, face_track=fitted[3])
    return done, fitted[1], Parts(faces, fitted, heard, asked, latent, crops, done)


def sampler(g: Flow, loader: Node, asked: Node) -> Node:
    cond = {"positive": asked, "negative": asked[1], "latent": asked[2]}
    return g.add("LatentSyncSampler", "LatentSync: Sampler", model=loader, **cond)


def _ksampler(g: Flow, loader: Node, asked: Node) -> Node:
    return g.add(
        "KSampler",
        "KSampler",
        model=loader,
        seed=Settings.seed,
        sampler_name="ddim",
        scheduler="simple",  # its one step is the noisiest; that of ddim_uniform, which fits 20, is the last of them
        positive=asked,
        negative=asked[1],
        latent_image=asked[2],
        denoise=1.0,
        **NANO,
    )


def _three(speech: Node, source: Node, made: Node, saved: Node) -> Part:
    """LatentSync: Video is a tall node, so that the note stands beside it, not above."""
    return Row(
        [
            Stack([Note(290), Group("1 · Choose files", [[speech, source]])]),
            Group("2 · Lip sync", [[made]]),
            Group("3 · Result", [[saved]]),
        ]
    )


def _who(made: Node) -> list[tuple[Node, str, str]]:
    return [(made, "face", "Who speaks"), (made, "pick_face", "Pick a face"), (made, "checkpoint", "Model")]


MODELS = (
    "\n\nThe checkpoint **nano** is built in. For sharper mouths, download **1.5** or **1.6** once with the node"
    " **LatentSync: Download Model**, then choose it as checkpoint."
)
FACE_FILE = "\n\nIf the node asks for face-landmarker, run the node **LatentSync: Download Model** once."
PARTS_NOTE = (
    "### The single nodes\n\n" + TRY + "Then choose your own **speech** and **video**,"
    " and add other nodes as you like, such as an upscaler before Composite. With another speech or seed, the faces"
    " are not searched for again."
)
KSAMPLER_NOTE = (
    "### ComfyUI's own KSampler\n\n" + TRY + "KSampler does nearly the same as"
    " LatentSync: Sampler: with sampler **ddim**, and scheduler **simple** for nano's one step or **ddim_uniform** for"
    " the 20 steps of 1.5 and 1.6 (cfg 1.5)."
)

FLOWS: dict[str, Callable[[], Sheet]] = {
    flow.__name__: flow
    for flow in (lip_sync_a_video, talking_portrait, two_people, long_video, score_a_video, single_nodes, ksampler)
}
"""By the name of the API file."""

APPS: dict[str, Callable[[], Sheet]] = {
    "1 Lip sync a video.app": long_video,
    "2 Talking portrait.app": talking_portrait,
}
"""Templates that open as a form, by the name of the file."""
