"""The pictures of ComfyUI: the help pages', and those of docs/screens. make pictures calls it, or for some alone
python -m tests.web.pictures SCENE …, where a SCENE is the name of a function here, such as dialogue.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..docs.record import RECORD, keep
from ..nodes.clips import cut
from ..nodes.graphs import Graph
from ..nodes.server import ROOT, find_comfyui
from ..workflows.browser import load_api, open_template
from ..workflows.flows import FACE, VOICE
from ..workflows.samples import SAMPLES
from .stage import PACK, Stage, open_stage

if TYPE_CHECKING:
    from playwright.sync_api import Page

FOLDER, SCREENS = ROOT / "web" / "docs" / "img", RECORD.parent
WIDTH = 760
"""Pixels of a help page's picture at most."""
FRAMES = 30
"""Of the clip that the help pages show."""
CALM, PATIENCE = 8, 7200
"""A machine may be busy: how many times as long as in tests a click may take, and seconds for a run."""
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
      if (id < 0) { y -= id; continue }
      const node = app.graph.getNodeById(id)
      node.setSize([Math.max(node.size[0], widths[node.type] ?? 260), node.size[1]])
      node.pos = [x, y]
      y += node.size[1] + 60
      widest = Math.max(widest, node.size[0])
    }
    x += widest + 60
  }
  const rest = app.graph.nodes.filter(node => !columns.flat().includes(Number(node.id)))
  rest.forEach((node, i) => { node.pos = [x, 300 * i] })
}"""
HOLD_SEEDS = """() => app.graph.nodes.flatMap(n => (n.widgets ?? []).map((w, i) => [n.id, i, w]))
  .filter(([_, __, w]) => w.name === 'control_after_generate')
  .map(([id, i, w]) => { const before = w.value; w.value = 'fixed'; return [id, i, before] })"""
GIVE_BACK = """chosen => { for (const [id, i, value] of chosen) app.graph.getNodeById(id).widgets[i].value = value }"""
DRAWN = """() => app.graph.nodes.every(n => n.type !== 'PreviewImage' || n.imgs?.length)"""
WORDS = """() => [document.body.innerText, ...[...document.querySelectorAll('input')].map(one => one.value)]
  .flatMap(text => text.split('\\n')).map(line => line.trim()).filter(Boolean)"""
MOMENT = "at => { for (const video of document.querySelectorAll('.latentsync-compare video')) video.currentTime = at }"
MOUTH_OPEN = 0.6
"""Second of the result."""
PANELS = {"video": ".latentsync-compare"}
"""Pictures of a panel alone: the node is too tall."""
WIDTHS = {
    "LatentSyncFindFaces": 420,
    "PreviewImage": 480,
    "LatentSyncVideo": 420,
    "LatentSyncScore": 460,
    "LatentSyncPersonalize": 320,
}


# Inputs that a scene does not name have their defaults.
Scene = tuple[Graph, dict[str, list[int]], list[list[int]]]
"""A workflow, which of its nodes each picture shows, and the columns in which they stand; below 0: room."""


def parts(clip: str) -> Scene:
    """The single nodes."""
    g = Graph()
    load = g.node("LatentSyncLoader")
    video = g.node("LoadVideo", file=clip)
    source = g.node("GetVideoComponents", video=video)
    found = g.node("LatentSyncFindFaces", images=source, model=load, face="left", preview_frame=20)
    both = {"crops": found, "face_track": found[1]}
    fit = g.node("LatentSyncFitLength", images=source, audio=source[1], fps=source[2], fit="trim", **both)
    heard = g.node("LatentSyncEncodeAudio", audio_encoder=load[2], audio=fit[1])
    both = {"crops": fit[2], "face_track": fit[3]}
    asked = g.node("LatentSyncCondition", vae=load[1], audio=heard, fps=source[2], **both)
    drawn = g.node("LatentSyncSampler", model=load, positive=asked, negative=asked[1], latent=asked[2])
    crops = g.node("VAEDecode", samples=drawn, vae=load[1])
    seen = g.node("PreviewImage", images=g.node("ImageFromBatch", image=crops, batch_index=20, length=6))
    done = g.node("LatentSyncComposite", images=fit, crops=crops, face_track=fit[3])
    last = g.node("PreviewImage", images=g.node("ImageFromBatch", image=done, batch_index=20, length=4))
    mask = g.node("MaskToImage", mask=done[1])
    dark = g.node("PreviewImage", images=g.node("ImageFromBatch", image=mask, batch_index=20, length=1))
    regions = g.node("LatentSyncFaceRegions", face_track=fit[3], part="mouth")
    boxed = g.node("MaskToImage", mask=regions[2])
    outline = g.node("PreviewImage", images=g.node("ImageFromBatch", image=boxed, batch_index=20, length=1))
    noise = g.node("LatentSyncNoise")
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
        "face_regions": ["regions", "outline"],
    }
    columns = [["load", "video"], ["source"], ["found"], ["fit"], ["heard"], ["asked"], ["drawn"], ["seen"]]
    columns += [["crops", "mask"], ["noise"], ["done"], ["last"], ["dark"], ["regions"], ["outline"]]
    pick = [[number[name] for name in column] for column in columns]
    return g, {name: [number[node] for node in nodes] for name, nodes in shown.items()}, pick


def one_node(clip: str) -> Scene:
    """The two nodes that do it all, each with what comes before and after it."""
    g = Graph()
    video = g.node("LoadVideo", file=clip)
    source = g.node("GetVideoComponents", video=video)
    again = g.node("LoadVideo", file=clip)  # its wire would pass behind the other nodes
    made = g.node("LatentSyncVideo", video=again, fit="trim", face="left")
    lips = g.node("LatentSyncLipSync", images=source, audio=source[1], fps=source[2], fit="trim", face="left")
    joined = g.node("CreateVideo", images=lips, audio=lips[1], fps=source[2])
    saved = g.node("SaveVideo", video=joined, filename_prefix="x", format="auto", codec="auto")
    also = g.node("SaveVideo", video=made, filename_prefix="y", format="auto", codec="auto")
    nodes = (video, source, made, lips, joined, saved, also, again)
    one, two, three, four, five, six, seven, eight = (int(n.id) for n in nodes)
    columns = [[one], [two], [-110, four], [five, six], [eight], [three], [seven]]  # fps passes above
    return g, {"lip_sync": [two, four, five], "video": [three]}, columns


def dialogue(clip: str) -> Scene:
    """Two people, each with a voice."""
    g = Graph()
    video = g.node("LoadVideo", file=clip)
    voices = [g.node("LoadAudio", audio=f"latentsync_voice_{side}.flac") for side in ("left", "right")]
    pairs = {"speakers.voice_1": voices[0], "speakers.face_1": "left", "speakers.start_1": 0.0}
    pairs |= {"speakers.voice_2": voices[1], "speakers.face_2": "right", "speakers.start_2": -1.0}
    made = g.node("LatentSyncSpeakers", video=video, speakers="2", **pairs, fit="trim", duration=0.8)
    saved = g.node("SaveVideo", video=made, filename_prefix="x", format="auto", codec="auto")
    columns = [[int(video.id), *(int(voice.id) for voice in voices)], [int(made.id)], [int(saved.id)]]
    return g, {"speakers": [node for column in columns for node in column]}, columns


def person(_: str) -> Scene:
    """A model of somebody, and the node that it is wired to. Nothing is trained for the picture."""
    g = Graph()
    video = g.node("LoadVideo", file=FACE)
    made = g.node("LatentSyncPersonalize", video=video, name="anna", consent=True)
    load = g.node("LatentSyncLoader", lora=made[1])
    one, two, three = (int(node.id) for node in (video, made, load))
    return g, {"personalize_nodes": [one, two, three]}, [[one], [two], [three]]


def score(_: str) -> Scene:
    """Of the samples' face with the samples' voice, which is long enough to judge."""
    g = Graph()
    video, voice = g.node("LoadVideo", file=FACE), g.node("LoadAudio", audio=VOICE)
    made = g.node("LatentSyncVideo", video=video, audio=voice)
    node = g.node("LatentSyncScore", video=made)
    return g, {"score": [int(node.id)]}, [[int(video.id), int(voice.id)], [int(made.id)], [int(node.id)]]


def download(_: str) -> Scene:
    g = Graph()
    node = g.node("LatentSyncDownload", name="face-landmarker")
    return g, {"download": [int(node.id)]}, [[int(node.id)]]


def put(stage: Stage, make: Callable[[str], Scene], *, run: bool) -> dict[str, list[int]]:
    """Bring a scene onto the canvas: which of its nodes each picture shows."""
    graph, shown, columns = make(stage.clip)
    load_api(stage.page, graph.prompt, "help")
    stage.page.wait_for_timeout(500)
    if run:
        chosen = stage.page.evaluate(HOLD_SEEDS)
        stage.run(PATIENCE)
        stage.page.evaluate(GIVE_BACK, chosen)
        stage.look()  # what is out of sight does not load its pictures, and so does not grow
        stage.page.wait_for_function(DRAWN)
    stage.page.evaluate(PLACE, [columns, WIDTHS])
    return shown


def take(stage: Stage, make: Callable[[str], Scene]) -> None:
    shown = put(stage, make, run=make not in (download, person))
    for name, nodes in shown.items():
        if name in PANELS:
            stage.look_close(nodes[0])
            stage.page.evaluate(MOMENT, MOUTH_OPEN)
            stage.page.wait_for_timeout(1000)
            panel = stage.page.locator(PANELS[name])
            shot, said = panel.screenshot(), {"words": panel.inner_text().splitlines()}
        else:
            shot, said = look_at(stage.page, nodes), {"scene": make.__name__, "nodes": stage.shows(*nodes)}
        keep(FOLDER / f"{name}.jpg", shot, said, side=WIDTH)


def look_at(page: "Page", nodes: Sequence[int]) -> bytes:
    """The nodes, with a little of what is around them."""
    left, top, right, bottom = page.evaluate(BOX, list(nodes))
    scale = min(1.0, 1400 / (right - left), 820 / (bottom - top))
    page.evaluate(LOOK, [left, top, scale])
    page.wait_for_timeout(1500)
    width, height = (right - left) * scale + 2 * GAP, (bottom - top) * scale + 2 * GAP
    return page.screenshot(clip={"x": 100 - GAP, "y": 120 - GAP, "width": width, "height": height})


def pick_dark(stage: Stage) -> dict[str, Any]:
    """The dialog over a node."""
    (node,) = put(stage, one_node, run=False)["video"]
    stage.button(node).click()
    dialog = stage.page.get_by_role("dialog", name="Pick a face")
    dialog.locator(".latentsync-face").nth(1).wait_for()
    words = [text for text in dialog.locator("h2, p, button").all_inner_texts() if text]
    return {"scene": one_node.__name__, "nodes": stage.shows(node), "words": words}


def template_dark(stage: Stage) -> dict[str, Any]:
    """As it opens."""
    title = "1 Lip sync a video"
    open_template(stage.page, PACK, title)
    rest(stage)
    return {"template": title, "nodes": stage.shows()}


def app_mode(stage: Stage) -> dict[str, Any]:
    """The form, with what it made."""
    title = "1 Lip sync a video.app"
    open_template(stage.page, PACK, title)
    stage.run(PATIENCE, press=lambda: stage.page.get_by_text("Run", exact=True).last.click())
    rest(stage)
    return {"template": title, "words": stage.page.evaluate(WORDS)}


def rest(stage: Stage) -> None:
    """Until nothing moves any more."""
    stage.page.mouse.move(800, 990)
    stage.page.wait_for_timeout(4000)


HELP = download, person, one_node, dialogue, parts, score
WHOLE = pick_dark, template_dark, app_mode
"""Pictures of the whole window, by these names in docs/screens."""


def main(folder: Path, *only: str) -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        raise SystemExit("COMFYUI_PATH must name ComfyUI's folder.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    clip = cut(SAMPLES / "two_people.mp4", folder / "two_people.mp4", FRAMES)
    with open_stage(comfyui, folder, clip, calm=CALM) as stage:
        for make in [make for make in (*WHOLE, *HELP) if not only or make.__name__ in only]:
            stage.begin(**{"Comfy.ColorPalette": "dark", "Comfy.Locale": "en", **NO_BADGES})
            if make in HELP:
                take(stage, make)
            else:
                said = make(stage)
                keep(SCREENS / f"{make.__name__}.jpg", stage.page.screenshot(), said)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as one:
        main(Path(one), *sys.argv[1:])
