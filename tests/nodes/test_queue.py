"""`latentsync queue` and its client against the real ComfyUI; every command of docs/queue.md."""

import asyncio
import itertools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.comfy_client import inputs as widgets
from latentsync.comfy_client.client import ComfyClient
from latentsync.comfy_client.events import RunFailedError
from latentsync.comfy_client.prompt import locate, put, read
from latentsync.errors import UserError

from .clips import VOICE, frames_of, portrait
from .graphs import Graph

ROOT = Path(__file__).resolve().parents[2]
DOC = (ROOT / "docs" / "queue.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```", DOC, re.MULTILINE | re.DOTALL)


def call(comfy, workflow, *words):
    done = CliRunner().invoke(cli.app, ["queue", str(workflow), *map(str, words), "--server", comfy.url])
    return done.exit_code, done.stdout.splitlines(), done.stderr


def write(path, graph, **titles):
    prompt = {name: node | {"_meta": {"title": titles.get(name, name)}} for name, node in graph.prompt.items()}
    path.write_text(json.dumps(prompt), encoding="utf-8")
    return path


def blurs(count, color, **titles):
    """Work that takes a while on any processor and can be interrupted between its nodes."""
    g = Graph()
    image = g.node("EmptyImage", "start", width=700, height=700, batch_size=4, color=color)
    for number in range(count):
        image = g.node("ImageBlur", f"blur{number}", image=image, blur_radius=7, sigma=1 + number / 100)
    g.node("PreviewImage", "end", images=image)
    return g


@pytest.fixture
def copying(tmp_path):
    """A video, a sound, a picture and a text, each from a file to a file."""
    g = Graph()
    clip = g.node("LoadVideo", "clip", file="x")
    g.node("SaveVideo", "film", video=clip, filename_prefix="video/film", format="auto", codec="auto")
    g.node("SaveAudio", "sound", audio=g.node("LoadAudio", "voice", audio="x"), filename_prefix="audio/sound")
    g.node("SaveImage", "dark", images=g.node("ImageInvert", image=g.node("LoadImage", "bright", image="x")),
           filename_prefix="dark")  # fmt: skip
    g.node("PreviewAny", "words", source=g.node("PrimitiveString", "say", value=""))
    return write(tmp_path / "copying.json", g, clip="The clip. In color")


def samples(path):
    with av.open(path) as file:
        return np.concatenate([frame.to_ndarray().reshape(-1) for frame in file.decode(audio=0)])


def test_files_go_there_and_back(comfy, copying, tmp_path):
    clip, picture, out = portrait(tmp_path / 'ünï "1".mp4', 5), tmp_path / "p.png", tmp_path / "out"
    Image.new("RGB", (8, 6), (255, 100, 0)).save(picture)
    words = [
        "-i",
        f"The clip. In color.file={clip}",
        "-i",
        f"LoadAudio.audio={VOICE}",
        "-i",
        f"bright.image={picture}",
    ]
    words += ["--set", "say.value=1.50", "-o", out]
    code, paths, said = call(comfy, copying, *words, "--json", tmp_path / "report.json")
    assert code == 0, said
    names = {Path(path).parent.name + "/" + re.sub(r"\d{5}_?", "", Path(path).name) for path in paths}
    assert names == {"out/film_.mp4", "out/sound_.flac", "out/dark_.png", "out/words.txt"}
    by_suffix = {Path(path).suffix: path for path in paths}
    assert len(frames_of(Path(by_suffix[".mp4"]))) == 5
    assert np.array_equal(samples(by_suffix[".flac"]), samples(VOICE))
    assert Image.open(by_suffix[".png"]).getpixel((3, 3)) == (0, 155, 255)
    assert Path(by_suffix[".txt"]).read_text(encoding="utf-8") == "1.50\n"
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["uploads"][str(clip)] == "latentsync/ünï _1_.mp4"
    assert report["values"]["words"] == {"text": ["1.50"]}
    assert {node["id"] for node in report["nodes"] if node["elapsed_s"] > 0} >= {"film"}
    code, again, said = call(comfy, copying, *words)
    assert code == 0
    assert "9 of 9 nodes are cached" in said
    assert len({*paths, *again}) == 8, "nothing is overwritten"
    assert sorted(map(str, out.iterdir())) == sorted([*paths, *again])


