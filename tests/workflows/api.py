"""The API files as a script would use them, and what their outputs are judged by."""

import json
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from latentsync.face.detect import Face, FaceFinder
from latentsync.timeline import fit_timeline

from ..nodes.graphs import Graph
from ..nodes.run import Run
from ..nodes.server import ROOT, ComfyServer
from ..tiny import face_model
from .flows import FACE, LEFT, PORTRAIT, RIGHT, TWO, VOICE

FOLDER = ROOT / "example_workflows"
QUICK = {"steps": 2, "guidance": 1.0, "cfg": 1.0}
"""Two steps without guidance: enough to see that a mouth is repainted."""
CLIPS = {
    FACE: "face.mp4",
    PORTRAIT: "face.png",
    TWO: "two_people.mp4",
    VOICE: "speech.flac",
    LEFT: "voice_a.flac",
    RIGHT: "voice_b.flac",
}
"""What the tests take in place of the samples: shorter, and with real speakers where there are some."""


def as_shipped(name: str) -> Graph:
    """example_workflows/api/<name>.json."""
    return Graph(json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8")))


def api(name: str, **changes: Any) -> Graph:
    """The same with the tests' clips, and other values wherever a node has such an input and no wire there."""
    graph = as_shipped(name)
    for node in graph.prompt.values():
        own = {key: value for key, value in node["inputs"].items() if not isinstance(value, list)}
        node["inputs"] |= {key: CLIPS.get(value, value) for key, value in own.items()}
        node["inputs"] |= {key: value for key, value in changes.items() if key in own}
    return graph


def the(graph: Graph, kind: str, number: int = 0) -> str:
    """The id of a graph's node of that class, in the order of the file."""
    return [node for node, said in graph.prompt.items() if said["class_type"] == kind][number]


def saved(server: ComfyServer, run: Run, kind: str = "SaveVideo") -> Path:
    return server.path(run.shown(kind, "images")[0])


def pictures(server: ComfyServer, run: Run, node: str) -> np.ndarray:
    """What a SaveImage or PreviewImage node wrote, (F, H, W, 3) uint8."""
    return np.stack([np.asarray(Image.open(server.path(one)).convert("RGB")) for one in run.outputs[node]["images"]])


def played(source: np.ndarray, seconds: Fraction, fps: Fraction = Fraction(25), fit: str = "pingpong") -> np.ndarray:
    """The source's frames as they are shown under a sound of that length."""
    return source[list(fit_timeline(fps, len(source), seconds, fit, still=len(source) == 1).source_indices())]


def sound_of(path: Path) -> tuple[str, int, float, float]:
    """A file's sound: codec, number of packets, length in seconds and RMS."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        samples = np.concatenate([f.to_ndarray().reshape(-1, f.samples)[0] for f in file.decode(stream)])
        rate, codec = stream.rate, stream.codec_context.name
    with av.open(str(path)) as file:
        packets = sum(packet.size > 0 for packet in file.demux(audio=0))
    return codec, packets, len(samples) / rate, float(np.sqrt(np.square(samples.astype(np.float64)).mean()))


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as file:
        return [bytes(packet) for packet in file.demux(audio=0) if packet.size]


def faces_in(picture: np.ndarray) -> list[Face]:
    """From left to right."""
    with FaceFinder(face_model()) as finder:
        return sorted(finder.detect(picture), key=lambda face: face.center[0])


def lips(face: Face) -> tuple[slice, slice]:
    """Rows and columns of a face's lips."""
    (x0, y0), (x1, y1) = face.points68[48:].min(0), face.points68[48:].max(0)
    return slice(int(y0), int(y1) + 1), slice(int(x0), int(x1) + 1)


def far_from(faces: list[Face], shape: tuple[int, ...], room: float = 0.35) -> np.ndarray:
    """(H, W) bool: pixels that lie outside every face's box, grown by a share of the face's height."""
    far = np.ones(shape[-3:-1], bool)
    for face in faces:
        x0, y0, x1, y1 = face.box
        grow = room * face.height
        far[max(0, int(y0 - grow)) : int(y1 + grow), max(0, int(x0 - grow)) : int(x1 + grow)] = False
    return far


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Mean absolute difference of each frame, 0..255."""
    return np.abs(a.astype(int) - b.astype(int)).reshape(len(a), -1).mean(1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.square(a.astype(np.float64) - b.astype(np.float64)).mean()
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def media_folder() -> Path | None:
    """Real clips, where there are any."""
    folder = Path(os.environ.get("LATENTSYNC_MEDIA", ROOT.parent / "shared" / "media"))
    return folder if folder.is_dir() else None
