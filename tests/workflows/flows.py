"""The example workflows, written once: what each one wires up, and how it lies on the canvas."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentsync.settings import Settings

from ..nodes.graphs import Graph, Node

SAMPLING = {
    "seed": Settings.seed,
    "steps": 1,  # what nano asks for
    "guidance": 2.0,
    "solver": Settings.solver,
}
HOW = {"checkpoint": "nano", "fit": Settings.fit, "face": Settings.face, **SAMPLING, "paste": Settings.paste}
STREAMED = {
    **HOW,
    "still_fps": Settings.still_fps,
    "window_batch": Settings.window_batch,
    "save_to": "temp",
    "filename_prefix": "video/LatentSync",
}

Columns = list[list[str | int]]
LANE = 110
"""Room for the wires of one more node above a column."""


class Flow(Graph):
    """A graph whose nodes have titles for people who read the JSON or the canvas."""

    def add(self, kind: str, title: str, /, **inputs: Any) -> Node:
        node = self.node(kind, **inputs)
        self.prompt[node.id]["_meta"] = {"title": title}
        return node

    def clip(self, name: str = "face.mp4", title: str = "Video of a face") -> tuple[Node, Node]:
        """A video file and its pictures, sound and frame rate."""
        video = self.add("LoadVideo", title, file=name)
        return video, self.add("GetVideoComponents", "Pictures, sound, frame rate", video=video)

    def speech(self, name: str = "speech.flac", title: str = "Speech") -> Node:
        return self.add("LoadAudio", title, audio=name)

    def loader(self) -> Node:
        return self.add("LatentSyncLoader", "LatentSync: Load Model", checkpoint="nano", resolution=0, dtype="auto")

    def save(self, video: Any, title: str = "Save Video") -> Node:
        return self.add(
            "SaveVideo", title, video=video, filename_prefix="video/LatentSync", format="auto", codec="auto"
        )

    def join(self, images: Any, audio: Any, fps: Any) -> Node:
        return self.save(self.add("CreateVideo", "Create Video", images=images, fps=fps, audio=audio))


@dataclass(frozen=True)
class Sheet:
    """How a workflow lies on the canvas: titled groups from left to right, each with columns of node ids.

    A number in a column is empty room: it keeps wires that pass by from looking like wires of the node.
    """

    flow: Flow
    note: str
    groups: list[tuple[str, Columns]]


def one_node() -> Sheet:
    g = Flow()
    video, parts = g.clip()
    speech = g.speech()
    made = g.add("LatentSyncLipSync", "LatentSync: Lip Sync", images=parts, audio=speech, fps=parts[2], **HOW)
    saved = g.join(made, made[1], parts[2])
    note = (
        "### Make a face say a speech\n\nChoose your **video** and your **speech**, then press **Run**. The result"
        " appears at Save Video and lies in ComfyUI's output folder."
    )
    groups = [("1 · Choose files", _columns([video, speech])), ("2 · Lip sync", _columns([parts], [LANE, made])),
              ("3 · Result", _columns([_before(g, saved)], [saved]))]  # fmt: skip
    return Sheet(g, note + MODELS, groups)


def parts() -> Sheet:
    return _by_parts(stock=False)


def ksampler() -> Sheet:
    return _by_parts(stock=True)


def _by_parts(*, stock: bool) -> Sheet:
    g = Flow()
    video, clip = g.clip()
    speech, loader = g.speech(), g.loader()
    faces = g.add(
        "LatentSyncFindFaces",
        "LatentSync: Find Faces",
        images=clip,
        face=Settings.face,
        model=loader,
        resolution=0,
        preview_frame=0,
    )
    look = g.add("PreviewImage", "Which face", images=faces[2])
    fitted = g.add(
        "LatentSyncFitLength",
        "LatentSync: Fit Length",
        images=clip,
        audio=speech,
        fps=clip[2],
        fit=Settings.fit,
        crops=faces,
        face_track=faces[1],
    )
    heard = g.add("LatentSyncEncodeAudio", "LatentSync: Encode Audio", audio_encoder=loader[2], audio=fitted[1])
    asked = g.add(
        "LatentSyncCondition",
        "LatentSync: Condition",
        vae=loader[1],
        crops=fitted[2],
        audio=heard,
        face_track=fitted[3],
        fps=clip[2],
    )
    latent = (_ksampler if stock else _sampler)(g, loader, asked)
    crops = g.add("VAEDecode", "VAE Decode", samples=latent, vae=loader[1])
    done = g.add(
        "LatentSyncComposite",
        "LatentSync: Composite",
        images=fitted,
        crops=crops,
        face_track=fitted[3],
        paste=Settings.paste,
    )
    saved = g.join(done, fitted[1], clip[2])
    groups = [
        ("1 · Choose files and model", _columns([video, speech], [clip, LANE // 2, loader])),
        ("2 · Find the face", _columns([LANE, faces, look])),
        ("3 · Listen", _columns([LANE // 2, fitted, heard], [LANE, asked])),
        ("4 · Repaint the mouth", _columns([LANE, latent], [LANE // 2, crops, done])),
        ("5 · Result", _columns([_before(g, saved)], [saved])),
    ]
    return Sheet(g, (KSAMPLER_NOTE if stock else PARTS_NOTE) + MODELS, groups)


def _sampler(g: Flow, loader: Node, asked: Node) -> Node:
    return g.add(
        "LatentSyncSampler",
        "LatentSync: Sampler",
        model=loader,
        positive=asked,
        negative=asked[1],
        latent=asked[2],
        **SAMPLING,
    )


def _ksampler(g: Flow, loader: Node, asked: Node) -> Node:
    return g.add(
        "KSampler",
        "KSampler",
        model=loader,
        seed=Settings.seed,
        steps=SAMPLING["steps"],
        cfg=SAMPLING["guidance"],
        sampler_name="ddim",
        scheduler="simple",  # its one step is the noisiest; that of ddim_uniform, which fits 20, is the last of them
        positive=asked,
        negative=asked[1],
        latent_image=asked[2],
        denoise=1.0,
    )


def still() -> Sheet:
    g = Flow()
    picture = g.add("LoadImage", "Picture of a face", image="face.png")
    speech = g.speech()
    made = g.add("LatentSyncVideo", "LatentSync: Video", video=picture, audio=speech, **STREAMED)
    saved = g.save(made)
    note = (
        "### Make a picture talk\n\nChoose a **picture** with a face and a **speech**, then press **Run**. The video"
        " is as long as the speech; still_fps sets its frame rate."
    )
    groups = [("1 · Choose files", _columns([picture, speech])), ("2 · Lip sync", _columns([made])),
              ("3 · Result", _columns([saved]))]  # fmt: skip
    return Sheet(g, note + MODELS, groups)


def long_video() -> Sheet:
    g = Flow()
    video, speech = g.add("LoadVideo", "Video of a face", file="face.mp4"), g.speech()
    made = g.add("LatentSyncVideo", "LatentSync: Video", video=video, audio=speech, **STREAMED)
    saved = g.save(made)
    note = (
        "### Long videos\n\nChoose your **video** and your **speech**, then press **Run**. The video is streamed from"
        " file to file, so that minutes of it need no more memory than seconds. Without a speech node the video's own"
        " sound is taken."
    )
    groups = [("1 · Choose files", _columns([video, speech])), ("2 · Lip sync, streamed", _columns([made])),
              ("3 · Result", _columns([saved]))]  # fmt: skip
    return Sheet(g, note + MODELS, groups)


def two_people() -> Sheet:
    g = Flow()
    video, clip = g.clip("two_people.mp4", "Video with two faces")
    first, second = (
        g.speech("voice_a.flac", "Voice of the left face"),
        g.speech("voice_b.flac", "Voice of the right face"),
    )
    loader = g.loader()
    # a sound minus itself is silence of its length: each one waits while the other speaks
    quiet = [
        g.add("AudioMerge", f"Silence as long as the {side}", audio1=voice, audio2=voice, merge_method="subtract")
        for side, voice in (("right voice", second), ("left voice", first))
    ]
    left = g.add("AudioConcat", "Left speaks, then is silent", audio1=first, audio2=quiet[0], direction="after")
    right = g.add("AudioConcat", "Right is silent, then speaks", audio1=quiet[1], audio2=second, direction="after")
    both = g.add("AudioConcat", "What is heard", audio1=first, audio2=second, direction="after")
    own = {"model": loader, "vae": loader[1], "audio_encoder": loader[2], "fps": clip[2]}
    one = g.add("LatentSyncLipSync", "Left face", images=clip, audio=left, **HOW | {"face": "left"}, **own)
    two = g.add("LatentSyncLipSync", "Right face", images=one, audio=right, **HOW | {"face": "right"}, **own)
    saved = g.join(two, both, clip[2])
    note = (
        "### Two people, two voices\n\nChoose a **video with two faces** and a **voice for each**, then press **Run**."
        " The left face speaks first, then the right one; the other mouth rests meanwhile."
    )
    groups = [
        ("1 · Choose files", _columns([video, first, second])),
        ("2 · Who speaks when", _columns([clip, *quiet], [LANE, left, right, both, loader])),
        ("3 · First the left face, then the right one", _columns([LANE, one], [LANE, two])),
        ("4 · Result", _columns([_before(g, saved)], [saved])),
    ]
    return Sheet(g, note + MODELS, groups)


def score() -> Sheet:
    g = Flow()
    video = g.add("LoadVideo", "Video to score", file="face.mp4")
    found = g.add(
        "LatentSyncScore",
        "LatentSync: Score",
        video=video,
        fps=float(Settings.still_fps),
        face=Settings.face,
        syncnet="none",
    )
    chart = g.add("PreviewImage", "Chart", images=found[3])
    note = (
        "### Do the lips follow the sound?\n\nChoose a **video** with sound, then press **Run**. The chart shows how"
        " open the mouth is against how loud the speech is, and which shift of the sound fits best."
    )
    groups = [("1 · Choose a file", _columns([video])), ("2 · Score", _columns([found])),
              ("3 · Chart", _columns([chart]))]  # fmt: skip
    return Sheet(g, note + FACE_FILE, groups)


MODELS = (
    "\n\nThe checkpoint **nano** is built in. For **1.5** or **1.6**, and for files that a node asks for, run the node"
    " **LatentSync: Download Model** once. nano wants 1 step and guidance 2; 1.5 and 1.6 want 20 and 1.5."
)
FACE_FILE = "\n\nIf the node asks for face-landmarker, run the node **LatentSync: Download Model** once."
PARTS_NOTE = (
    "### The single parts\n\nChoose your **video** and your **speech**, then press **Run**. Put other nodes between"
    " the parts as you like, such as an upscaler before Composite. Another speech or seed does not find the faces"
    " again."
)
KSAMPLER_NOTE = (
    "### ComfyUI's own KSampler\n\nChoose your **video** and your **speech**, then press **Run**. Sampler **ddim**"
    " does nearly the same as LatentSync: Sampler: with scheduler **simple** for nano's one step, with **ddim_uniform**"
    " for the 20 steps of 1.5 and 1.6; cfg is the guidance."
)

FLOWS: dict[str, Callable[[], Sheet]] = {
    flow.__name__: flow for flow in (one_node, parts, ksampler, still, long_video, two_people, score)
}


def _columns(*columns: list[Node | int]) -> Columns:
    return [[part.id if isinstance(part, Node) else part for part in column] for column in columns]


def _before(g: Flow, saved: Node) -> Node:
    """Create Video, which stands before Save Video."""
    return Node(g.prompt[saved.id]["inputs"]["video"][0])
