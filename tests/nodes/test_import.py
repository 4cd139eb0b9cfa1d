"""Being loaded harms nobody: ComfyUI's process is as it was, under any folder name, beside any other pack."""

import json
import os
import subprocess
from urllib.parse import quote

import pytest

from .clips import portrait
from .graphs import Graph
from .server import PACK, ROOT, ComfyServer
from .table import NODES

NAMES = ["latentsync", "ComfyUI-LatentSync.main", "a pack, 7 (neu)"]

LOAD = """
import asyncio, json, logging, os, random, signal, socket, sys, tempfile, threading, warnings

BASE, PACKS = sys.argv[1], sys.argv[2:]
sys.argv[1:] = ["--cpu", "--base-directory", BASE]
sys.path.insert(0, os.getcwd())
import comfy.options
comfy.options.enable_args_parsing()
import utils.extra_config  # before any library brings a `utils` of its own
import numpy as np
import torch
import cv2
import nodes, server, folder_paths

reached = []
connect = socket.socket.connect
def watched(self, address):
    reached.append(str(address))
    return connect(self, address)
socket.socket.connect = watched

def below(folder):  # but for the samples, which the first start puts there
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return sorted(path for path in paths if not os.path.basename(path).startswith("latentsync_"))

def state():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return dict(
        temporary=(tempfile.tempdir, tempfile.gettempdir, folder_paths.get_temp_directory()),
        environment=dict(os.environ),
        path=list(sys.path),
        precision=(cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32,
                   torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()),
        torch=(torch.get_default_dtype(), str(torch.get_default_device()), torch.is_grad_enabled(),
               torch.get_num_threads(), torch.get_num_interop_threads(), torch.cuda.is_initialized()),
        attention=(torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                   torch.backends.cuda.mem_efficient_sdp_enabled()),
        opencv=(cv2.getNumThreads(), cv2.useOptimized(), cv2.ocl.useOpenCL()),
        logging=(logging.root.level, list(logging.root.handlers), list(logging.root.filters),
                 logging.lastResort, logging.raiseExceptions, logging.root.manager.disable),
        warnings=list(warnings.filters),
        signals={s: signal.getsignal(s) for s in signal.valid_signals() if s not in (9, 19)},
        threads=threading.active_count(),
        chance=(random.getstate(), str(np.random.get_state()), torch.initial_seed(), torch.get_rng_state().tolist()),
        printing=(sys.stdout, sys.stderr, sys.excepthook, sys.displayhook, threading.excepthook),
        place=os.getcwd(),
        files=(below(BASE), below(PACKS[0]), sorted(os.listdir("."))),
        reached=list(reached),
        hooks=(list(sys.meta_path), list(sys.path_hooks), sys.gettrace(), sys.getprofile()),
        host=(nodes.load_custom_node, folder_paths.get_temp_directory, folder_paths.get_output_directory,
              {k: v for k, v in vars(comfy.model_management).items() if callable(v)}),
        others={k: v for k, v in folder_paths.folder_names_and_paths.items() if k != "latentsync"},
        nodes=[n for n in nodes.NODE_CLASS_MAPPINGS if not n.startswith("LatentSync")],
    )

async def main():
    server.PromptServer(asyncio.get_running_loop())
    await nodes.load_custom_node(os.path.join(BASE, "custom_nodes", "nothing.py"))  # ComfyUI's own late imports
    heavy = {"av", "mediapipe", "transformers", "diffusers"} - set(sys.modules)
    for pack in PACKS:
        before = state()
        good = await nodes.load_custom_node(pack)
        after = state()
        changed = {k: [str(before[k])[-300:], str(after[k])[-300:]] for k in before if before[k] != after[k]}
        ours = {n: c for n, c in nodes.NODE_CLASS_MAPPINGS.items() if n.startswith("LatentSync")}
        for name in ours:
            del nodes.NODE_CLASS_MAPPINGS[name]
        homes = {c.__module__.split(".nodes.")[0] for c in ours.values()}
        print("RESULT", json.dumps(dict(good=good, ours=sorted(ours), changed=changed, homes=sorted(homes),
              foreign=[m for m in sys.modules if m.split(".")[0] == "latentsync"],
              heavy=sorted(heavy & set(sys.modules)))))

asyncio.run(main())
"""


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
        (folder / name).mkdir(parents=True)
    (folder / "custom_nodes" / "nothing.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    return folder


def test_loading_changes_nothing(comfyui, base):
    packs = [base / "custom_nodes" / name for name in NAMES]
    for pack in packs:
        pack.symlink_to(ROOT, target_is_directory=True)
    command = [str(comfyui.python), "-c", LOAD, str(base), *map(str, packs)]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, cwd=comfyui.path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(NAMES), done.stdout[-2000:] + done.stderr[-4000:]
    for pack, found in zip(packs, map(json.loads, lines), strict=True):
        assert found["good"], done.stderr[-4000:]
        assert found["ours"] == sorted(NODES)
        assert found["homes"] == [str(pack).replace(".", "_x_")], "each under the name that ComfyUI gave it"
        assert not sorted(found["changed"]), json.dumps(found["changed"], indent=1)
        assert not found["foreign"], "the pack took the name latentsync"
        assert not found["heavy"], "libraries to import where they are used"


OTHER_PACK = """
import os, sys
sys.path.insert(0, os.path.dirname(__file__))
import latentsync, latentsync.settings

class OtherLipSync:
    CATEGORY, FUNCTION, RETURN_TYPES = "other", "say", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    def say(self, text):
        from latentsync.face.detect import who
        return (f"{text}: {who()}, {latentsync.WHO}, {latentsync.settings.STEPS}",)

NODE_CLASS_MAPPINGS = {"OtherLipSync": OtherLipSync}
"""


def other_pack(folder):
    """A pack of somebody else with a package `latentsync` of its own, which it puts first on the search path."""
    inside = folder / "latentsync" / "face"
    inside.mkdir(parents=True)
    (folder / "__init__.py").write_text(OTHER_PACK, encoding="utf-8")
    (folder / "latentsync" / "__init__.py").write_text("WHO = 'the other package'\n", encoding="utf-8")
    (folder / "latentsync" / "settings.py").write_text("STEPS = 99\n", encoding="utf-8")
    (inside / "__init__.py").touch()
    (inside / "detect.py").write_text("def who():\n    return 'the other finder'\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def crowded(comfyui, tmp_path_factory):
    """A server with our pack between two copies of the other one: whatever order they load in, ours has one before."""
    folder = tmp_path_factory.mktemp("crowded")
    other = other_pack(folder / "other")
    packs = {"0 other": other, PACK: ROOT, "z other": other}
    with ComfyServer(comfyui, folder / "base", packs=packs) as server:
        yield server


def test_beside_a_pack_that_owns_the_name(crowded, tmp_path):
    clip = crowded.put(portrait(tmp_path / "clip.mp4", 6))
    g = Graph()
    g.node("PreviewAny", "said", source=g.node("OtherLipSync", text="hello"))
    parts = g.node("GetVideoComponents", video=g.node("LoadVideo", file=clip))
    synced = g.node("LatentSyncLipSync", images=parts, audio=parts[1], checkpoint="nano", fps=25.0, fit="trim",
                    face="largest", steps=1, guidance=1.0, solver="ddim", seed=1)  # fmt: skip
    g.node("PreviewImage", images=synced)
    for _ in range(2):
        run = crowded.queue(g).check()
        assert run.outputs["said"]["text"] == ["hello: the other finder, the other package, 99"]
        assert len(run.shown("PreviewImage", "images")) == 6
        g = g.changed("4", seed=2)


def test_the_browser_gets_each_file_once(crowded):
    """WEB_DIRECTORY is named in one place: named twice, every script would run twice."""
    ours = [path for path in crowded.get("/extensions") if "latentsync" in path.lower()]
    names = [path.rsplit("/", 1)[-1] for path in ours]
    assert len(names) == len(set(names)), ours
    assert all(path.startswith(f"/extensions/{quote(PACK)}/") for path in ours), ours
