"""The app as a visitor has it: started by its command, in a real browser."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from latentsync.webapp.config import Limits
from latentsync.webapp.faces import look
from latentsync.webapp.uploads import take_face

from ..tiny import find_model
from ..web.stage import two_people
from ..workflows.api import media_folder
from ..workflows.browser import ARGUMENTS, find_browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, WebSocket

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
PATIENCE = 900_000
"""Milliseconds for what computes; a machine may be busy with other things."""
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
WIDE, NARROW = {"width": 1280, "height": 1000}, {"width": 420, "height": 900}
PHONE = {"width": 390, "height": 844}


def environment(folder: Path) -> dict[str, str]:
    """Of every process of these tests: the same models, threads and folder for temporary files."""
    found = [find_model(name) for name in ("tiny.en", "face_landmarker.task")]
    if None in found:
        pytest.skip(
            "nano needs whisper-tiny.en and face-landmarker: latentsync download whisper-tiny.en face-landmarker"
        )
    folders = os.pathsep.join(dict.fromkeys(str(path.parent) for path in found if path))
    own = {"LATENTSYNC_MODELS": folders, "TMPDIR": str(folder), "OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **own}


class App:
    """`latentsync app` with its own folder for temporary files; told to end, it is waited for."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.port = folder, _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "latentsync", "app", "--port", str(self.port), "--no-browser", *options]
        self._log = folder.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment(folder), cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "App":
        end = time.monotonic() + 600
        while "The app is at" not in self.log:
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise RuntimeError(f"The app did not start.\n{self.log}")
            time.sleep(0.1)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is not None:
            sys.stderr.write(f"The app's last words:\n{self.log[-6000:]}\n")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def visitors(self) -> dict[str, set[str]]:
        """Folders of visitors, and the names of the files in each."""
        found = self.folder.glob("latentsync-app-*/session-*")
        return {path.name: {file.name for file in path.iterdir()} for path in found}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def chromium() -> "Iterator[Browser]":
    """A headless browser whose microphone beeps; the test is skipped, saying so, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    pytest.importorskip("streamlit", reason="the app is a Streamlit page: pip install streamlit")
    path = find_browser()
    if path is None:
        pytest.skip("No Chromium or Chrome here; BROWSER_PATH names one.")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=[*ARGUMENTS, *MICROPHONE])
        yield browser
        browser.close()


class Visitor:
    """One browser, with cookies of its own, on the page of an app."""

    def __init__(self, browser: "Browser", app: App, **context: Any) -> None:
        self.app = app
        self.context = browser.new_context(**{"viewport": WIDE, "permissions": ["microphone"]} | context)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(240_000)
        self.said: list[str] = []
        self._listen()
        self.page.goto(app.url)
        self.page.locator("input[type=file]").nth(1).wait_for(state="attached")

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            sys.stderr.write("The browser:\n" + "\n".join(self.said[-40:]) + "\n")
            with suppress(Exception):  # a page that is gone shows nothing; why the test failed matters more
                sys.stderr.write(f"The page:\n{self.page.locator('body').inner_text(timeout=10_000)}\n")
        with suppress(Exception) if kind else nullcontext():
            self.context.close()

    def _listen(self) -> None:
        """Keep what the browser says: complaints of the page, and connections that come and go."""
        page, say = self.page, self.said.append
        page.on("console", lambda message: say(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: say(f"error: {error}"))
        page.on("crash", lambda _: say("the page crashed"))

        def connected(socket: "WebSocket") -> None:
            say(f"connected to {socket.url}")
            socket.on("close", lambda _: say("the connection was closed"))
            socket.on("socketerror", lambda error: say(f"the connection broke: {error}"))

        page.on("websocket", connected)

    @property
    def progress(self) -> "Locator":
        return self.page.locator(".st-key-progress")

    @property
    def faces(self) -> "Locator":
        return self.page.locator(".stage button")

    def upload(self, what: str, path: Path) -> None:
        """what: "face" or "voice"."""
        self.page.locator(f"[class*=st-key-{what}-] input[type=file]").set_input_files(path)

    def give(self, face: Path, voice: Path | None) -> None:
        """Both files, as somebody would give them; voice None: the clip's own sound."""
        self.upload("face", face)
        self.faces.first.wait_for()
        self.settle()
        if voice is None:
            self.choose("Where the voice comes from", "The video's own audio")
            return
        self.upload("voice", voice)
        self.page.locator("audio").wait_for()

    def choose(self, group: str, label: str) -> None:
        self.page.get_by_role("radiogroup", name=group).get_by_text(label, exact=True).click()

    def settle(self) -> None:
        """Wait until the page is drawn: what still moves is missed by a click, whatever the browser thinks of it."""
        self.page.wait_for_timeout(500)
        self.page.locator("[data-testid=stApp][data-test-script-state=notRunning]").wait_for()

    def steps(self, number: int) -> None:
        self.settle()
        self.page.get_by_text("Advanced", exact=True).click()
        field = self.page.get_by_label("Steps", exact=True)
        field.fill(str(number))
        field.press("Enter")
        self.settle()

    def more(self, tab: str) -> None:
        """Open a part of the settings that most people leave alone."""
        if not self.page.get_by_role("tab", name=tab).is_visible():
            self.page.get_by_text("Advanced", exact=True).click()
        self.page.get_by_role("tab", name=tab).click()
        self.settle()

    def start(self) -> None:
        self.settle()
        self.page.get_by_role("button", name="Make the video").click()
        self.progress.wait_for()

    def watch(self) -> list[str]:
        """What the progress says until there is a result."""
        said: list[str] = []
        done = self.page.get_by_role("heading", name="Your video")
        end = time.monotonic() + PATIENCE / 1000
        while not done.count() and time.monotonic() < end:
            said += [text for text in self.progress.all_inner_texts() if not said or text != said[-1]]
            self.page.wait_for_timeout(200)
        done.wait_for(timeout=5000)
        return said

    def download(self, target: Path) -> Path:
        with self.page.expect_download() as waiting:
            self.page.get_by_role("button", name="Download the video").click()
        waiting.value.save_as(target)
        return target

    def faults(self) -> list[str]:
        """What axe-core finds wrong for people who cannot see well, or use no mouse: serious and critical faults."""
        package = find_spec("axe_playwright_python")
        if package is None or package.origin is None:
            pytest.skip('axe-core checks the page: pip install -e ".[browser]"')
        self.page.evaluate(Path(package.origin).with_name("axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
        return [
            f"{one['id']}: {node['html'][:120]} {node['failureSummary'][:200]}"
            for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]
        ]  # fmt: skip


def made_by_the_command(folder: Path, face: Path, voice: Path | None, *options: str) -> Path:
    """The same wish through `latentsync run`: the video."""
    out = folder / f"wanted-{len(list(folder.glob('wanted-*')))}.mp4"
    kind = "--image" if face.suffix in (".png", ".jpg") else "--video"
    sound = ["--audio", str(voice)] if voice else []
    command = [sys.executable, "-m", "latentsync", "run", kind, str(face), *sound, "--out", str(out), *options]
    subprocess.run(command, env=environment(folder), check=True, capture_output=True)
    return out


def point(path: Path, face: int | None, folder: Path) -> str:
    """What the engine is told when this face, or else the largest, is clicked in the first frame."""
    with path.open("rb") as stream:
        shot = look(take_face(stream, path.name, folder, Limits()))
    return shot.point(shot.largest if face is None else face)


def couple_clip(target: Path, frames: int = 30) -> Path:
    """Two people side by side: real speakers where the real clips are here, else the portrait and its mirror image."""
    from ..nodes.clips import cut

    whole = two_people(target.with_stem("whole"), media_folder())
    return cut(whole, target, frames, start=5)


def spoken(target: Path, seconds: float) -> Path:
    """The beginning of the sample voice as a .wav."""
    import wave

    from latentsync.audio.load import load_audio

    from ..nodes.clips import VOICE

    sound = load_audio(VOICE)
    samples = (sound.waveform[: round(seconds * sound.sample_rate)].clamp(-1, 1) * 32767).short()
    with wave.open(str(target), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sound.sample_rate)
        file.writeframes(samples.numpy().tobytes())
    return target
