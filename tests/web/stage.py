"""The front end with our extension in a headless browser, and the workflow that its tests use."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentsync.soundtrack import AudioTrack
from latentsync.video import VideoReader, probe
from latentsync.writer import VideoWriter

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
SCREENS = os.environ.get("LATENTSYNC_SCREENS") == "1"
"""Take the pictures of docs/screens: with real speakers and more care, which takes minutes."""

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
}"""
LOOK = """ids => {
  app.canvas.deselectAll()  // or the selected node's place stays cut out of the panels behind it
  const boxes = app.graph.nodes.filter(n => !ids.length || ids.includes(n.id))
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
WIDGET = "([id, name]) => app.graph.getNodeById(id).widgets.find(w => w.name === name).value"


def workflow(clip: str, steps: int = 1) -> Graph:
    """Find faces in a video, lip-sync it, score the result."""
    g = Graph()
    load = g.node("LatentSyncLoader", checkpoint="nano", resolution=0, dtype="auto")
    video = g.node("LoadVideo", file=clip)
    parts = g.node("GetVideoComponents", video=video)
    found = g.node("LatentSyncFindFaces", images=parts, model=load, face="largest", resolution=0, preview_frame=0)
    g.node("PreviewImage", images=found[2])
    how = {"fit": "pingpong", "face": "largest", "steps": steps, "guidance": 1.0, "solver": "ddim", "seed": 7}
    rest = {"paste": "mouth", "still_fps": 25, "window_batch": 1, "save_to": "temp", "filename_prefix": "x"}
    made = g.node("LatentSyncVideo", video=video, checkpoint="nano", **how, **rest)
    g.node("LatentSyncScore", video=made, fps=25.0, face="left")
    return g


def two_people(target: Path, media: Path | None) -> Path:
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


@dataclass
class Stage:
    """page: the front end with workflow() loaded. said: errors and warnings of the console."""

    page: "Page"
    server: ComfyServer
    clip: str
    said: list[str] = field(default_factory=list)

    def hear(self, message: "ConsoleMessage") -> None:
        if message.type in ("error", "warning"):
            self.said.append(f"{message.text} ({message.location.get('url', '')})")

    def begin(self, **settings: Any) -> None:
        """The workflow, fresh, in a front end with these settings."""
        self.server.post("/settings", settings)
        self.page.reload()
        self.page.wait_for_function(READY, timeout=120_000)
        load_api(self.page, workflow(self.clip, 8 if SCREENS else 1).prompt, "two people")
        self.page.evaluate(ARRANGE, PLACES)
        self.look()

    def run(self, timeout: float = 900) -> None:
        """Press Run and wait for the end; what fails on the server fails here."""
        before = set(self.server.get("/history"))
        self.page.get_by_test_id("queue-button").click()
        end = time.monotonic() + timeout
        while not (done := [run for key, run in self.server.get("/history").items() if key not in before]):
            if time.monotonic() > end:
                raise TimeoutError(f"The run did not end within {timeout:.0f} s.")
            self.page.wait_for_timeout(500)
        assert done[0]["status"]["status_str"] == "success", done[0]["status"]["messages"][-1]

    def widget(self, node: int, name: str) -> Any:
        return self.page.evaluate(WIDGET, [node, name])

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

    def screen(self, name: str, target: "Locator | None" = None) -> None:
        """Keep a picture in docs/screens, where that is wanted."""
        if not SCREENS:
            return
        folder = ROOT / "docs" / "screens"
        folder.mkdir(parents=True, exist_ok=True)
        (target or self.page).screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=82)


@contextmanager
def open_stage(comfyui: Installation, folder: Path, media: Path | None) -> Iterator[Stage]:
    with ComfyServer(comfyui, folder / "comfy", packs={PACK: ROOT}) as server:
        clip = server.put(two_people(folder / "two_people.mp4", media))
        with front_end(server, 1600, 1000) as page:
            stage = Stage(page, server, clip)
            page.on("console", stage.hear)
            page.on("pageerror", lambda error: stage.said.append(f"{error} {error.stack}"))
            yield stage
