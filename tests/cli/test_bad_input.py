"""Every input that cannot work gets one clear sentence, exit code 2 and leaves nothing behind; odd ones that can, work.

All of it goes through the command line, with a tiny random model and a real face.
"""

import dataclasses
import struct
import sys
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from skimage import data
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.weights.files import write_safetensors

from ..tiny import face_model, speech, tiny_checkpoint, tiny_whisper

RATE = 16_000
LONGEST = 420
"""Characters of a sentence that one still reads."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Everything that good runs need; bad ones replace a piece. here: where the outputs go, empty at first."""

    kit: Path
    here: Path

    def run(self, *arguments: object, **options: object) -> object:
        """`latentsync run` with the face and the voice, unless arguments say otherwise (None leaves one out)."""
        usual: dict[str, object] = {
            "image": self.kit / "face.png",
            "audio": self.kit / "voice.wav",
            "out": self.here / "out.mp4",
            "checkpoint": self.kit / "tiny.safetensors",
            "whisper": self.kit / "whisper.safetensors",
            "steps": 1,
        }
        if "video" in options:
            usual.pop("image")
        merged = usual | options
        words = [str(word) for name, value in merged.items() if value is not None for word in (f"--{name}", value)]
        return CliRunner().invoke(cli.app, ["run", *words, *map(str, arguments)])


def wav(path: Path, sound: np.ndarray, rate: int = RATE) -> Path:
    """Mono float32, written by hand: encoders would not let NaN through."""
    body = sound.astype("<f4").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        36 + len(body),
        b"WAVE",
        b"fmt ",
        16,
        3,
        1,
        rate,
        rate * 4,
        4,
        32,
        b"data",
        len(body),
    )
    path.write_bytes(head + body)
    return path


def film(
    path: Path, frames: Iterable[np.ndarray], *, codec: str = "libx264", stored: str = "yuv420p", given: str = "rgb24"
) -> Path:
    """A video without sound, 25 frames a second."""
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=25)
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], stored
                if codec == "libx264":
                    stream.options = {"preset": "ultrafast", "crf": "12"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format=given)
            container.mux(stream.encode(picture))
        assert stream is not None
        container.mux(stream.encode(None))
    return path


def portrait(height: int = 192, width: int = 192) -> np.ndarray:
    """The astronaut's head, filling the picture."""
    scale = max(height, width)
    square = np.ascontiguousarray(data.astronaut()[0:256, 96:352])
    whole = cv2.resize(square, (scale, scale), interpolation=cv2.INTER_AREA)
    top, left = (scale - height) // 2, (scale - width) // 2
    return np.ascontiguousarray(whole[top : top + height, left : left + width])


