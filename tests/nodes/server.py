"""The real ComfyUI for tests: a server with a base directory of its own, and all that a prompt does on it.

with ComfyServer(installation, folder) as server:
    run = server.queue(graph).check()
"""

import asyncio
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .graphs import Graph
from .run import Run, decode

ROOT = Path(__file__).resolve().parents[2]
PACK = "ComfyUI-LatentSync test"
"""The name of our folder in custom_nodes: no Python name, with a blank."""
FOLDERS = ("custom_nodes", "models", "input", "output", "temp", "user")
START, FINISH = 180.0, 600.0
"""Seconds until a server must answer, and until a prompt must have ended."""

Watch = Callable[[Run, str], None]


@dataclass(frozen=True)
class Installation:
    """path: the folder of ComfyUI's main.py; python: the interpreter that has its packages."""

    path: Path
    python: Path


def find_comfyui() -> Installation | None:
    """What COMFYUI_PATH and COMFYUI_PYTHON say, else ~/ComfyUI and the virtual environment in it."""
    path = Path(os.environ.get("COMFYUI_PATH", "~/ComfyUI")).expanduser()
    if not (path / "main.py").is_file():
        return None
    usual = [path / name / "bin" / "python" for name in (".venv", "venv")]
    found = [os.environ["COMFYUI_PYTHON"]] if "COMFYUI_PYTHON" in os.environ else filter(Path.is_file, usual)
    return Installation(path, Path(next(iter(found), sys.executable)))


