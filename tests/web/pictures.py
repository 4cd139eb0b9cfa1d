"""Take the pictures of the help pages: python -m tests.web.pictures MEDIA [SCENE …].

MEDIA: the clips. Needs ComfyUI and a browser. SCENE: only these functions, such as dialogue.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..nodes.graphs import Graph
from ..nodes.server import ROOT, find_comfyui
from ..workflows.browser import load_api
from .stage import Stage, open_stage

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER = ROOT / "web" / "docs" / "img"
WIDTH = 760
"""Pixels of a picture at most."""
GAP = 30
NO_BADGES = {"Comfy.NodeBadge.NodeSourceBadgeMode": "None"}
BOX = """ids => {
  const nodes = ids.map(id => app.graph.getNodeById(id))
  const boxes = nodes.map(n => [...n.pos, n.pos[0] + n.size[0], n.pos[1] + n.size[1]])
  const low = i => Math.min(...boxes.map(b => b[i])), high = i => Math.max(...boxes.map(b => b[i]))
  return [low(0), low(1) - 30, high(2), high(3)]
}"""
LOOK = """([x, y, scale]) => {
  app.canvas.deselectAll?.()
  app.canvas.ds.scale = scale
  const frame = app.canvas.canvas.getBoundingClientRect()
  app.canvas.ds.offset = [(100 - frame.left) / scale - x, (120 - frame.top) / scale - y]
  app.canvas.setDirty(true, true)
}"""
PLACE = """([columns, widths]) => {
  let x = 0
  for (const column of columns) {
    let y = 0, widest = 0
    for (const id of column) {
      const node = app.graph.getNodeById(id)
      node.setSize([Math.max(node.size[0], widths[node.type] ?? 260), node.size[1]])
      node.pos = [x, y]
      y += node.size[1] + 60
      widest = Math.max(widest, node.size[0])
    }
    x += widest + 60
  }
}"""
PANELS = {"video": ".latentsync-compare"}
"""Pictures of a panel alone: the node is too tall."""
WIDTHS = {
    "LatentSyncFindFaces": 420,
    "PreviewImage": 480,
    "LatentSyncVideo": 420,
    "LatentSyncScore": 460,
    "LatentSyncPersonalize": 320,
}


Scene = tuple[Graph, dict[str, list[int]], list[list[int]]]
"""A workflow, which of its nodes each picture shows, and the columns in which they stand."""


def parts(clip: str) -> Scene:
    """The single nodes."""
    g = Graph()
    load = g.node("LatentSyncLoader", checkpoint="nano", resolution=0, dtype="auto")
    video = g.node("LoadVideo", file=clip)
    source = g.node("GetVideoComponents", video=video)
    found = g.node("LatentSyncFindFaces", images=source, model=load, face="left", resolution=0, preview_frame=20)
    both = {"crops": found, "face_track": found[1]}
    fit = g.node("LatentSyncFitLength", images=source, audio=source[1], fps=source[2], fit="trim", **both)
    heard = g.node("LatentSyncEncodeAudio", audio_encoder=load[2], audio=fit[1])
    both = {"crops": fit[2], "face_track": fit[3]}
    asked = g.node("LatentSyncCondition", vae=load[1], audio=heard, fps=source[2], **both)
    how = {"seed": 1247, "steps": 0, "guidance": 0.0, "solver": "ddim"}
    drawn = g.node("LatentSyncSampler", model=load, positive=asked, negative=asked[1], latent=asked[2], **how)
    crops = g.node("VAEDecode", samples=drawn, vae=load[1])
    seen = g.node("PreviewImage", images=g.node("ImageFromBatch", image=crops, batch_index=20, length=6))
    done = g.node("LatentSyncComposite", images=fit, crops=crops, face_track=fit[3])
    last = g.node("PreviewImage", images=g.node("ImageFromBatch", image=done, batch_index=20, length=4))
    mask = g.node("MaskToImage", mask=done[1])
    dark = g.node("PreviewImage", images=g.node("ImageFromBatch", image=mask, batch_index=20, length=1))
    regions = g.node("LatentSyncFaceRegions", face_track=fit[3], part="mouth")
    boxed = g.node("MaskToImage", mask=regions[2])
    outline = g.node("PreviewImage", images=g.node("ImageFromBatch", image=boxed, batch_index=20, length=1))
    noise = g.node("LatentSyncNoise", seed=1247)
    score = g.node("LatentSyncScore", video=video, fps=25.0, face="left")
    number = {name: int(node.id) for name, node in locals().items() if hasattr(node, "id")}
    shown = {
        "loader": ["load"],
        "encode_audio": ["heard"],
        "find_faces": ["found"],
        "fit_length": ["fit"],
        "condition": ["asked"],
        "noise": ["noise"],
        "sampler": ["drawn", "seen"],
        "composite": ["done", "last"],
        "score": ["score"],
        "face_regions": ["regions", "outline"],
    }
    columns = [["load", "video"], ["source"], ["found"], ["fit"], ["heard", "score"], ["asked"], ["drawn"], ["seen"]]
    columns += [["crops", "mask"], ["noise"], ["done"], ["last"], ["dark"], ["regions"], ["outline"]]
    pick = [[number[name] for name in column] for column in columns]
    return g, {name: [number[node] for node in nodes] for name, nodes in shown.items()}, pick


def one_node(clip: str) -> Scene:
    """The two nodes that do it all, each with what comes before and after it."""
    g = Graph()
    video = g.node("LoadVideo", file=clip)
    source = g.node("GetVideoComponents", video=video)
    how = {"checkpoint": "nano", "fit": "trim", "face": "left", "steps": 0, "guidance": 0.0, "solver": "ddim"}
    how |= {"seed": 1247}
    rest = {"still_fps": 25, "window_batch": 1, "save_to": "temp", "filename_prefix": "video/LatentSync"}
    made = g.node("LatentSyncVideo", video=video, **how, **rest)
    lips = g.node("LatentSyncLipSync", images=source, audio=source[1], fps=source[2], **how)
    joined = g.node("CreateVideo", images=lips, audio=lips[1], fps=source[2])
    saved = g.node("SaveVideo", video=joined, filename_prefix="x", format="auto", codec="auto")
    also = g.node("SaveVideo", video=made, filename_prefix="y", format="auto", codec="auto")
    one, two, three, four, five, six, seven = (int(n.id) for n in (video, source, made, lips, joined, saved, also))
    columns = [[one], [two], [four], [five, six], [three], [seven]]
    return g, {"lip_sync": [two, four, five], "video": [three]}, columns


def dialogue(clip: str) -> Scene:
    """Two people, each with a voice."""
    g = Graph()
    video = g.node("LoadVideo", file=clip)
    voices = [g.node("LoadAudio", audio=f"latentsync_voice_{side}.flac") for side in ("left", "right")]
    pairs = {"speakers.voice_1": voices[0], "speakers.face_1": "left", "speakers.start_1": 0.0}
    pairs |= {"speakers.voice_2": voices[1], "speakers.face_2": "right", "speakers.start_2": -1.0}
    how = {
        "checkpoint": "nano",
        "fit": "trim",
        "duration": 0.8,
        "steps": 0,
        "guidance": 0.0,
        "solver": "ddim",
        "seed": 1247,
    }
    rest = {"still_fps": 25, "window_batch": 1, "save_to": "temp", "filename_prefix": "video/LatentSync"}
    made = g.node("LatentSyncSpeakers", video=video, speakers="2", **pairs, **how, **rest)
    saved = g.node("SaveVideo", video=made, filename_prefix="x", format="auto", codec="auto")
    columns = [[int(video.id), *(int(voice.id) for voice in voices)], [int(made.id)], [int(saved.id)]]
    return g, {"speakers": [node for column in columns for node in column]}, columns


def person(_: str) -> Scene:
    """A model of somebody, and the node that it is wired to. Nothing is trained for the picture."""
    g = Graph()
    video = g.node("LoadVideo", file="latentsync_face.mp4")
    how = {"checkpoint": "nano", "fps": 25.0, "name": "anna", "face": "auto", "minutes": 20.0}
    made = g.node("LatentSyncPersonalize", video=video, consent=True, **how)
    load = g.node("LatentSyncLoader", checkpoint="nano", resolution=0, dtype="auto", lora=made[1], lora_strength=1.0)
    sheet = g.node("PreviewImage", images=made[2])
    one, two, three, four = (int(node.id) for node in (video, made, load, sheet))
    return g, {"personalize_nodes": [one, two, three]}, [[one], [two], [three], [four]]


def download(_: str) -> Scene:
    g = Graph()
    node = g.node("LatentSyncDownload", name="face-landmarker")
    return g, {"download": [int(node.id)]}, [[int(node.id)]]


def take(stage: Stage, make: Callable[[str], Scene]) -> None:
    graph, shown, columns = make(stage.clip)
    page = stage.page
    load_api(page, graph.prompt, "help")
    page.wait_for_timeout(500)
    if make not in (download, person):
        stage.run()
        page.wait_for_timeout(3000)
    page.evaluate(PLACE, [columns, WIDTHS])
    for name, nodes in shown.items():
        shot = look_at(page, nodes)
        if name in PANELS:
            stage.look_close(nodes[0])
            shot = page.locator(PANELS[name]).screenshot()
        picture = Image.open(BytesIO(shot)).convert("RGB")
        picture.thumbnail((WIDTH, WIDTH))
        picture.save(FOLDER / f"{name}.jpg", quality=80)


def look_at(page: "Page", nodes: Sequence[int]) -> bytes:
    """The nodes, with a little of what is around them."""
    left, top, right, bottom = page.evaluate(BOX, list(nodes))
    scale = min(1.0, 1400 / (right - left), 820 / (bottom - top))
    page.evaluate(LOOK, [left, top, scale])
    page.wait_for_timeout(1500)
    width, height = (right - left) * scale + 2 * GAP, (bottom - top) * scale + 2 * GAP
    return page.screenshot(clip={"x": 100 - GAP, "y": 120 - GAP, "width": width, "height": height})


def main(media: Path, *only: str) -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("COMFYUI_PATH must name ComfyUI's folder.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, open_stage(comfyui, Path(folder), media) as stage:
        for make in [
            make for make in (parts, one_node, dialogue, person, download) if not only or make.__name__ in only
        ]:
            stage.begin(**{"Comfy.ColorPalette": "dark", "Comfy.Locale": "en", **NO_BADGES})
            take(stage, make)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
