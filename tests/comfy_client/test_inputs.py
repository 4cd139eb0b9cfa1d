"""Every kind of input that ComfyUI 0.3.60 to 0.33 declares: which values it takes, and what else says so."""

import itertools
import json

import pytest

from latentsync.comfy_client.inputs import BROWSER, DRAWN, TYPED, default, describe, fit, fits, present
from latentsync.comfy_client.prompt import AbsentError, locate, put, put_all, read, settable, shown_value
from latentsync.errors import UserError

BOX = {"x": 0, "y": 0, "width": 512, "height": 512}
DEPTH = ["INT", {"default": 8, "min": 8, "max": 10}]


def combo(**options):
    return ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": key, "inputs": inside} for key, inside in options.items()]}]


def of(optional=False, **inputs):
    return {"required": {}, "optional": inputs} if optional else {"required": inputs}


QUALITY = combo(auto=of(), **{"re-encode": of(crf=["FLOAT", {"default": 23.0, "min": 0.0, "max": 51.0}])})
SOME = combo(auto=of(), h264=of(optional=True, encoding=QUALITY), av1=of(optional=True, encoding=QUALITY))
FEW = combo(auto=of(), av1=of(optional=True, encoding=QUALITY))
OLD_CODEC = ["COMFY_DYNAMICCOMBO_V3", SOME[1] | {"hidden": True}]
INFO = {
    "Save": {
        "input": {
            "required": {
                "video": ["VIDEO", {}],
                "format": combo(auto=of(codec=SOME), mp4=of(codec=SOME), webm=of(codec=FEW),
                                png=of(depth=DEPTH, alpha=["MASK", {}])),
            },
            "optional": {"codec": OLD_CODEC},
        }
    },
    "Row": {
        "input": {
            "required": {
                "images": ["COMFY_AUTOGROW_V3", {"template": {"input": of(image=["IMAGE", {}]), "prefix": "image",
                                                              "min": 1, "max": 50}}],
                "values": ["COMFY_AUTOGROW_V3", {"template": {"input": of(value=["FLOAT,INT", {}]),
                                                              "names": ["a", "b"], "min": 1}}],
                "slot": ["COMFY_DYNAMICSLOT_V3", {"slotType": "IMAGE", "inputs": of(strength=["FLOAT", {}])}],
            }
        }
    },
}  # fmt: skip


WANTED = {"format": "mp4", "format.codec": "av1", "format.codec.encoding": "re-encode", "format.codec.encoding.crf": 30}


def prompt(kind="Save", **inputs):
    return read({"1": {"class_type": kind, "inputs": {name.replace("__", "."): v for name, v in inputs.items()}}})


def set_all(work, *pairs):
    put_all(work, INFO, {f"1.{name}": value for name, value in pairs})
    return work["1"]["inputs"]


# A choice and what it brings along


def test_a_choice_brings_its_inputs_along_and_takes_the_others_away():
    work = prompt(format="auto", format__codec="h264", format__codec__encoding="re-encode",
                  format__codec__encoding__crf=20.0)  # fmt: skip
    assert set_all(work, ("format", "mp4")) == WANTED | {"format.codec": "h264", "format.codec.encoding.crf": 20.0}
    assert set_all(work, ("format", "webm")) == {"format": "webm", "format.codec": "auto"}
    assert set_all(work, ("format", "png")) == {"format": "png", "format.depth": 8}
    assert set_all(work, ("format.depth", "10")) == {"format": "png", "format.depth": 10}


@pytest.mark.parametrize("names", [list(WANTED), ["format", "codec", "encoding", "crf"]])
def test_the_order_of_the_settings_does_not_matter(names):
    pairs = list(zip(names, ["mp4", "av1", "re-encode", "30"], strict=True))
    for order in itertools.permutations(pairs):
        assert set_all(prompt(format="webm", format__codec="auto"), *order) == WANTED, order


def test_a_workflow_of_an_older_comfyui_keeps_its_choice():
    assert set_all(prompt(format="auto", codec="h264"), ("format", "mp4"))["format.codec"] == "h264"
    assert set_all(prompt(format="auto", codec="h264"), ("codec", "av1"))["format.codec"] == "av1"
    assert set_all(prompt(format="png", codec="h264"), ("codec", "av1")) == {"format": "png", "codec": "av1"}
    old = {"Save": {"input": {"required": {"format": [["auto", "mp4"]], "codec": ["COMBO", {"options": ["auto"]}]}}}}
    work = prompt(format="auto", codec="auto")
    put_all(work, old, {"1.format": "mp4", "1.codec": "auto"})
    assert work["1"]["inputs"] == {"format": "mp4", "codec": "auto"}


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("format", "avi")], 'format of Save is "avi"; it must be one of auto, mp4, webm, png.'),
        ([("format.codec", "x")], 'format.codec of Save is "x"; it must be one of auto, h264, av1.'),
        ([("codec", "h264"), ("format", "webm")], 'format.codec of Save is "h264"; it must be one of auto, av1.'),
        ([("format.depth", "8")], "format.depth of Save exists only when format is png; set that too."),
        ([("depth", "8")], "format.depth of Save exists only when format is png; set that too."),
        ([("format.codec.encoding", "auto")], "exists only when format.codec is h264 or av1; set that too."),
        ([("crf", "20")], "format.codec.encoding.crf of Save exists only when format.codec is h264 or av1 and"
                          " format.codec.encoding is re-encode; set that too."),
        ([("crf", "20"), ("codec", "av1")], "exists only when format.codec.encoding is re-encode; set that too."),
        ([("codec", "av1"), ("encoding", "re-encode"), ("crf", "99")],
         'format.codec.encoding.crf of Save is "99"; it must be a number from 0.0 to 51.0.'),
        ([("format", "png"), ("alpha", "x")], "format.alpha of Save is a socket for MASK; it takes no value."),
        ([("formt", "x")], "Save has no input formt; it has video, format, format.codec. Did you mean format?"),
    ],
)  # fmt: skip
def test_what_a_choice_does_not_have_is_refused_with_the_choices_that_do(pairs, said):
    with pytest.raises(UserError) as caught:
        set_all(prompt(format="auto", format__codec="auto"), *pairs)
    assert str(caught.value).endswith(said)