class ComfyServer:
    """A running ComfyUI; a context manager that never leaves one behind.

    folder: becomes the base directory. args: more of the command line ("--cache-none", …). device: the choice of
    device, "--cpu" unless told. packs: {name in custom_nodes: folder to link there}, by default this repository under
    a name that is no Python name. environment: more variables; None removes one. start: seconds until it must answer.
    """

    def __init__(
        self,
        installation: Installation,
        folder: Path,
        *,
        args: Sequence[str] = (),
        device: Sequence[str] = ("--cpu",),
        packs: Mapping[str, Path] | None = None,
        environment: Mapping[str, str | None] | None = None,
        start: float = START,
    ) -> None:
        self.installation, self.base, self.start = installation, folder, start
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.args = [*device, *args]
        self.packs = {PACK: ROOT} if packs is None else packs
        changes = {"PYTHONPATH": None, "PYTHONHOME": None} | dict(environment or {})
        known = {key: value for key, value in os.environ.items() if key not in changes}
        self.environment = known | {key: value for key, value in changes.items() if value is not None}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def input(self) -> Path:
        return self.base / "input"

    @property
    def output(self) -> Path:
        return self.base / "output"

    @property
    def temp(self) -> Path:
        return self.base / "temp"

    @property
    def models(self) -> Path:
        return self.base / "models"

    @property
    def log_file(self) -> Path:
        return self.base / "server.log"

    @property
    def log(self) -> str:
        """All that the server has printed so far."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.is_file() else ""

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("The server is not running.")
        return self._process

    def __enter__(self) -> "ComfyServer":
        for name in FOLDERS:
            (self.base / name).mkdir(parents=True, exist_ok=True)
        for name, pack in self.packs.items():
            (self.base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
        self._start()
        try:
            self._await_answer()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.stop()
        if kind is not None:
            sys.stderr.write(f"ComfyUI's last words on port {self.port}:\n{self.log[-6000:]}\n")

    def _start(self) -> None:
        command = [str(self.installation.python), "-u", "main.py", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes", *self.args]
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self.installation.path,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_dies_with_us(),
            )

    def _await_answer(self) -> None:
        end = time.monotonic() + self.start
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode} while starting.\n{self.log[-4000:]}")
            try:
                self.get("/object_info")
                return
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI did not answer within {self.start:.0f} s.\n{self.log[-4000:]}")

    def stop(self) -> None:
        """End the server and whatever it started."""
        process, self._process = self._process, None
        if process is None:
            return
        for kind, patience in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
            try:
                os.killpg(process.pid, kind)
                process.wait(patience)
                return
            except ProcessLookupError:
                process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                continue

    def fetch(self, path: str, body: Any = None, kind: str = "application/json") -> bytes:
        """The body of an answer: GET, or POST where there is a body (bytes as they are, anything else as JSON)."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": kind} if data is not None else {})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str) -> Any:
        return json.loads(self.fetch(path))

    def post(self, path: str, body: Any = None) -> Any:
        answer = self.fetch(path, {} if body is None else body)
        return json.loads(answer) if answer else None

    def object_info(self) -> dict[str, Any]:
        return self.get("/object_info")

    def history(self, run: Run) -> dict[str, Any]:
        return self.get(f"/history/{run.id}").get(run.id, {})

    def interrupt(self) -> None:
        """What the Cancel button does."""
        self.post("/interrupt")

    def free(self, *, unload: bool = True) -> None:
        """Forget cached results and, unless told otherwise, models (takes effect before the next prompt)."""
        self.post("/free", {"unload_models": unload, "free_memory": True})

    def idle(self) -> bool:
        queue = self.get("/queue")
        return not queue["queue_running"] and not queue["queue_pending"]

    def put(self, path: str | Path, name: str | None = None) -> str:
        """Copy a file into the input folder; its name there, as a widget would have it."""
        target = self.input / (name or Path(path).name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        return target.relative_to(self.input).as_posix()

    def upload(self, path: str | Path, subfolder: str = "") -> str:
        """Send a file as the browser does; the name that a widget then has."""
        mark = uuid.uuid4().hex
        fields = {"subfolder": subfolder, "type": "input", "overwrite": "true"}
        parts = [f'--{mark}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
        head = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{Path(path).name}"\r\n\r\n'
        body = "".join([*parts, head]).encode() + Path(path).read_bytes() + f"\r\n--{mark}--\r\n".encode()
        said = json.loads(self.fetch("/upload/image", body, f"multipart/form-data; boundary={mark}"))
        return f"{said['subfolder']}/{said['name']}".lstrip("/")

    def path(self, shown: Mapping[str, str]) -> Path:
        """The file behind {filename, subfolder, type} in a node's output."""
        return self.base / shown["type"] / shown["subfolder"] / shown["filename"]

    def view(self, shown: Mapping[str, str]) -> bytes:
        """The same file as the browser gets it."""
        return self.fetch("/view?" + urllib.parse.urlencode(shown))

    def files(self) -> set[str]:
        """Every file in temp and output, relative to the base directory: what a run leaves behind."""
        places = (self.temp, self.output)
        return {p.relative_to(self.base).as_posix() for place in places for p in place.rglob("*") if p.is_file()}

    def rss(self) -> int:
        """Bytes of memory that the server holds now."""
        return self._memory("VmRSS")

    def peak_rss(self) -> int:
        """The most that it has held since reset_peak()."""
        return self._memory("VmHWM")

    def reset_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5", encoding="ascii")

    def _memory(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith(field + ":")))

    def queue(
        self,
        graph: Graph | Mapping[str, Any],
        client_id: str | None = None,
        *,
        watch: Watch | None = None,
        extra_data: Mapping[str, Any] | None = None,
        timeout: float = FINISH,
    ) -> Run:
        """Run a workflow to its end and tell all that happened, be it success, error, interruption or refusal.

        watch(run, event) is called after each message (event: "progress", "preview", "text", …) and may interrupt();
        what it raises ends the run. The prompt never outlives this call.
        """
        prompt = graph.prompt if isinstance(graph, Graph) else dict(graph)
        client = client_id or uuid.uuid4().hex
        body = {"prompt": prompt, "client_id": client, "extra_data": dict(extra_data or {})}
        run = Run({name: node["class_type"] for name, node in prompt.items()})
        start = time.monotonic()
        try:
            asyncio.run(asyncio.wait_for(self._follow(body, client, run, watch), timeout))
        except (TimeoutError, asyncio.TimeoutError):
            raise TimeoutError(f"The prompt did not end within {timeout:.0f} s; so far: {run}") from None
        finally:
            run.seconds = time.monotonic() - start
            if not run.status and self._process is not None and self.process.poll() is None:
                self._clear()
        return run

    async def _follow(self, body: Any, client: str, run: Run, watch: Watch | None) -> None:
        import aiohttp

        address = f"{self.url}/ws?clientId={client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(address, max_msg_size=0) as socket:
            await socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            async with session.post(f"{self.url}/prompt", json=body) as answer:
                said = await answer.json()
            if answer.status != 200:
                run.refuse(said)
                return
            run.id = said["prompt_id"]
            async for message in socket:
                event, data = decode(message.data)
                run.take(event, data)
                if watch is not None and run.id:
                    watch(run, event)
                if run.status:
                    return
        raise ConnectionError(f"ComfyUI ended while the prompt ran.\n{self.log[-4000:]}")

    def _clear(self) -> None:
        """Nothing runs and nothing waits."""
        self.post("/queue", {"clear": True})
        self.interrupt()
        end = time.monotonic() + 60
        while not self.idle() and time.monotonic() < end:
            time.sleep(0.1)


def _dies_with_us() -> Callable[[], None] | None:
    """What the server calls before it begins: it ends with the thread that starts it, so a killed run leaves none."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # before the fork: afterwards nothing may be loaded
    return lambda: libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
