"""What ComfyUI tells the browser of our nodes: every word, range and default."""

import pytest

from latentsync.errors import UserError
from latentsync.settings import ENCODERS, FITS, MODES, NO_FACES, SILENCES, SOLVERS, WATERMARKS, Settings

from .table import NODES

DEFAULTS = Settings()
SETTINGS = (
    *("steps", "guidance", "seed", "solver", "fit", "face", "window_batch", "still_fps", "watermark"),
    *("silence", "spans", "points", "no_face", "mode", "encoder"),
)
COMBOS = {
    "fit": FITS,
    "solver": SOLVERS,
    "watermark": WATERMARKS,
    "silence": SILENCES,
    "no_face": NO_FACES,
    "mode": MODES,
    "encoder": ENCODERS,
    "save_to": ("temp", "output"),
}
NUMBERS = ("INT", "FLOAT")
GROWING = "COMFY_DYNAMICCOMBO_V3"
"""A choice that brings its own inputs; see host.growing."""


@pytest.fixture(scope="module")
def info(comfy):
    return {name: said for name, said in comfy.object_info().items() if name.startswith("LatentSync")}


def inputs(said):
    """(name, type or list of choices, options) of every input, in the order they are shown."""
    for part in ("required", "optional"):
        for name, (kind, *options) in said["input"].get(part, {}).items():
            yield name, kind, options[0] if options else {}
            if kind == GROWING:
                yield from inputs({"input": options[0]["options"][-1]["inputs"]})


def choices(kind, options):
    return list(kind) if isinstance(kind, list) else options.get("options", [])


def test_exactly_these(info, comfy):
    assert sorted(info) == sorted(NODES), comfy.log[-3000:]


@pytest.mark.parametrize("name", NODES)
def test_every_word_is_there(info, name):
    said = info[name]
    assert said["display_name"] == f"LatentSync: {NODES[name].title}"
    assert said["category"] == "LatentSync"
    assert len(said["description"]) > 30
    assert said["description"].rstrip().endswith(".")
    silent = [key for key, _, options in inputs(said) if len((options.get("tooltip") or "").split()) < 3]
    assert not silent, "inputs without a tooltip"
    tips = said["output_tooltips"]
    assert len(tips) == len(said["output"])
    assert all(tip and len(tip.split()) >= 3 for tip in tips), "outputs without a tooltip"


@pytest.mark.parametrize("name", NODES)
def test_sockets_are_the_promised_ones(info, name):
    said, promise = info[name], NODES[name]
    assert list(said["output"]) == promise.outputs.split()
    wanted = promise.inputs.split()
    optional = set(said["input"].get("optional", {}))
    assert plain({*said["input"]["required"], *optional}) == {key.strip("[]") for key in wanted}
    assert plain(optional) == {key.strip("[]") for key in wanted if key[0] == "["}


def plain(keys):
    """Without those that belong to a count, "speakers.face_1"."""
    return {key for key in keys if "." not in key}


def test_a_set_of_inputs_for_each_speaker(info):
    """By the same names on every ComfyUI, so that a workflow in API form runs on all."""
    said = info["LatentSyncSpeakers"]["input"]
    kind, options = said["required"]["speakers"][0], said["required"]["speakers"][1]
    counts = [str(count) for count in range(2, 7)]
    if kind == GROWING:
        sets = {option["key"]: [*option["inputs"]["required"]] for option in options["options"]}
        assert not any(option["inputs"].get("optional") for option in options["options"])
    else:
        assert choices(kind, options) == counts
        named = [key.partition(".")[2] for part in said.values() for key in part if key.startswith("speakers.")]
        assert [key for key in said["required"] if "." in key] == [f"speakers.{key}" for key in named[:6]]
        sets = {count: named[: 3 * int(count)] for count in counts}
    assert sets == {
        count: [f"{key}_{n}" for n in range(1, int(count) + 1) for key in ("voice", "face", "start")]
        for count in counts
    }


