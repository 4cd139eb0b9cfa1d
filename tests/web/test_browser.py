"""The extension as a user has it: real ComfyUI, real browser.

The tests follow each other on one page, as a user would: pick, run, look.
"""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from ..nodes.server import Installation
from ..workflows.browser import as_prompt
from .stage import FINDER, MODES, PACK, SCORE, VIDEO, Stage, open_stage, two_people

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
def house(comfyui: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The server and the browser that all tests share."""
    clip = two_people(tmp_path_factory.mktemp("clip") / "two_people.mp4")
    with open_stage(comfyui, tmp_path_factory.mktemp("web"), clip) as stage:
        yield stage


@pytest.fixture(scope="module", params=MODES)
def stage(house: Stage, request: pytest.FixtureRequest) -> Stage:
    """The workflow in the classic canvas, and in "Nodes 2.0" where the front end has them."""
    if request.param == "vue" and not house.has_vue_nodes():
        pytest.skip("This front end has no Nodes 2.0.")
    house.begin(mode=request.param, **{"Comfy.ColorPalette": "dark", "Comfy.Locale": "en"})
    return house


@pytest.fixture(autouse=True)
def no_dialog(stage: Stage) -> Iterator[None]:
    """A test that fails leaves its dialog; the next one would click into it."""
    yield
    stage.page.evaluate("document.querySelectorAll('dialog.latentsync-dialog').forEach(one => one.close())")


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


PANELS = {FINDER: ("faces", 180), VIDEO: ("compare", 300), SCORE: ("score", 360)}
"""Node: its panel and how high it is at least, in px of the graph."""


def check_sizes(stage: Stage) -> None:
    """Every button and panel is as large as it should be, inside its node, over nearly its whole width."""
    for node, (panel, height) in PANELS.items():
        stage.look(node)
        outer, button = stage.boxes(node, "pick_face")
        assert 26 <= button.height <= 32, (node, button)
        _, shown = stage.boxes(node, panel)
        assert shown.height >= height - 1, (node, shown)
        for inner in (button, shown):
            assert outer.holds(inner), (node, outer, inner)
            assert inner.width >= outer.width - 40, (node, outer, inner)


def test_panels_have_their_room_before_the_first_run(stage: Stage) -> None:
    check_sizes(stage)
    assert stage.page.get_by_text("The score appears here after a run.").is_visible()


SEEN = """id => {
  const node = app.graph.getNodeById(id), seen = node.widgets.filter(w => node.isWidgetVisible(w))
  const { scale, offset } = app.canvas.ds, frame = app.canvas.canvas.getBoundingClientRect()
  const { y } = node.widgets.find(w => w.name === 'advanced')
  const at = [frame.x + (node.pos[0] + 100 + offset[0]) * scale, frame.y + (node.pos[1] + y + 10 + offset[1]) * scale]
  return [seen.map(w => w.name), at, node.getLayoutWidgets().length - seen.length]
}"""
CONNECTED = """async id => {
  const node = app.graph.getNodeById(id), saved = JSON.parse(JSON.stringify(app.graph.serialize()))
  const number = LiteGraph.createNode('PrimitiveFloat')
  app.graph.add(number)
  number.connect(0, node, node.inputs.findIndex(i => i.name === 'duration'))
  await app.loadGraphData(JSON.parse(JSON.stringify(app.graph.serialize())))
  const shown = app.graph.getNodeById(id).showAdvanced
  await app.loadGraphData(saved)
  return [shown, app.graph.getNodeById(id).showAdvanced ?? false]
}"""


def skip_without_advanced(stage: Stage) -> None:
    if not stage.page.evaluate("app.graph.nodes.some(n => n.widgets?.some(w => w.options?.advanced))"):
        pytest.skip("This front end does not know advanced inputs.")


def test_advanced_inputs_are_folded_until_asked_for(stage: Stage) -> None:
    skip_without_advanced(stage)
    stage.look(VIDEO)
    assert stage.page.get_by_text("Show advanced inputs").count() == 3 * (stage.mode == "vue")
    if stage.mode == "vue":
        return  # the front end's own
    names, at, _ = stage.page.evaluate(SEEN, VIDEO)
    assert {"checkpoint", "lora", "seed", "compare"} < set(names)
    assert not {"codec", "duration", "lora_strength"} & set(names)
    folded, panel = (box.height for box in stage.boxes(VIDEO, "compare"))
    stage.page.mouse.click(*at)
    stage.look(VIDEO)
    names, at, empty = stage.page.evaluate(SEEN, VIDEO)
    assert {"codec", "duration", "lora_strength"} < set(names)
    assert empty == 0
    height, same = (box.height for box in stage.boxes(VIDEO, "compare"))
    assert height > folded + 300
    assert abs(same - panel) < 3
    stage.page.mouse.click(*at)
    names, _, empty = stage.page.evaluate(SEEN, VIDEO)
    assert "codec" not in names
    assert empty == 0
    assert abs(stage.boxes(VIDEO, "compare")[0].height - folded) < 3


def test_an_advanced_input_with_a_wire_is_seen(stage: Stage) -> None:
    skip_without_advanced(stage)
    assert stage.page.evaluate(CONNECTED, VIDEO) == [True, False]


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
    dialog.get_by_text("faces in frame 12").wait_for()
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
    dialog = open_dialog(stage, SCORE)
    assert "LatentSync: Video" in (dialog.get_by_role("status").text_content() or "")
    assert dialog.locator("img").count() == 0
    dialog.get_by_role("button", name="Rightmost face").click()
    assert stage.widget(SCORE, "face") == "right"


def open_dialog(stage: Stage, node: int) -> "Locator":
    stage.button(node).click()
    return stage.page.get_by_role("dialog", name="Pick a face")


@pytest.mark.parametrize(
    ("choice", "words", "pressed"),
    [
        ("largest", "Largest face", ["Largest face"]),
        ("left", "Leftmost face", ["Leftmost face"]),
        ("1", "face 1 (numbers as in Find Faces)", ["Face 1"]),
        ("7", "face 7 (numbers as in Find Faces)", []),
        ("", "“”, which is not a face", []),
    ],
)
def test_the_dialog_shows_the_present_choice(stage: Stage, choice: str, words: str, pressed: list[str]) -> None:
    stage.change(FINDER, "face", choice)
    dialog = dialog_of(stage, FINDER)
    assert dialog.locator(".latentsync-now strong").text_content() == words
    shown = dialog.locator("button[aria-pressed=true]").all()
    assert [one.get_attribute("aria-label") or one.text_content() for one in shown] == pressed
    stage.page.keyboard.press("Escape")
    stage.change(FINDER, "face", "largest")


def test_the_dialog_shows_a_point_in_its_frame(stage: Stage) -> None:
    x0, y0, x1, y1 = found_faces(stage, 9)[1]
    stage.change(FINDER, "face", f"{(x0 + x1) / 2:.0f}, {(y0 + y1) / 2:.0f}, 9")
    dialog = dialog_of(stage, FINDER)
    assert dialog.get_by_role("slider", name="Frame").input_value() == "9"
    assert dialog.locator("[aria-pressed=true]").get_attribute("aria-label") == "Face 1"
    assert "in frame 9" in (dialog.locator(".latentsync-now").text_content() or "")
    stage.page.keyboard.press("Escape")
    stage.change(FINDER, "face", "largest")


def test_a_face_that_is_not_found_is_pointed_out_by_three_clicks(stage: Stage) -> None:
    """Points win over the face, so that picking a face takes them away."""
    stage.change(FINDER, "face", "largest")
    dialog = dialog_of(stage, FINDER)
    dialog.get_by_role("spinbutton", name="Frame").fill("5")
    dialog.get_by_text("faces in frame 5").wait_for()
    dialog.get_by_role("button", name="Mark a face").click()
    assert "Click the left brow" in (dialog.get_by_role("status").text_content() or "")
    assert dialog.locator(".latentsync-face").count() == 0
    image = dialog.locator(".latentsync-pointing img")
    box, (width, height) = image.bounding_box() or {}, image.evaluate("i => [i.naturalWidth, i.naturalHeight]")
    wanted = [(0.2, 0.3), (0.4, 0.3), (0.3, 0.5)]
    for count, (x, y) in enumerate(wanted, 1):
        assert dialog.is_visible()
        image.click(position={"x": x * box["width"], "y": y * box["height"]})
        assert dialog.locator(".latentsync-point").count() in (count, 0)  # the third one closes it
    assert dialog.count() == 0
    *numbers, frame = map(int, str(stage.widget(FINDER, "points")).split(","))
    assert frame == 5
    places = [side for x, y in wanted for side in (x * width, y * height)]
    assert all(abs(a - b) <= 2 for a, b in zip(numbers, places, strict=True)), (numbers, places)
    dialog = dialog_of(stage, FINDER)
    assert "Marked points" in (dialog.text_content() or "")
    dialog.get_by_role("button", name="Remove the points").click()
    assert stage.widget(FINDER, "points") == ""
    stage.change(FINDER, "points", "1,1,9,1,5,5,0")
    dialog_of(stage, FINDER).get_by_role("button", name="Face 1").click()
    assert stage.widget(FINDER, "points") == ""
    assert str(stage.widget(FINDER, "face")).endswith(",0")
    stage.change(FINDER, "face", "largest")
    dialog = open_dialog(stage, SCORE)
    assert dialog.get_by_role("button", name="Mark a face").count() == 0, "it has no such input"
    stage.page.keyboard.press("Escape")


WIRE = """([id, type, value]) => {
  const node = app.graph.getNodeById(id), slot = node.inputs.findIndex(i => i.name === 'face')
  const text = LiteGraph.createNode(type)
  app.graph.add(text)
  text.title = 'Who'
  text.connect(0, node, slot)
  text.widgets[0].value = value
  return text.id
}"""


@pytest.mark.parametrize("kind", ["PrimitiveString", "PrimitiveNode"])
def test_a_face_that_comes_by_wire_is_changed_at_its_source(stage: Stage, kind: str) -> None:
    added = stage.page.evaluate(WIRE, [FINDER, kind, "right"])
    before = stage.widget(FINDER, "face")
    dialog = dialog_of(stage, FINDER)
    assert "“face” is connected to “Who”" in (dialog.text_content() or "")
    assert dialog.locator(".latentsync-now strong").text_content() == "Rightmost face"
    assert dialog.locator(".latentsync-face:enabled").count() == 0
    assert [one.is_disabled() for one in dialog.locator(".latentsync-row button").all()] == [True] * 3
    dialog.locator(".latentsync-face").first.click(force=True)
    assert dialog.is_visible()
    stage.page.keyboard.press("Escape")
    assert stage.widget(FINDER, "face") == before
    stage.page.evaluate("id => app.graph.remove(app.graph.getNodeById(id))", added)
    stage.change(FINDER, "face", "largest")


PROMOTED = """async pack => {
  const { choiceOf, setFace } = await import(`/extensions/${pack}/js/choice.js`)
  const node = LiteGraph.createNode('LatentSyncFindFaces')
  app.graph.add(node)
  const { subgraph, node: outside } = app.graph.convertToSubgraph(new Set([node]))
  const inner = subgraph.nodes.find(n => n.type === 'LatentSyncFindFaces')
  const slot = inner.inputs.findIndex(i => i.name === 'face')
  subgraph.inputNode.emptySlot.connect(inner.inputs[slot], inner)
  const written = setFace(inner, 'left')
  const widget = outside.widgets.find(w => w.name === 'face')
  const told = [written, widget?.value ?? null, choiceOf(inner).text]
  app.graph.remove(outside)
  return told
}"""


def test_a_face_that_a_subgraph_shows_outside_is_written_there(stage: Stage) -> None:
    assert stage.page.evaluate(PROMOTED, PACK) == [True, "left", "left"]


IDS = """async pack => {
  const { nodeOf } = await import(`/extensions/${pack}/js/nodes.js`)
  const node = LiteGraph.createNode('LatentSyncFindFaces')
  app.graph.add(node)
  const { subgraph, node: outside } = app.graph.convertToSubgraph(new Set([node]))
  const inner = subgraph.nodes.find(n => n.type === 'LatentSyncFindFaces')
  const ids = [`${outside.id}:${inner.id}`, `${outside.id}:${inner.id}.0.0.2`, `${subgraph.id}:${inner.id}`]
  const found = ids.map(id => nodeOf(id) === inner)
  app.graph.remove(outside)
  return [...found, nodeOf('4.0.0.2')?.type, nodeOf(4)?.type, nodeOf('4:1'), nodeOf('99'), nodeOf(null)]
}"""


def test_a_node_is_found_by_all_kinds_of_ids(stage: Stage) -> None:
    find = "LatentSyncFindFaces"
    assert stage.page.evaluate(IDS, PACK) == [True, True, True, find, find, None, None, None]


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
    before = stage.sizes()
    assert stage.widget(VIDEO, "steps") < 500, "the workflow of a test that ended long ago"
    stage.run()
    stage.look()
    check_results(stage)
    check_sizes(stage)
    grown = {node: size for node, size in stage.sizes().items() if int(node) in PANELS and size != before[node]}
    assert not grown, "the room was there before"


def check_results(stage: Stage) -> None:
    panel = stage.page.locator(".latentsync-score")
    panel.locator("svg").nth(1).wait_for()
    stage.page.locator(".latentsync-panel .latentsync-face").nth(1).wait_for()
    assert panel.locator("header strong").text_content()
    mouth = panel.locator(".latentsync-mouth").first.get_attribute("d") or ""
    assert mouth.count("M") + mouth.count("L") >= 40, "one point for every frame"
    assert panel.locator("svg title").count() == 2
    stage.look(VIDEO)
    outer, _ = stage.boxes(VIDEO, "compare")
    scale = stage.page.evaluate("app.canvas.ds.scale")
    for shown in stage.page.locator(".latentsync-compare video").all():
        box = shown.bounding_box() or {}
        assert box["width"] / scale >= outer.width - 60
        assert abs(box["width"] / box["height"] - shown.evaluate("v => v.videoWidth / v.videoHeight")) < 0.05
    stage.look(SCORE)
    for chart, height in zip(panel.locator("svg").all(), (120, 60), strict=True):
        assert (chart.bounding_box() or {})["height"] / stage.page.evaluate("app.canvas.ds.scale") >= height
    for node in PANELS:
        assert stage.added(node) == (False, False)


def test_a_selected_node_keeps_its_panel(stage: Stage) -> None:
    """Front end 1.58 lists a selected node's widgets in its side bar, which once took ours along."""
    page = stage.page
    before = [stage.boxes(VIDEO, name) for name in ("compare", "pick_face")]
    page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", VIDEO)
    page.wait_for_timeout(600)
    assert page.get_by_text("pick_face", exact=True).count() == 0
    stage.look(VIDEO)
    after = [stage.boxes(VIDEO, name) for name in ("compare", "pick_face")]
    for (_, one), (_, other) in zip(before, after, strict=True):
        assert abs(one.width - other.width) <= 1
        assert abs(one.height - other.height) <= 1


def test_cached_nodes_show_their_results_after_a_reload(stage: Stage) -> None:
    """Video stands for other nodes: that they are cached, no server says."""
    faces = {node: stage.widget(node, "face") for node in PANELS}
    stage.begin()
    assert stage.page.locator(".latentsync-compare").count() == 0
    for node, face in faces.items():
        stage.change(node, "face", face)
    stage.run()
    check_results(stage)
    said = dict(stage.last_run()["status"]["messages"])
    assert {str(FINDER), str(VIDEO), str(SCORE)} <= set(said["execution_cached"]["nodes"]), "nothing ran"


OUTPUTS = """([id, outputs]) => {
  const node = app.graph.getNodeById(id), panel = node.widgets.find(w => w.name === 'compare').element
  panel.replaceChildren()
  app.nodeOutputs = { [`${id}.0.0.2`]: outputs }
  return panel.querySelectorAll('video').length
}"""


def test_results_of_an_opened_run_find_their_node(stage: Stage) -> None:
    """A run that is opened from the queue has its outputs under the ids of the nodes that a node stands for."""
    runs = sorted(stage.server.get("/history").values(), key=lambda run: -run["prompt"][0])
    shown = next(one for run in runs for one in run["outputs"].values() if "latentsync_compare" in one)
    assert stage.page.evaluate(OUTPUTS, [VIDEO, shown]) == 2


def test_the_charts_tell_their_values(stage: Stage) -> None:
    stage.look(SCORE)
    chart = stage.page.get_by_role("slider", name="Agreement of mouth and audio")
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
    stage.page.wait_for_function(f"{videos}.every(v => v.readyState >= 2 && v.videoWidth > 0)")
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
    dialog = dialog_of(stage, VIDEO)
    for place in ("h2", "p", "button", "input[type=number]"):
        assert dialog.locator(place).first.evaluate(CONTRAST) >= 4.5, place
    stage.page.keyboard.press("Escape")


def test_progress_and_preview_go_when_a_run_ends(stage: Stage) -> None:
    size = stage.sizes()[str(VIDEO)]
    stage.look(VIDEO)
    stage.change(VIDEO, "seed", stage.widget(VIDEO, "seed") + 1)  # nothing that is cached
    stage.change(VIDEO, "steps", 500)  # long enough for a browser without a graphics card, and stopped when it was seen
    before = stage.press_run()
    while stage.added(VIDEO) != (True, True):
        assert not set(stage.server.get("/history")) - before, "ended before a preview came"
        stage.page.wait_for_timeout(100)
    assert not stage.page.locator(".latentsync-compare").is_visible(), "the preview has its place"
    assert stage.sizes()[str(VIDEO)][1] <= size[1] + 60, "a line of text more"
    stage.server.interrupt()
    assert stage.await_end(before)["status"]["status_str"] == "error"
    assert stage.added(VIDEO) == (False, False)
    assert stage.page.locator(".latentsync-compare").is_visible()
    assert stage.sizes()[str(VIDEO)] == size
    check_sizes(stage)
    stage.change(VIDEO, "steps", 1)


FAILED = """async id => {
  const { api } = await import('/scripts/api.js')
  const tell = (type, detail) => api.dispatchEvent(new CustomEvent(type, { detail }))
  tell('executing', id)
  tell('progress_text', { nodeId: id, text: 'finding faces: 3 of 9' })
  const text = () => app.graph.getNodeById(id).widgets.some(w => w.name === '$$node-text-preview')
  if (!text()) throw new Error('no line of progress')
  const about = { prompt_id: 'p', node_id: id, node_type: 'LatentSyncVideo', executed: [] }
  const told = { exception_type: 'X', exception_message: 'x', traceback: [], current_inputs: {}, current_outputs: {} }
  tell('execution_error', { ...about, ...told })
}"""


def test_progress_goes_after_an_error(stage: Stage) -> None:
    stage.page.evaluate(FAILED, str(VIDEO))
    assert stage.added(VIDEO) == (False, False)
    stage.page.keyboard.press("Escape")  # the front end's own words about it


def test_the_help_page_opens_with_its_picture(stage: Stage) -> None:
    stage.look(FINDER)
    stage.page.evaluate("id => app.canvas.selectNode(app.graph.getNodeById(id))", FINDER)
    stage.page.evaluate("() => { app.canvas.ds.offset[1] += 80; app.canvas.setDirty(true, true) }")  # for its toolbox
    stage.page.get_by_test_id("info-button").click()
    page = stage.page.locator(".node-help-content")
    page.get_by_role("heading", name="LatentSync: Find Faces").wait_for()
    stage.page.wait_for_function("document.querySelector('.node-help-content img')?.naturalWidth > 100")
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
