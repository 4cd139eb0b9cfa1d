"""`latentsync faces`: who is in a clip, by a picture that comes with the package."""

import json
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from latentsync import files
from latentsync.cli.faces import CAPTION, COLUMNS, TILE, draw
from latentsync.cli.main import app
from latentsync.face.track import Tracklet, Tracks, Trail, _track
from latentsync.media.source import ArraySource

from ..face.test_identity import SHAPE
from ..tiny import face_model, write_clip

ASSETS = Path(files.__file__).parent / "assets"


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
    monkeypatch.chdir(tmp_path)

    def command(*words):
        return CliRunner().invoke(app, ["faces", *map(str, words)])

    return command


@pytest.fixture(scope="module")
def portrait():
    picture = cv2.cvtColor(cv2.imread(str(ASSETS / "astronaut.jpg")), cv2.COLOR_BGR2RGB)
    return cv2.resize(picture, (256, 256 * picture.shape[0] // picture.shape[1]), interpolation=cv2.INTER_AREA)


def test_the_face_of_a_picture(run, tmp_path):
    done = run(ASSETS / "astronaut.jpg", "--out", "faces.png", "--json", "faces.json")
    assert done.exit_code == 0, done.output
    title, titles, row = done.stdout.splitlines()
    assert title.startswith("astronaut.jpg: 1 face in a picture of ")
    assert titles.split() == ["face", "height", "at"]
    facts = json.loads((tmp_path / "faces.json").read_text(encoding="utf-8"))
    (face,) = facts["faces"]
    assert (face["face"], face["share"], facts["auto"]) == (0, 1, 0)
    assert row.split()[:3] == ["0", f"{face['height']:.0f}", "px"]
    drawn, given = cv2.imread("faces.png"), cv2.imread(str(ASSETS / "astronaut.jpg"))
    assert drawn.shape == given.shape
    x, y = (round(value) for value in face["at"])
    assert np.abs(drawn.astype(int) - given).max(2)[y - 200 : y, x - 200 : x + 200].max() > 100


def test_a_clip_of_two_shots_says_when_each_face_is_seen(run, portrait, tmp_path):
    empty = np.full_like(portrait, 90)
    film = np.stack([portrait] * 12 + [empty] * 8)
    write_clip(tmp_path / "clip.mp4", film, Fraction(10))
    done = run("clip.mp4", "--json", "-")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["frames"], facts["cuts"]) == (20, [12])
    assert [(face["seen"], face["frames"], face["share"]) for face in facts["faces"]] == [([[0, 1.2]], 12, 0.6)]
    assert "0.0-1.2 s  60 %" in run("clip.mp4").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.mp4"], "There is no file none.mp4"),
        ([ASSETS / "voice.flac"], "voice.flac"),
        (["gray.png"], "No face was found"),
        (["gray.png", "--out", "faces.gif"], "must end in .png or .jpg"),
        (["gray.png", "--out", "gray.png"], "both input and output"),
        (["gray.png", "--json", "none/faces.json"], "none"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, words, said):
    cv2.imwrite("gray.png", np.full((128, 128, 3), 128, np.uint8))
    done = run(*words)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_faces_that_are_never_seen_together_get_a_picture_each():
    def face(index, frames):
        rows = ((i, (SHAPE * 30 + 100).astype(np.float32)) for i in frames)
        return _track(index, Tracklet(Trail(rows)), 50, (25,), (200, 200))

    source = ArraySource(np.full((50, 200, 200, 3), 120, np.uint8))
    apart = Tracks((face(0, range(20)), face(1, range(30, 50))), 50, (200, 200), (25,))
    assert draw(source, apart, 25.0).shape == (TILE + CAPTION, 2 * TILE, 3)
    many = Tracks(tuple(face(n, range(8 * n, 8 * n + 6)) for n in range(COLUMNS + 1)), 50, (200, 200))
    assert draw(source, many, 25.0).shape == (2 * (TILE + CAPTION), COLUMNS * TILE, 3)
    together = Tracks((face(0, range(20)), face(1, range(10, 50))), 50, (200, 200))
    assert draw(source, together, 25.0).shape == (200, 200, 3)