@pytest.mark.parametrize("name", NODES)
def test_numbers_have_ranges_and_widgets_have_defaults(info, name):
    for key, kind, options in inputs(info[name]):
        if kind in NUMBERS:
            assert options.keys() >= {"min", "max", "step", "default"}, key
            assert options["min"] <= options["default"] <= options["max"], key
            assert options["step"] > 0
        if choices(kind, options):
            assert options.get("default", choices(kind, options)[0]) in choices(kind, options), key
        if kind == "STRING":
            assert "default" in options, key


@pytest.mark.parametrize("key", SETTINGS)
def test_defaults_are_those_of_the_engine(info, key):
    found = {name: o["default"] for name, said in info.items() for k, _, o in inputs(said) if k == key}
    assert found, f"no node has {key}"
    assert set(found.values()) == {getattr(DEFAULTS, key)}, found


@pytest.mark.parametrize("key", COMBOS)
def test_choices_are_those_of_the_engine(info, key):
    found = {name: tuple(choices(kind, o)) for name, said in info.items() for k, kind, o in inputs(said) if k == key}
    assert found
    for name, offered in found.items():
        drafts = "save_to" in info[name]["input"]["required"]  # a mode of nodes that decode
        assert offered == tuple(one for one in COMBOS[key] if drafts or one != "draft"), name


@pytest.mark.parametrize("key", ["steps", "guidance", "seed", "window_batch", "still_fps"])
def test_ranges_are_those_of_the_engine(info, key):
    """Nothing is offered that the engine refuses, and nothing withheld that it takes."""
    for said in info.values():
        for _, kind, options in (one for one in inputs(said) if one[0] == key):
            step = 1 if kind == "INT" else options["step"]
            for value in (options["min"], options["max"]):
                assert getattr(Settings(**{key: value}), key) == value
            for value in (options["min"] - step, options["max"] + step):
                with pytest.raises(UserError):
                    Settings(**{key: value})


def test_a_new_seed_for_every_run_on_demand(info):
    for name, said in info.items():
        for _, _, options in (one for one in inputs(said) if one[0] == "seed"):
            assert options.get("control_after_generate"), name


def test_frame_rates(info):
    found = [(kind, o) for said in info.values() for key, kind, o in inputs(said) if key == "fps"]
    assert len(found) == 5
    for kind, options in found:
        assert kind == "FLOAT"
        assert options["default"] == 25
        assert 0 < options["min"] <= 1
        assert options["max"] >= 120


def test_nano_is_always_in_the_list(info, comfy):
    for name in ("LatentSyncLoader", "LatentSyncLipSync", "LatentSyncVideo", "LatentSyncSpeakers"):
        kind, options = next((kind, o) for key, kind, o in inputs(info[name]) if key == "checkpoint")
        assert choices(kind, options)[:3] == ["nano", "1.5", "1.6"]


def test_files_of_the_model_folder_are_listed(info, comfy):
    """As they come and go, and only files that can be weights."""
    folder = comfy.models / "latentsync"
    folder.mkdir(exist_ok=True)
    names = {"mine.safetensors": True, "theirs.pt": True, "notes.txt": False}
    for name in names:
        (folder / name).touch()
    try:
        said = comfy.get("/object_info/LatentSyncLoader")["LatentSyncLoader"]
        kind, options = next((kind, o) for key, kind, o in inputs(said) if key == "checkpoint")
        assert {name: name in choices(kind, options) for name in names} == names
    finally:
        for name in names:
            (folder / name).unlink()


def test_which_nodes_run_on_their_own(info):
    outputs = {name for name, said in info.items() if said["output_node"]}
    assert outputs >= {"LatentSyncDownload", "LatentSyncScore"}
    assert not outputs & {"LatentSyncLoader", "LatentSyncSampler", "LatentSyncCondition", "LatentSyncComposite"}


def test_none_is_experimental_or_deprecated(info):
    marked = {name for name, said in info.items() if said.get("experimental") or said.get("deprecated")}
    assert not marked