@pytest.fixture(scope="session")
def kit(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kit")
    tiny_checkpoint(folder / "tiny.safetensors")
    whisper = tiny_whisper()
    state = {key.removeprefix("encoder."): value for key, value in whisper.state_dict().items()}
    state |= {"layer_norm.weight": torch.ones(whisper.dim), "layer_norm.bias": torch.zeros(whisper.dim)}
    write_safetensors(folder / "whisper.safetensors", state, {"format": "latentsync", "kind": "whisper"})
    cv2.imwrite(str(folder / "face.png"), portrait()[..., ::-1])
    wav(folder / "voice.wav", speech(0.4).numpy())
    return folder


@pytest.fixture
def stage(kit, tmp_path, monkeypatch) -> Stage:
    monkeypatch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
    here = tmp_path / "here"
    here.mkdir()
    return Stage(kit, here)


def text_file(path: Path) -> Path:
    path.write_text("These are words, not pictures.\n" * 50, encoding="utf-8")
    return path


def cut_off(path: Path) -> Path:
    """An mp4 whose index, which comes last, is lost."""
    whole = film(path, [portrait()] * 5).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def flat(path: Path) -> Path:
    cv2.imwrite(str(path), np.full((120, 160, 3), 90, np.uint8))
    return path


def voice(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> Path:
    return wav(path, change(speech(1.0).numpy().copy()))


def with_nan(sound: np.ndarray) -> np.ndarray:
    sound[500] = np.nan
    return sound


# name: (options made from a folder for the bad things, words that the sentence must have)
Bad = tuple[Callable[[Path], dict[str, object]], str]
BAD: dict[str, Bad] = {
    "no face in the picture": (lambda p: {"image": flat(p / "a.png")}, "No face"),
    "no face in the video": (
        lambda p: {"video": film(p / "a.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 4)},
        "No face",
    ),
    "audio without an audio stream": (lambda p: {"audio": film(p / "a.mp4", [portrait()] * 3)}, "sound"),
    "video without sound as the speech": (
        lambda p: {"video": film(p / "a.mp4", [portrait()] * 3), "audio": None},
        "sound|audio",
    ),
    "picture and no speech": (lambda p: {"audio": None}, "no sound"),
    "audio file of no bytes": (lambda p: {"audio": (p / "a.wav").write_bytes(b"") or p / "a.wav"}, "cannot be read"),
    "audio without samples": (lambda p: {"audio": wav(p / "a.wav", np.zeros(0))}, "sound"),
    "silent audio": (lambda p: {"audio": voice(p / "a.wav", lambda s: s * 0)}, "silent"),
    "audio with NaN": (lambda p: {"audio": voice(p / "a.wav", with_nan)}, "not numbers"),
    "a tenth of a second": (lambda p: {"audio": voice(p / "a.wav", lambda s: s[: RATE // 10])}, "0.1 s"),
    "text as audio": (lambda p: {"audio": text_file(p / "a.wav")}, "a.wav"),
    "missing audio": (lambda p: {"audio": p / "none.wav"}, "There is no file"),
    "folder as video": (lambda p: {"video": p}, "folder"),
    "text as video": (lambda p: {"video": text_file(p / "a.mp4")}, "a.mp4"),
    "truncated mp4": (lambda p: {"video": cut_off(p / "a.mp4")}, "cannot be read"),
    "missing video": (lambda p: {"video": p / "none.mp4"}, "There is no file"),
    "sound as video": (lambda p: {"video": wav(p / "a.wav", speech(1).numpy())}, "no video"),
    "folder as picture": (lambda p: {"image": p}, "picture"),
    "text as picture": (lambda p: {"image": text_file(p / "a.png")}, "not a picture"),
    "video as picture": (lambda p: {"image": film(p / "a.mp4", [portrait()] * 2)}, "--video"),
    "missing picture": (lambda p: {"image": p / "none.png"}, "There is no picture"),
    "no face source": (lambda p: {"image": None}, "--video or --image"),
    "unknown checkpoint": (lambda p: {"checkpoint": "2.0"}, "2.0"),
    "missing checkpoint": (lambda p: {"checkpoint": p / "none.safetensors"}, "none.safetensors"),
    "text as checkpoint": (lambda p: {"checkpoint": text_file(p / "a.pt")}, "a.pt"),
    "checkpoint not downloaded": (lambda p: {"checkpoint": "1.5"}, "latentsync download 1.5"),
    "unknown vae": (lambda p: {"vae": "best"}, "best"),
    "unknown whisper": (lambda p: {"whisper": "huge"}, "huge"),
    "resolution off the grid": (lambda p: {"resolution": 100}, "multiple"),
    "resolution 0": (lambda p: {"resolution": 0}, "resolution|Resolution"),
    "out in a missing folder": (lambda p: {"out": p / "none" / "out.mp4"}, "no folder"),
    "out is a folder": (lambda p: {"out": p}, "folder"),
    "out below a file": (lambda p: {"out": text_file(p / "a") / "out.mp4"}, "no folder"),
    "out of unknown kind": (lambda p: {"out": p / "out.avi"}, ".avi"),
    "out is the input": (lambda p: {"out": film(p / "a.mp4", [portrait()]), "video": p / "a.mp4"}, "both"),
    "report in a missing folder": (lambda p: {"json": p / "none" / "a.json"}, "a.json"),
    "sheet of unknown kind": (lambda p: {"sheet": p / "a.pdf"}, ".png"),
    "steps -1": (lambda p: {"steps": -1}, "steps is -1"),
    "guidance -1": (lambda p: {"guidance": -1}, "guidance is -1"),
    "guidance nan": (lambda p: {"guidance": "nan"}, "guidance is nan"),
    "negative seed": (lambda p: {"seed": -5}, "seed is -5"),
    "window batch 0": (lambda p: {"window-batch": 0}, "window_batch is 0"),
    "unknown solver": (lambda p: {"solver": "euler"}, "solver is 'euler'"),
    "unknown fit": (lambda p: {"fit": "stretch"}, "fit is 'stretch'"),
    "no such face": (lambda p: {"face": "7"}, "no face '7'"),
    "face by a wrong word": (lambda p: {"face": "top"}, "face is 'top'"),
    "unknown device": (lambda p: {"device": "tpu"}, "device is 'tpu'"),
    "unknown dtype": (lambda p: {"dtype": "int8"}, "dtype is 'int8'"),
}


def check_refused(result: object, words: str) -> str:
    line = result.stderr  # type: ignore[attr-defined]
    assert result.exit_code == 2, f"{result.exit_code}: {line}\n{result.exception!r}"  # type: ignore[attr-defined]
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert any(word in line for word in words.split("|")), line
    assert len(line) < LONGEST, line
    assert not result.stdout  # type: ignore[attr-defined]
    return line


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(stage, tmp_path, name):
    make, words = BAD[name]
    bad = tmp_path / "bad"
    bad.mkdir()
    options = make(bad)
    before = listing(tmp_path)
    check_refused(stage.run(**options), words)
    assert listing(tmp_path) == before


def test_full_disk(stage):
    """A limit on file sizes is as near to a full disk as a test can come without being root."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        result = stage.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    progress, error = result.stderr.rsplit("error: ", 1)  # it may well be found only when everything is computed
    assert result.exit_code == 2
    assert all(line.startswith("sample: ") for line in progress.splitlines())
    assert "could not be written" in error
    assert error.count("\n") == 1
    assert listing(stage.here) == {}


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no such mode")
def test_folder_that_may_not_be_written(stage):
    stage.here.chmod(0o555)
    try:
        (stage.here / "probe").touch()
        pytest.skip("this user may write anywhere")
    except PermissionError:
        check_refused(stage.run(), "could not be written")
    finally:
        stage.here.chmod(0o755)


def test_an_older_result_survives_a_failure(stage):
    out = stage.here / "out.mp4"
    out.write_bytes(b"yesterday's")
    check_refused(stage.run(face="7"), "no face")
    assert listing(stage.here) == {"out.mp4": len(b"yesterday's")}


# --- odd, but right ------------------------------------------------------------------------------------------------


def wide(height: int, width: int) -> np.ndarray:
    frame = np.full((height, width, 3), 60, np.uint8)
    side = min(height, width) * 2 // 3
    frame[height // 6 : height // 6 + side, width // 3 : width // 3 + side] = portrait(side, side)
    return frame


def gray(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def see_through(frame: np.ndarray) -> np.ndarray:
    return np.dstack((frame, np.full(frame.shape[:2], 128, np.uint8)))


def see_through_picture(path: Path) -> Path:
    cv2.imwrite(str(path), see_through(portrait()[..., ::-1]))
    return path


# name: (options, (width, height) and number of frames that must come out); the voice lasts 0.4 s, 10 frames
ODD: dict[str, tuple[Callable[[Path], dict[str, object]], tuple[int, int], int]] = {
    "odd size": (lambda p: {"video": film(p / "a.mp4", [portrait(67, 101)] * 12, stored="yuv444p")}, (101, 67), 10),
    "one frame": (lambda p: {"video": film(p / "a.mp4", [portrait()])}, (192, 192), 10),
    "one frame, trimmed": (lambda p: {"video": film(p / "a.mp4", [portrait()]), "fit": "trim"}, (192, 192), 1),
    "4K": (lambda p: {"video": film(p / "a.mp4", [wide(2160, 3840)] * 2), "fit": "trim"}, (3840, 2160), 2),
    "gray video": (
        lambda p: {"video": film(p / "a.mp4", [gray(portrait())] * 3, stored="gray", given="gray")},
        (192, 192),
        10,
    ),
    "video with alpha": (
        lambda p: {"video": film(p / "a.mov", [see_through(portrait())] * 3, codec="png", stored="rgba", given="rgba")},
        (192, 192),
        10,
    ),
    "picture with alpha": (lambda p: {"image": see_through_picture(p / "a.png")}, (192, 192), 10),
    "gray picture": (
        lambda p: {"image": cv2.imwrite(str(p / "a.png"), gray(portrait())) and p / "a.png"},
        (192, 192),
        10,
    ),
    "long sound, held": (
        lambda p: {"video": film(p / "a.mp4", [portrait()] * 3), "fit": "hold", "guidance": 1},
        (192, 192),
        10,
    ),
    "short sound, whole picture": (
        lambda p: {"video": film(p / "a.mp4", [portrait()] * 18), "fit": "silence", "guidance": 1},
        (192, 192),
        18,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_input(stage, tmp_path, name):
    make, size, count = ODD[name]
    result = stage.run(**make(tmp_path))
    assert result.exit_code == 0, result.stderr
    assert listing(stage.here).keys() == {"out.mp4"}
    with av.open(str(stage.here / "out.mp4")) as container:
        frames = list(container.decode(video=0))
        stream, sound = container.streams.video[0], container.streams.audio[0]
        assert stream.average_rate == 25
        assert stream.duration * stream.time_base == Fraction(count, 25)
        assert abs(sound.duration * sound.time_base - Fraction(count, 25)) <= Fraction(1, 25)
    assert len(frames) == count
    assert (frames[0].width, frames[0].height) == size


def test_the_face_is_repainted_and_the_rest_is_not(stage, tmp_path):
    source = film(tmp_path / "a.mp4", [wide(240, 320)] * 10)
    assert stage.run(video=source).exit_code == 0
    pictures = []
    for path in (source, stage.here / "out.mp4"):
        with av.open(str(path)) as container:
            pictures.append([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][5].astype(int))
    difference = np.abs(pictures[0] - pictures[1]).max(-1)
    assert (difference > 40).sum() > 200
    assert difference[:, :100].max() < 12  # left of the head: the encoder's rounding only
    assert difference[:30].max() < 12  # above it
