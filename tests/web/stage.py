"""The front end with our extension in a headless browser, and the workflow that its tests use."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from latentsync.media.audio_track import AudioTrack
from latentsync.media.probe import probe
from latentsync.media.reader import VideoReader
from latentsync.media.writer import VideoWriter

from ..nodes.clips import FPS, VOICE
from ..nodes.graphs import Graph
from ..nodes.server import ROOT, ComfyServer, Installation
from ..tiny import pan
from ..workflows.browser import READY, front_end, load_api

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Locator, Page

PACK = "ComfyUI-LatentSync"
"""Without a blank: of such a folder ComfyUI cannot serve the web files (aiohttp looks for the quoted name)."""
FRAMES = 40

MODES = ("classic", "vue")
"""The two ways in which the front end draws nodes: on a canvas, or "Nodes 2.0"."""
VUE_NODES = (1, 30)
"""The front end from which on the second one can be used."""

LOADER, SOURCE, PARTS, FINDER, SHOWN, VIDEO, SCORE = range(1, 8)
"""Ids of the nodes in workflow()."""
PLACES = {
    LOADER: (20, 480),
    SOURCE: (20, 60),
    PARTS: (20, 340),
    FINDER: (370, 60),
    SHOWN: (370, 620),
    VIDEO: (760, 60),
    SCORE: (1160, 60),
}
ARRANGE = """places => {
  for (const [id, pos] of Object.entries(places)) app.graph.getNodeById(Number(id)).pos = pos
  const widgets = app.graph.nodes.flatMap(n => n.widgets ?? [])
  for (const widget of widgets) if (widget.name === 'control_after_generate') widget.value = 'fixed'
}"""
LOOK = """ids => {
  app.canvas.deselectAll()  // or the selected node's place stays cut out of the panels behind it
  const boxes = app.graph.nodes.filter(n => !ids.length || ids.includes(Number(n.id)))
    .map(n => [n.pos[0], n.pos[1] - 40, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
  const low = i => Math.min(...boxes.map(b => b[i])), high = i => Math.max(...boxes.map(b => b[i]))
  const frame = app.canvas.canvas.getBoundingClientRect(), [side, top] = [80, 110]
  const room = [(frame.width - 2 * side) / (high(2) - low(0)), (frame.height - top - 60) / (high(3) - low(1))]
  const scale = Math.min(1, ...room)
  app.canvas.ds.scale = scale
  app.canvas.ds.offset = [side / scale - low(0), top / scale - low(1)]
  app.canvas.setDirty(true, true)
}"""
CLOSE_UP = """id => {
  const { pos, size } = app.graph.getNodeById(id), frame = app.canvas.canvas.getBoundingClientRect()
  app.canvas.ds.scale = 1.4
  app.canvas.ds.offset = [100 / 1.4 - pos[0], (frame.height - 40) / 1.4 - pos[1] - size[1]]
  app.canvas.setDirty(true, true)
}"""
SET = """([id, name, value]) => {
  const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name)
  widget.value = value
  widget.callback?.(value)
}"""
BOX = """([id, widget]) => {
  const node = app.graph.getNodeById(id), { scale, offset } = app.canvas.ds
  const frame = app.canvas.canvas.getBoundingClientRect()
  const shown = document.querySelector(`.lg-node[data-node-id="${id}"]`)?.getBoundingClientRect()
  const [x, y] = [0, 1].map(i => (node.pos[i] + offset[i]) * scale)
  const place = shown ?? { x: x + frame.x, y: y + frame.y, width: node.size[0] * scale, height: node.size[1] * scale }
  const rect = r => [r.x, r.y, r.x + r.width, r.y + r.height].map(v => v / scale)
  const element = node.widgets.find(w => w.name === widget).element
  return [rect(place), rect(element.getBoundingClientRect())]
}"""
ADDED = """id => {
  const { widgets, imgs } = app.graph.getNodeById(id)
  const live = document.querySelectorAll(`.lg-node[data-node-id="${id}"] img[src^="blob:"]`)
  return [widgets.some(w => w.name === '$$node-text-preview'), (imgs?.length ?? 0) + live.length]
}"""
SIZES = "() => Object.fromEntries(app.graph.nodes.map(n => [n.id, [...n.size].map(Math.round)]))"
WIDGET = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"


READ = """ids => Object.fromEntries(app.graph.nodes.filter(n => !ids.length || ids.includes(Number(n.id))).map(n => {
  const seen = (n.widgets ?? []).filter(w => n.isWidgetVisible(w)), asked = seen.filter(w => w.serialize !== false)
  const slots = (n.inputs ?? []).filter(i => !i.widget || asked.some(w => w.name === i.widget.name))
  return [n.id, {
    type: n.type,
    title: n.title,
    inputs: Object.fromEntries([...slots, ...asked].map(i => [i.name, i.label ?? i.localized_name ?? i.name])),
    values: Object.fromEntries(asked.map(w => [w.name, w.value])),
    fold: seen.find(w => w.name === 'advanced')?.label ?? null,
    outputs: (n.outputs ?? []).map(o => o.label ?? o.localized_name ?? o.name),
  }]
}))"""


def workflow(clip: str, steps: int = 1) -> Graph:
    """Find faces in a video, lip-sync it, score the result."""
    g = Graph()
    load = g.node("LatentSyncLoader", checkpoint="nano", resolution=0, dtype="auto")
    video = g.node("LoadVideo", file=clip)
    parts = g.node("GetVideoComponents", video=video)
    found = g.node("LatentSyncFindFaces", images=parts, model=load, face="largest", resolution=0, preview_frame=0)
    g.node("PreviewImage", images=found[2])
    how = {"fit": "pingpong", "face": "largest", "steps": steps, "guidance": 1.0, "solver": "ddim", "seed": 7}
    rest = {"still_fps": 25, "window_batch": 1, "save_to": "temp", "filename_prefix": "x"}
    made = g.node("LatentSyncVideo", video=video, checkpoint="nano", **how, **rest)
    g.node("LatentSyncScore", video=made, fps=25.0, face="left")
    return g


def two_people(target: Path, media: Path | None = None) -> Path:
    """Two faces, the sound is the left one's: real speakers (GRID corpus), else the portrait and its mirror image."""
    if media is None:
        frames = (np.concatenate((frame, frame[:, ::-1]), 1) for frame in pan(FRAMES, 320, 280))
        return _written(target, frames, 640, 280, AudioTrack(VOICE, duration=FRAMES / FPS))
    left, right = (media / "clips" / "grid" / name for name in ("pE_sbia1a.mpg", "pF_sbwe5n.mpg"))
    with VideoReader(probe(left)) as one, VideoReader(probe(right)) as other:
        numbers = range(min(one.info.frames, other.info.frames))
        pairs = zip(one.read(numbers), other.read(numbers), strict=True)
        frames = (np.concatenate(pair, 1) for pair in pairs)
        return _written(target, frames, 2 * one.info.width, one.info.height, AudioTrack(left, one.info.start))


def _written(target: Path, frames: Iterator[np.ndarray], width: int, height: int, sound: AudioTrack) -> Path:
    with VideoWriter(target, width, height, Fraction(25), audio=sound) as out:
        for frame in frames:
            out.write(frame)
    return target


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def holds(self, other: "Box") -> bool:
        above = other.left >= self.left - 1 and other.top >= self.top - 1
        return above and other.right <= self.right + 1 and other.bottom <= self.bottom + 1


@dataclass
class Stage:
    """page: the front end with workflow() loaded. said: errors and warnings of the console. patience: milliseconds
    until the front end must be ready."""

    page: "Page"
    server: ComfyServer
    clip: str
    mode: str = "classic"
    said: list[str] = field(default_factory=list)
    patience: int = 120_000

    def hear(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} ({message.location.get('url', '')})")

    def has_vue_nodes(self) -> bool:
        version = self.page.evaluate("window.__COMFYUI_FRONTEND_VERSION__")
        return tuple(map(int, version.split(".")[:2])) >= VUE_NODES

    def begin(self, mode: str | None = None, **settings: Any) -> None:
        """The workflow, fresh, in a front end with these settings; mode: one of MODES, the last one unless told."""
        self.mode = mode or self.mode
        self.server.post("/settings", {"Comfy.VueNodes.Enabled": self.mode == "vue", **settings})
        self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear() }")  # no draft of an earlier test
        self.page.reload(timeout=self.patience)
        self.page.wait_for_function(READY, timeout=self.patience)
        load_api(self.page, workflow(self.clip).prompt, "two people")
        self.page.evaluate(ARRANGE, PLACES)
        self.look()

    def run(self, timeout: float = 900, press: Callable[[], None] | None = None) -> None:
        """Press Run (or what press does) and wait for the end; what fails on the server fails here."""
        done = self.await_end(self.press_run(press), timeout)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]

    def await_end(self, before: set[str], timeout: float = 900) -> dict[str, Any]:
        end = time.monotonic() + timeout
        while not (done := [run for key, run in self.server.get("/history").items() if key not in before]):
            if time.monotonic() > end:
                raise TimeoutError(f"The run did not end within {timeout:.0f} s.")
            self.page.wait_for_timeout(500)
        self.page.wait_for_timeout(1000)
        return done[0]

    def last_run(self) -> dict[str, Any]:
        return max(self.server.get("/history").values(), key=lambda run: run["prompt"][0])

    def widget(self, node: int, name: str) -> Any:
        return self.page.evaluate(WIDGET, [node, name])

    def change(self, node: int, name: str, value: Any) -> None:
        self.page.evaluate(SET, [node, name, value])

    def press_run(self, press: Callable[[], None] | None = None) -> set[str]:
        """Press Run; the runs that the server knew before."""
        before = set(self.server.get("/history"))
        (press or self.page.get_by_test_id("queue-button").click)()
        return before

    def boxes(self, node: int, widget: str) -> tuple["Box", "Box"]:
        """A node and one of its DOM widgets as they are seen, in px of the graph: left, top, right, bottom."""
        outer, inner = self.page.evaluate(BOX, [node, widget])
        return Box(*outer), Box(*inner)

    def added(self, node: int) -> tuple[bool, bool]:
        """Whether the front end's line of progress is on a node, and its preview."""
        text, pictures = self.page.evaluate(ADDED, node)
        return text, pictures > 0

    def sizes(self) -> dict[str, list[int]]:
        return self.page.evaluate(SIZES)

    def look(self, *nodes: int) -> None:
        """Bring nodes into view (all where none is named)."""
        self.page.evaluate(LOOK, list(nodes))
        self.page.wait_for_timeout(400)

    def look_close(self, node: int) -> None:
        """The lower end of a node, where its panel is."""
        self.page.evaluate(CLOSE_UP, node)
        self.page.wait_for_timeout(400)

    def button(self, node: int) -> "Locator":
        """The "Pick a face…" of a node, found where the node says its widget is."""
        self.look(node)
        self.page.evaluate(
            "id => { app.graph.getNodeById(id).widgets.find(w => w.name === 'pick_face').element.dataset.of = id }",
            node,
        )
        return self.page.locator(f'.latentsync-pick[data-of="{node}"]')

    def shows(self, *nodes: int) -> dict[str, Any]:
        """What can be read on nodes (all where none is named)."""
        return self.page.evaluate(READ, list(nodes))


@contextmanager
def open_stage(comfyui: Installation, folder: Path, clip: Path, *, calm: int = 1) -> Iterator[Stage]:
    """clip: the video in workflow(). calm: how many times as long as usual everything may take."""
    root = os.environ.get("LATENTSYNC_FRONT_END")
    args = ["--preview-method", "latent2rgb"] + (["--front-end-root", root] if root else [])
    with (
        ComfyServer(comfyui, folder / "comfy", args=args, packs={PACK: ROOT}, start=180.0 * calm) as server,
        front_end(server, 1600, 1000, patience=120_000 * calm) as page,
    ):
        page.set_default_timeout(15_000 * calm)
        stage = Stage(page, server, server.put(clip), patience=120_000 * calm)
        page.on("console", stage.hear)
        page.on("pageerror", lambda error: stage.said.append(f"{error} {error.stack}"))
        yield stage