def test_an_upload_replaces_nobodys_file(comfy, tmp_path):
    path, own = tmp_path / "same.txt", comfy.input / "latentsync" / "same.txt"
    path.write_text("first", encoding="utf-8")

    async def upload():
        async with ComfyClient(comfy.url) as client:
            return await client.upload(path)

    names = [asyncio.run(upload()), asyncio.run(upload())]
    path.write_text("second", encoding="utf-8")
    names.append(asyncio.run(upload()))
    assert names == ["latentsync/same.txt", "latentsync/same.txt", "latentsync/same (1).txt"]
    assert own.read_text(encoding="utf-8") == "first"
    assert (comfy.input / names[2]).read_text(encoding="utf-8") == "second"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), 'Invalid video file: x; send one with --input "The clip. In color.file=FILE"'),
        (("--set", "film.format=avi"), 'format of film is "avi"; it must be one of auto, mp4'),
        (("--set", "film.formta=mp4"), "Did you mean format?"),
        (("--set", "SaveVideo.video=x"), "is a socket for VIDEO, wired to The clip. In color; it takes no value"),
        (("--set", "Film2.format=mp4"), "There is no node Film2 in the workflow"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(comfy, copying, tmp_path, words, said):
    code, paths, errors = call(comfy, copying, *words, "-o", tmp_path / "out")
    assert (code, paths) == (2, [])
    assert said in errors
    assert not (tmp_path / "out").exists()
    for _ in range(50):  # what was withdrawn while it ran ends in its own time
        if comfy.idle():
            break
        time.sleep(0.1)
    assert comfy.idle()


def test_our_own_nodes_are_checked_by_their_own_ranges(comfy):
    prompt, info = read(ROOT / "example_workflows" / "api" / "lip_sync_a_video.json"), comfy.object_info()
    for value, said in (("-1", "whole number from 0 to"), ("2.5", "whole number")):
        with pytest.raises(UserError, match=said):
            put(prompt, locate(prompt, info, "LatentSync: Lip Sync.steps"), value)
    put(prompt, locate(prompt, info, "LatentSyncLipSync.checkpoint"), "1.5")
    assert prompt["4"]["inputs"]["checkpoint"] == "1.5"


def everything(inputs, prefix=""):
    """Every input that there can be, those inside others too."""
    for one in widgets.declared(inputs, prefix):
        yield one
        for option in one.rules.get("options", []) if one.kind == widgets.DYNAMIC else []:
            yield from everything(option["inputs"], one.name + ".")
        if one.kind == widgets.GROWING:
            yield from list(widgets.present({"required": {one.name: [one.kind, one.rules]}}, {}))[1:3]


def test_every_input_of_this_comfyui_takes_its_own_default(comfy):
    """As data and as text; and no kind is a widget that we do not know."""
    wrong, count, kinds = [], 0, set()
    for kind, said in comfy.object_info().items():
        for field in (one.field("1", kind) for one in everything(said["input"])):
            start = widgets.default(field)
            if field.is_socket or not widgets.can_be_set(field) or start is None:
                continue
            count += 1
            kinds |= set(field.kind.split(",")) if field.kind not in ("", "*") else set()
            text = start if isinstance(start, str) else json.dumps(start)
            if not widgets.fits(field, start) or widgets.fit(field, start) != widgets.fit(field, text):
                wrong.append(f"{kind}.{field.name}: {start}")
    assert wrong == []
    assert count > 1000
    known = widgets.TYPED | set(widgets.DRAWN) | widgets.FILES | {widgets.DYNAMIC, "ARRAY"}
    assert {kind for kind in kinds - known if not kind.startswith("FILE_3D")} <= {"ODD"}


@pytest.mark.parametrize(
    ("settings", "suffix", "codec"),
    [
        ({"format": "mp4", "codec": "h264"}, ".mp4", "h264"),
        ({"format": "webm", "codec": "av1", "encoding": "re-encode", "crf": "50"}, ".webm", "av1"),
    ],
)
def test_a_choice_and_what_it_brings_along_arrive(comfy, copying, tmp_path, settings, suffix, codec):
    """The same words for a ComfyUI whose codec is an input of its own and for one whose format has it inside."""
    has = comfy.object_info()["SaveVideo"]["input"]["required"]["format"][0]
    if suffix == ".webm" and has != widgets.DYNAMIC:
        pytest.skip("This ComfyUI writes mp4 alone.")
    words = [word for name, value in settings.items() for word in ("--set", f"film.{name}={value}")]
    words += ["-i", f"clip.file={portrait(tmp_path / 'clip.mp4', 5)}", "-i", f"LoadAudio.audio={VOICE}"]
    Image.new("RGB", (8, 6)).save(tmp_path / "p.png")
    words += ["-i", f"bright.image={tmp_path / 'p.png'}", "-o", tmp_path / "out"]
    code, paths, said = call(comfy, copying, *words)
    assert code == 0, said
    (film,) = [path for path in map(Path, paths) if "film" in path.name]
    with av.open(film) as file:
        assert (film.suffix, file.streams.video[0].codec_context.name.removeprefix("lib")) in {
            (suffix, codec),
            (suffix, "dav1d"),
        }


def test_a_failing_node_is_named(comfy, tmp_path):
    g = Graph()
    image = g.node("EmptyImage", "start", width=32, height=24, batch_size=1, color=0)
    g.node("PreviewImage", images=g.node("ImageScaleBy", "small", image=image, upscale_method="bicubic", scale_by=0.01))
    code, _, said = call(comfy, write(tmp_path / "w.json", g, small="Too small"))
    assert code == 1
    assert re.search(r"^error: Too small \(node small\): \w+: .+$", said, re.MULTILINE)


async def cancel_when(url, graph, stop):
    async with ComfyClient(url) as client:
        task = asyncio.ensure_future(client.run(graph.prompt, on_event=lambda event: stop(event) and task.cancel()))
        with pytest.raises(asyncio.CancelledError):
            await task


def kinds(comfy):
    """Ids of nodes that run and that wait."""
    queue = comfy.get("/queue")
    return [[set(item[2]) for item in queue[part]] for part in ("queue_running", "queue_pending")]


def test_cancelling_a_waiting_prompt_leaves_the_running_one(comfy):
    other, mine = blurs(60, 1), blurs(2, 2)
    comfy.post("/prompt", {"prompt": other.prompt})
    try:
        asyncio.run(cancel_when(comfy.url, mine, lambda event: event.kind == "queued"))
        assert kinds(comfy) == [[set(other.prompt)], []]
        with pytest.raises(RunFailedError, match="longer than"):
            asyncio.run(running(comfy.url, mine, timeout=1.5))
        assert kinds(comfy) == [[set(other.prompt)], []]
    finally:
        comfy.post("/queue", {"clear": True})
        comfy.interrupt()


async def running(url, graph, **rest):
    async with ComfyClient(url) as client:
        return await client.run(graph.prompt, **rest)


def test_cancelling_a_running_prompt_interrupts_it(comfy):
    asyncio.run(cancel_when(comfy.url, blurs(60, 3), lambda event: event.node == "blur1"))
    result = asyncio.run(running(comfy.url, blurs(1, 4)))
    assert result.timings["blur0"] > 0
    last = list(comfy.get("/history").values())[-2]
    assert [event for event, _ in last["status"]["messages"]][-1] == "execution_interrupted"


def test_somebody_elses_interruption_is_told(comfy):
    def stop(event):
        if event.node == "blur1":
            comfy.interrupt()

    with pytest.raises(RunFailedError, match="interrupted on the server, at ImageBlur"):
        asyncio.run(running(comfy.url, blurs(60, 5), on_event=stop))


class Wire:
    """A line to the server that can be cut: everything through it is dropped, new connections go through."""

    def __init__(self, port):
        self.port, self.ends = port, []
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                near = self.door.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            self.ends += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    @staticmethod
    def _pass(one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def cut(self):
        ends, self.ends = self.ends, []
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


def test_a_line_that_breaks_is_mended(comfy):
    wire, events = Wire(comfy.port), []

    def on_event(event):
        events.append(event.kind)
        if event.node in ("blur0", "blur4"):
            wire.cut()

    result = asyncio.run(running(wire.url, blurs(8, 6), on_event=on_event))
    wire.door.close()
    assert events.count("lost") == events.count("found") >= 1
    assert [file.type for file in result.files] == ["temp"] * 4


def commands():
    """Every `latentsync queue …` of the page, as words."""
    text = "\n".join(BLOCKS).replace("\\\n", " ")
    found = [line.strip() for line in text.splitlines() if line.strip().startswith("latentsync queue")]
    return [shlex.split(line.split("||")[0]) for line in found]


def test_every_command_of_the_page_names_things_that_exist(comfy):
    info, places = comfy.object_info(), 0
    assert len(commands()) >= 8
    for words in commands():
        prompt = read(ROOT / words[2])
        for option, word in itertools.pairwise(words):
            if option in ("-i", "--input", "--set"):
                place, _, value = word.partition("=")
                put(prompt, locate(prompt, info, place), value)
                places += 1
    assert places > 20


@pytest.fixture
def desk(comfy, tmp_path):
    """A folder with all that the page speaks of, and a shell that finds our command and this server."""
    portrait(tmp_path / "clip.mp4", 30)
    subprocess.run(["ffmpeg", "-v", "error", "-i", str(VOICE), "-t", "1.2", str(tmp_path / "speech.wav")], check=True)
    (tmp_path / "example_workflows").symlink_to(ROOT / "example_workflows")
    command = tmp_path / "latentsync"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m latentsync "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    more = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "LATENTSYNC_COMFYUI": comfy.url}

    def shell(script):
        quick = re.sub(r"steps( ?= ?)\d+", r"steps\g<1>1", script).replace("http://127.0.0.1:8188", comfy.url)
        run = ["bash", "-euo", "pipefail", "-c", quick]
        done = subprocess.run(run, cwd=tmp_path, env=os.environ | more, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return shell


needs_tools = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "curl", "jq", "ffmpeg")),
    reason="needs bash, curl, jq and ffmpeg",
)


@needs_tools
def test_the_first_command_and_the_same_with_curl(comfy, desk, tmp_path):
    path = tmp_path / desk(BLOCKS[0]).strip()
    assert path.parent == tmp_path / "results"
    assert frames_of(path).shape == (30, 280, 320, 3)
    said = desk(next(block for block in BLOCKS if "upload/image" in block))
    assert said.splitlines()[0] == "true"
    (fetched,) = tmp_path.glob("LatentSync_*.mp4")
    assert np.array_equal(frames_of(fetched), frames_of(path))
    assert comfy.idle()


@needs_tools
def test_scoring_from_a_shell(desk, tmp_path):
    line = next(line for line in "\n".join(BLOCKS).splitlines() if "--json score.json" in line)
    names = [Path(path).name for path in desk(line).split("\n") if path]
    assert "Chart.png" in names
    values = json.loads((tmp_path / "score.json").read_text(encoding="utf-8"))["values"]
    (score,) = next(iter(values.values()))["latentsync_score"]
    assert {"confidence", "offset", "correlation"} <= set(score)
