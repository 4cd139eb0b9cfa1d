"""The two requests of the extension, on the real server."""

import json
import shutil
import urllib.error
import urllib.parse
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ..nodes.clips import frames_of
from ..nodes.graphs import Graph
from ..nodes.parts import loaded, save, streamed
from ..nodes.run import Run
from ..nodes.server import ComfyServer
from ..tiny import pan


def ask(server: ComfyServer, route: str, **query: object) -> bytes:
    return server.fetch(f"/latentsync/{route}?{urllib.parse.urlencode(query)}")


def refusal(server: ComfyServer, route: str, **query: object) -> str:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(server, route, **query)
    assert caught.value.code == 400
    return json.loads(caught.value.read())["error"]


def test_a_frame_is_that_frame(comfy: ComfyServer, portrait_clip: str) -> None:
    frames = frames_of(comfy.input / portrait_clip).astype(np.float32)
    for number in (0, 7, 19):
        with Image.open(BytesIO(ask(comfy, "frame", file=portrait_clip, frame=number))) as picture:
            distance = np.abs(frames - np.asarray(picture, np.float32)).mean((1, 2, 3))
        assert distance.argmin() == number
        assert distance[number] < 4


def test_faces_have_boxes_in_pixels_of_the_file(comfy: ComfyServer, tmp_path: Path) -> None:
    face = pan(1, 320, 280)[0]
    picture = cv2.resize(np.concatenate((face, face[:, ::-1]), 1), None, fx=4, fy=4)  # larger than what is shown
    path = tmp_path / "two.png"
    cv2.imwrite(str(path), picture[..., ::-1])
    name = comfy.put(path)
    found = json.loads(ask(comfy, "faces", file=name))
    assert (found["width"], found["height"], found["frames"]) == (2560, 1120, 1)
    (left, right) = found["faces"]
    assert (left["index"], right["index"]) == (0, 1)
    assert 0 < left["box"][0] < left["box"][2] < 1280 < right["box"][0] < right["box"][2] < 2560
    assert abs(left["box"][0] - (2560 - right["box"][2])) < 60, "mirror images"
    with Image.open(BytesIO(ask(comfy, "frame", file=name))) as shown:
        assert shown.size == (1280, 560)


def test_a_changed_file_is_read_again(comfy: ComfyServer, tmp_path: Path) -> None:
    path = tmp_path / "changing.png"
    for gray in (40, 200):
        Image.new("RGB", (64, 48), (gray, gray, gray)).save(path)
        shutil.copyfile(path, comfy.input / path.name)
        with Image.open(BytesIO(ask(comfy, "frame", file=path.name))) as shown:
            assert abs(int(np.asarray(shown).mean()) - gray) < 5
        assert json.loads(ask(comfy, "faces", file=path.name))["faces"] == []


def test_requests_that_cannot_be_answered_say_why(comfy: ComfyServer, portrait_clip: str, voice: str) -> None:
    assert "outside" in refusal(comfy, "frame", file="../../../../etc/passwd")
    assert "outside" in refusal(comfy, "faces", file="/etc/passwd")
    assert "outside" in refusal(comfy, "faces", file="../server.log [output]")
    assert "no file" in refusal(comfy, "faces", file="missing.mp4")
    assert "names no file" in refusal(comfy, "faces")
    assert "names no file" in refusal(comfy, "frame", file="a\0b.mp4")
    assert "from 0 to 19" in refusal(comfy, "faces", file=portrait_clip, frame=20)
    assert "from 0 to 19" in refusal(comfy, "frame", file=portrait_clip, frame=-1)
    assert "whole number" in refusal(comfy, "frame", file=portrait_clip, frame="x")
    assert "video" in refusal(comfy, "frame", file=voice)


def test_faces_are_shown_while_a_video_is_made(comfy: ComfyServer, portrait_clip: str) -> None:
    """A run and the face picker use one face finder; nobody waits for the other's end."""
    answers: list[bool] = []

    def watch(run: Run, event: str) -> None:
        if event == "progress" and not answers and run.texts and run.texts[-1].text.startswith("sampling"):
            assert len(json.loads(ask(comfy, "faces", file=portrait_clip, frame=3))["faces"]) == 1
            answers.append(comfy.idle())
            comfy.interrupt()

    g = Graph()
    source = loaded(g, portrait_clip)
    video = g.node("CreateVideo", images=source, fps=25.0)
    save(g, streamed(g, video, audio=source[1], steps=200))
    assert comfy.queue(g, watch=watch).status == "interrupted"
    assert answers == [False], "the answer came during the run"