def test_a_choice_that_the_workflow_leaves_open_is_the_first():
    assert set_all(prompt(), ("codec", "h264")) == {"format.codec": "h264"}
    names = [field.name for field in settable(prompt(), INFO)]
    assert names == ["format", "format.codec"]


def test_rows_that_grow_and_sockets_with_more_behind_them():
    work = prompt("Row", images__image0=["2", 0])
    assert set_all(work, ("values.a", "1.5"))["values.a"] == 1.5
    for place, said in (
        ("images", "is a row of inputs; name one of them (images.image0, images.image1 to images.image49)"),
        ("values", "name one of them (values.a, values.b)"),
        ("images.image1", "is a socket for IMAGE; it takes no value"),
        ("images.image50", "it has images, images.image0, values, values.a, slot"),
        ("slot", "is a socket for IMAGE"),
        ("slot.strength", "it has images"),
    ):
        with pytest.raises(UserError) as caught:
            set_all(work, (place, "x"))
        assert said in str(caught.value)
    assert set_all(prompt("Row", slot=["2", 0]), ("slot.strength", "0.5"))["slot.strength"] == 0.5


def test_a_choice_may_have_rows_and_keeps_what_is_wired_there():
    info = {"Any": {"input": of(model=combo(a=INFO["Row"]["input"], b=INFO["Row"]["input"]))}}
    work = read({"1": {"class_type": "Any", "inputs": {"model": "a", "model.images.image0": ["2", 0]}}})
    put_all(work, info, {"1.model": "b"})
    assert work["1"]["inputs"] == {"model": "b", "model.images.image0": ["2", 0]}


# Kinds: what each takes and refuses. The rules are those of ComfyUI's own nodes, without their texts.

