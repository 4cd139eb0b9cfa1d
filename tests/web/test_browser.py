"""The extension as a user has it: real ComfyUI, real browser. LATENTSYNC_SCREENS=1 takes the pictures of docs/screens.

The tests follow each other on one page, as a user would: pick, run, look.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..nodes.server import Installation
from ..workflows.browser import as_prompt
from .stage import FINDER, PACK, SCORE, SCREENS, VIDEO, Stage, open_stage

if TYPE_CHECKING:
    from playwright.sync_api import Locator

CONTRAST = """element => {
  const rgb = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number)
  const light = text => rgb(text).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
  let ground = element
  while (/^rgba\\(.*, 0\\)$|^transparent$/.test(getComputedStyle(ground).backgroundColor)) ground = ground.parentElement
  const [a, b] = [getComputedStyle(element).color, getComputedStyle(ground).backgroundColor].map(light)
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)
}"""


@pytest.fixture(scope="module")
def stage(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    media = Path(os.environ.get("LATENTSYNC_MEDIA", Path(__file__).parents[3] / "shared" / "media"))
    if SCREENS and not media.is_dir():
        pytest.fail(f"The pictures of docs/screens need the clips of LATENTSYNC_MEDIA; there is no {media}.")
    with open_stage(comfyui, tmp_path_factory.mktemp("web"), media if SCREENS else None) as stage:
        stage.begin(**{"Comfy.ColorPalette": "dark", "Comfy.Locale": "en"})
        yield stage


def dialog_of(stage: Stage, node: int, faces: int = 2) -> "Locator":
    stage.button(node).click()
    dialog = stage.page.get_by_role("dialog", name="Pick a face")
    dialog.locator(".latentsync-face").nth(faces - 1).wait_for()
    return dialog


def found_faces(stage: Stage, frame: int) -> list[list[float]]:
    answer = stage.server.get(f"/latentsync/faces?file={stage.clip}&frame={frame}")
    return [face["box"] for face in answer["faces"]]


def inside(point: str, box: list[float]) -> bool:
    x, y = map(int, point.split(",")[:2])
    return box[0] < x < box[2] and box[1] < y < box[3]


def test_a_click_on_a_face_writes_its_place(stage: Stage) -> None:
    boxes = found_faces(stage, 0)
    dialog = dialog_of(stage, VIDEO)
    dialog.get_by_role("button", name="Face 1").click()
    assert dialog.count() == 0
    point = str(stage.widget(VIDEO, "face"))
    assert point.endswith(",0")
    assert inside(point, boxes[1])
    assert not inside(point, boxes[0])


def test_the_frame_can_be_chosen(stage: Stage) -> None:
    dialog = dialog_of(stage, FINDER)
    dialog.get_by_role("spinbutton", name="Frame").fill("12")
    stage.page.wait_for_function("document.querySelector('.latentsync-status').textContent.includes('frame 12')")
    assert dialog.get_by_role("slider", name="Frame").input_value() == "12"
    dialog.get_by_role("button", name="Face 0").click()
    point = str(stage.widget(FINDER, "face"))
    assert point.endswith(",12")
    assert inside(point, found_faces(stage, 12)[0])


def test_a_face_is_picked_by_keyboard_alone(stage: Stage) -> None:
    before, keyboard = stage.widget(FINDER, "face"), stage.page.keyboard
    stage.button(FINDER).focus()
    keyboard.press("Enter")
    dialog = stage.page.get_by_role("dialog", name="Pick a face")
    chosen = dialog.locator(".latentsync-face[aria-pressed=true]")
    chosen.wait_for()
    assert chosen.get_attribute("aria-label") == "Face 0"
    assert focused(stage) == "Face 0", "opens with the face that is picked now"
    keyboard.press("ArrowRight")
    assert focused(stage) == "Face 1"
    for _ in range(15):
        keyboard.press("Tab")
        assert stage.page.evaluate("!!document.activeElement.closest('dialog')"), "the focus stays inside"
    keyboard.press("Escape")
    assert dialog.count() == 0
    assert stage.widget(FINDER, "face") == before
    keyboard.press("Enter")  # the focus is back on the button
    chosen.wait_for()
    keyboard.press("ArrowRight")
    keyboard.press("Enter")
    assert inside(str(stage.widget(FINDER, "face")), found_faces(stage, 12)[1])


def focused(stage: Stage) -> str | None:
    return stage.page.evaluate("document.activeElement.getAttribute('aria-label')")


def test_rules_and_missing_sources(stage: Stage) -> None:
    stage.button(SCORE).click()
    dialog = stage.page.get_by_role("dialog", name="Pick a face")
    assert "LatentSync: Video" in (dialog.get_by_role("status").text_content() or "")
    assert dialog.locator("img").count() == 0
    dialog.get_by_role("button", name="Leftmost face").click()
    assert stage.widget(SCORE, "face") == "left"


SOURCE_OF = """async ([pack, build]) => {
  const { findSource } = await import(`/extensions/${pack}/js/source.js`)
  const add = (type, pos) => { const n = LiteGraph.createNode(type); app.graph.add(n); return n }
  class Loader extends LiteGraph.LGraphNode {
    constructor() {
      super('VHS')
      this.addOutput('IMAGE', 'IMAGE')
      const values = { video: 'a.mp4', force_rate: 10, skip_first_frames: 3, select_every_nth: 2, frame_load_cap: 9 }
      for (const [name, value] of Object.entries({ ...values, custom_width: 0, custom_height: 200 })) {
        this.addWidget('text', name, value, null)
      }
    }
  }
  LiteGraph.registerNodeType('VHS_LoadVideo', Loader)
  const before = new Set(app.graph.nodes)
  const found = findSource(new Function('add', build)(add))
  const point = found.point?.(50, 40, { width: 800, height: 400 })
  const numbers = found.file ? [found.frame(4, 30), found.last(1000, 30), ...point] : []
  for (const node of app.graph.nodes.filter(n => !before.has(n))) app.graph.remove(node)
  return [found.file ?? null, found.obstacle ?? null, numbers]
}"""


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        ("return add('LatentSyncFindFaces')", [None, None, []]),
        (
            """const [a, r, s, f] = ['LoadVideo', 'Reroute', 'GetVideoComponents', 'LatentSyncFindFaces'].map(add)
            a.widgets[0].value = 'sub/x.mp4 [output]'
            a.connect(0, r, 0); r.connect(0, s, 0); s.connect(0, f, 0); return f""",
            ["sub/x.mp4 [output]", None, [4, 999, 50, 40]],
        ),
        (
            """const [a, s, f] = ['LoadImage', 'ImageScale', 'LatentSyncFindFaces'].map(add)
            a.connect(0, s, 0); s.connect(0, f, 0); return f""",
            [None, "Upscale Image", []],
        ),
        (
            """const [a, s, f] = ['LoadImage', 'ImageScale', 'LatentSyncFindFaces'].map(add)
            a.widgets[0].value = 'y.png'
            a.connect(0, s, 0); s.connect(0, f, 0); s.mode = 4; return f""",
            ["y.png", None, [4, 999, 50, 40]],
        ),
        (  # a third of 30 fps, every second of those after the third: frame 4 is 11 of them, 33 of the file
            """const [a, f] = ['VHS_LoadVideo', 'LatentSyncFindFaces'].map(add); a.connect(0, f, 0); return f""",
            ["a.mp4", None, [33, 8, 25, 20]],
        ),
        (
            """const [a, s, f] = ['LoadVideo', 'GetVideoComponents', 'LatentSyncFindFaces'].map(add)
            a.widgets[0].value = 'z.mp4'
            a.connect(0, s, 0); s.connect(0, f, 0)
            app.graph.convertToSubgraph(new Set([s])); return f""",
            ["z.mp4", None, [4, 999, 50, 40]],
        ),
        (
            """const [a, s, f] = ['LoadVideo', 'GetVideoComponents', 'LatentSyncFindFaces'].map(add)
            a.widgets[0].value = 'z.mp4'
            a.connect(0, s, 0); s.connect(0, f, 0)
            app.graph.convertToSubgraph(new Set([s, f]))
            return [...app.graph.subgraphs.values()].at(-1).nodes.find(n => n.type === 'LatentSyncFindFaces')""",
            ["z.mp4", None, [4, 999, 50, 40]],
        ),
    ],
    ids=["nothing", "reroute", "scaled", "bypassed", "vhs", "out of a subgraph", "into a subgraph"],
)
def test_the_file_is_found_upstream(stage: Stage, build: str, expected: list[object]) -> None:
    assert stage.page.evaluate(SOURCE_OF, [PACK, build]) == expected


def test_the_button_leaves_no_trace_in_saved_workflows(stage: Stage) -> None:
    saved = stage.page.evaluate("app.graph.serialize().nodes.find(n => n.type === 'LatentSyncVideo').widgets_values")
    widgets = stage.page.evaluate(
        "id => app.graph.getNodeById(id).widgets.filter(w => w.serialize !== false).map(w => [w.name, w.value])", VIDEO
    )
    assert saved == [value for _, value in widgets]
    assert "pick_face" not in dict(widgets)
    stage.page.evaluate("async () => { await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize()))) }")
    assert stage.widget(VIDEO, "seed") == 7
    assert stage.widget(VIDEO, "filename_prefix") == "x"
    sent = as_prompt(stage.page)[str(VIDEO)]["inputs"]
    assert "pick_face" not in sent
    assert sent["face"] == stage.widget(VIDEO, "face")


def test_a_run_from_the_menu_shows_score_and_comparison(stage: Stage) -> None:
    stage.run()
    stage.look()
    panel = stage.page.locator(".latentsync-score")
    panel.locator("svg").nth(1).wait_for()
    stage.page.locator(".latentsync-panel .latentsync-face").nth(1).wait_for()
    assert panel.locator("header strong").text_content()
    mouth = panel.locator(".latentsync-mouth").first.get_attribute("d") or ""
    assert mouth.count("M") + mouth.count("L") >= 40, "one point for every frame"
    assert panel.locator("svg title").count() == 2


def test_the_charts_tell_their_values(stage: Stage) -> None:
    stage.look(SCORE)
    chart = stage.page.get_by_role("slider", name="Agreement of mouth and sound")
    chart.focus()
    stage.page.keyboard.press("Home")
    first = chart.get_attribute("aria-valuetext") or ""
    stage.page.keyboard.press("ArrowRight")
    second = chart.get_attribute("aria-valuetext") or ""
    lags = [int(re.findall(r"-?\d+", text)[0]) for text in (first, second)]
    assert lags[0] < 0
    assert lags[1] == lags[0] + 1
    over_time = stage.page.get_by_role("slider", name="Mouth opening")
    over_time.hover(position={"x": 2, "y": 20})
    assert "0.0" in (over_time.get_attribute("aria-valuetext") or "")


def test_before_and_after_run_in_step(stage: Stage) -> None:
    stage.look(VIDEO)
    panel = stage.page.locator(".latentsync-compare")
    panel.get_by_role("button", name="Play").click()
    videos = "[...document.querySelectorAll('.latentsync-compare video')]"
    stage.page.wait_for_function(f"{videos}.length === 2 && {videos}.every(v => v.currentTime > 0.1)", timeout=60_000)
    panel.get_by_role("button", name="Pause").click()
    stage.page.wait_for_function(f"(([a, b]) => Math.abs(a - b) < 0.05)({videos}.map(v => v.currentTime))")
    assert stage.page.evaluate(f"{videos}.every(v => v.readyState >= 2 && v.videoWidth > 0)")
    assert stage.page.evaluate(f"{videos}.map(v => v.muted)") == [True, False], "the sound is the result's"
    panel.get_by_role("slider", name="Divider").focus()
    stage.page.keyboard.press("Home")
    clip = "getComputedStyle(document.querySelectorAll('.latentsync-compare video')[1]).clipPath"
    assert stage.page.evaluate(clip).rstrip(")").endswith("0%")
    panel.locator(".latentsync-stage").click(position={"x": 60, "y": 60})
    assert not stage.page.evaluate(clip).rstrip(")").endswith(" 0%")


def test_a_click_on_the_nodes_own_preview_picks(stage: Stage) -> None:
    stage.look(FINDER)
    stage.page.locator(".latentsync-panel .latentsync-face").first.click()
    assert inside(str(stage.widget(FINDER, "face")), found_faces(stage, 0)[0])


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_panels_are_readable_in_both_themes(stage: Stage, palette: str) -> None:
    stage.page.evaluate("p => app.extensionManager.setting.set('Comfy.ColorPalette', p)", palette)
    stage.page.wait_for_timeout(500)
    for place in (".latentsync-score strong", ".latentsync-axis", ".latentsync-legend", ".latentsync-compare button"):
        assert stage.page.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    assert stage.page.locator(".latentsync-pick").first.evaluate(CONTRAST) >= 4.5
    stage.look(SCORE)
    stage.screen(f"score_{palette}", stage.page.locator(".latentsync-score"))
    stage.look_close(VIDEO)
    stage.screen(f"compare_{palette}", stage.page.locator(".latentsync-compare"))
    dialog = dialog_of(stage, VIDEO)
    for place in ("h2", "p", "button", "input[type=number]"):
        assert dialog.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    stage.screen(f"pick_{palette}")
    stage.page.keyboard.press("Escape")
    stage.look()
    stage.screen(f"graph_{palette}")


def test_the_help_page_opens_with_its_picture(stage: Stage) -> None:
    stage.look(FINDER)
    stage.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", FINDER)
    stage.page.get_by_test_id("info-button").click()
    page = stage.page.locator(".node-help-content")
    page.get_by_role("heading", name="LatentSync: Find Faces").wait_for()
    stage.page.wait_for_function("document.querySelector('.node-help-content img')?.naturalWidth > 100")
    stage.screen("help_light")
    stage.page.evaluate("app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")


def test_it_speaks_chinese(stage: Stage) -> None:
    stage.begin(**{"Comfy.Locale": "zh"})
    assert stage.button(FINDER).text_content() == "选择人脸…"
    assert stage.page.evaluate("id => app.graph.getNodeById(id).title", FINDER).startswith("LatentSync")
    label = stage.page.evaluate("id => app.graph.getNodeById(id).widgets.find(w => w.name === 'face').label", FINDER)
    assert label == "人脸"
    stage.begin(**{"Comfy.Locale": "en"})


def test_nothing_of_ours_complained(stage: Stage) -> None:
    """Help in the user's language is asked for first, and the general one shown; that is no fault."""
    ours = [line for line in stage.said if PACK in line or "latentsync" in line.lower()]
    assert not [line for line in ours if not re.search(r"404 .*/docs/\w+/\w+\.md", line)]