CURVE = {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"}
KINDS = [
    ("INT", {"default": 20, "min": 1, "max": 50}, ["1", 50, 7.0], ["0", "51", "1.5", "true", "x"], "a whole number"),
    ("FLOAT", {"default": 1.5, "min": 1.0}, ["1", 2.5], ["0.5", "true", "NaN", "x"], "a number from 1.0"),
    ("BOOLEAN", {"default": True}, ["true", False], ["1", "yes"], "true or false"),
    ("STRING", {"default": "", "multiline": True}, ["", "1", '"x"'], [], "text"),
    ("COMBO", {"options": ["a", "b"], "multiselect": False}, ["a"], ["c", '["a"]'], "one of a, b"),
    ("COMBO", {"options": ["a", "b"], "multiselect": True}, ["a", '["a", "b"]', "[]"], ["c", '["c"]'], "one of a, b"),
    ("COMBO", {"options": ["a"], "video_upload": True}, ["a", "b.mp4"], [], "a file"),
    ("COMBO", {"remote": {"route": "/x"}, "image_upload": True}, ["b.png"], [], "a file"),
    (["a", 1, True], {}, ["a", "1", "true"], ["b", "1.0"], "one of a, 1, True"),
    ("COLOR", {"default": "#ffffff", "socketless": True}, ["#00FF80"], ["red", "#fff", "#00ff8", "[]"], "a color"),
    ("COLORS", {"default": [], "socketless": False}, ['["#00ff80"]', "[]"], ["#00ff80", '["red"]'], "a list of colors"),
    ("BOUNDING_BOX", {"default": BOX, "socketless": True}, [json.dumps(BOX), BOX], ["1,2,3,4", '{"x": 1}',
     json.dumps(BOX | {"x": -1}), json.dumps(BOX | {"x": 0.5})], "a box"),
    ("BOUNDING_BOXES", {"default": []}, [json.dumps([BOX | {"metadata": {}}])], [json.dumps(BOX)], "a list of boxes"),
    ("CURVE", {"default": CURVE, "socketless": True}, [CURVE, "[[0, 0], [1, 0.5]]"],
     ["[]", "[[0]]", "[[0, 0], 1]", '{"points": []}', "linear"], "a curve"),
    ("RANGE", {"default": {"min": 0.0, "max": 1.0}, "value_min": 0, "value_max": 2, "socketless": True},
     ['{"min": 0, "max": 2}', '{"min": 0, "max": 1, "midpoint": 0.5}'],
     ['{"min": 0, "max": 3}', '{"min": 0}', "0-1", '{"min": 0, "max": 1, "midpoint": "x"}'], "a range"),
    ("COMPOSITOR", {"default": {}, "socketless": True}, ["{}", '{"layers": []}'], ["[]", "x"], "an object"),
    ("WEBCAM", {}, ["me.png"], [], "a file"),
    ("AUDIO_RECORD", {}, ["me.flac"], [], "a file"),
    ("FLOAT,INT", {"default": 25.0, "widgetType": "FLOAT", "min": 1.0}, ["24"], ["0", "x"], "a number from 1.0"),
    ("STRING,FILE_3D_GLB", {"default": "", "widgetType": "STRING"}, ["a.glb"], [], "text"),
    ("STRING", {"default": "", "widgetType": "PAINTER", "image_upload": True}, ["a.png"], [], "a file"),
    ("INT,FLOAT,STRING,BOOLEAN", {}, ["1", "x", "true"], [], "text or JSON"),
    ("FLOAT,INT,BOOLEAN", {}, ["1", "0.5"], [], "text or JSON"),
    ("*", {}, ["1", "x"], [], "text or JSON"),
    ("FLOAT", {"default": 0.0, "forceInput": True}, ["0.5"], ["x"], "a number"),
    ("SOMEBODYS_OWN", {"socketless": True}, ["x", '{"a": 1}'], [], "text or JSON"),
]  # fmt: skip


def field(kind, rules):
    (one,) = present({"required": {"it": [kind, rules]}}, {})
    return one.field("1", "Node")


@pytest.mark.parametrize(("kind", "rules", "good", "bad", "said"), KINDS, ids=lambda value: str(value)[:20])
def test_what_a_kind_takes(kind, rules, good, bad, said):
    own = field(kind, rules)
    assert not own.is_socket
    assert said in describe(own)
    assert "default" not in rules or fits(own, default(own))
    for value in good:
        info, work = {"Node": {"input": {"required": {"it": [kind, rules]}}}}, prompt("Node")
        put(work, locate(work, info, "1.it"), value)
        kept = work["1"]["inputs"]["it"]
        assert isinstance(kept, dict) == (isinstance(fit(own, value), list | dict))
        assert not isinstance(kept, list), "a list alone is a wire"
        assert put_all(prompt("Node"), info, {"1.it": shown_value(work, own)}), "what is shown can be set"
    for value in bad:
        with pytest.raises(UserError, match=r"^it of Node is .+; it must be .*\w"):
            fit(own, value)


SOCKETS = [
    ("IMAGE", {}), ("MASK", {"tooltip": "x"}), ("IMAGE,MASK", {}), ("LOAD3D_CAMERA", {"advanced": True}),
    ("LOAD3D_MODEL_INFO", {}), ("FLOATS", {"default": -1, "min": -1, "forceInput": True}),
    ("LOSS_MAP", {"default": {}}),
    ("BOUNDING_BOX", {"default": BOX, "socketless": True, "forceInput": True}),
    ("CURVE", {"default": CURVE, "socketless": True, "forceInput": True}), ("FACE_LANDMARKS", {}),
    ("COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "IMAGE,MASK"}}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "rules"), SOCKETS, ids=lambda value: str(value)[:20])
def test_what_is_a_socket(kind, rules):
    info, work = {"Node": {"input": {"required": {"it": [kind, rules]}}}}, prompt("Node")
    with pytest.raises(UserError, match=f"it of Node is a socket for {field(kind, rules).takes}; it takes no value"):
        put(work, locate(work, info, "1.it"), "x")
    assert settable(work, info) == []
    work["1"]["inputs"]["it"] = "some pack's own widget"
    if kind not in {"COMFY_MATCHTYPE_V3", *DRAWN}:
        put(work, locate(work, info, "1.it"), "x")


def test_words_for_sockets():
    assert field("IMAGE,MASK", {}).takes == field(*SOCKETS[-1]).takes == "IMAGE or MASK"
    assert field("COMFY_MATCHTYPE_V3", {"template": {"template_id": "t", "allowed_types": "*"}}).takes == "anything"


@pytest.mark.parametrize("kind", [*sorted(BROWSER), "COMFY_DYNAMICGROUP_V3", "COMFY_NOT_INVENTED_YET_V4"])
def test_what_only_the_browser_can_fill(kind):
    info, work = {"Node": {"input": {"required": {"it": [kind, {"socketless": True}]}}}}, prompt("Node", it={"a": 1})
    with pytest.raises(UserError, match=f"it of Node is {kind}, which cannot be set from here; set it in ComfyUI"):
        put(work, locate(work, info, "1.it"), "x")
    assert settable(work, info) == []


def test_the_kinds_are_told_apart():
    assert len(TYPED | set(DRAWN) | BROWSER) == len(TYPED) + len(DRAWN) + len(BROWSER)
    assert issubclass(AbsentError, UserError)
