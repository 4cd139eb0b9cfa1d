"""What is here, what is missing and what to type. Looks only at this machine and bears with anything being absent."""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import REQUIREMENTS, missing_package
from ..files import command
from .imports import try_all

if TYPE_CHECKING:
    from ..weights.registry import ModelEntry

OLDEST_PYTHON = (3, 10)
CHECKPOINTS = {"nano": "needed", "1.5": "for LatentSync 1.5", "1.6": "for LatentSync 1.6"}
"""What the advice says of a checkpoint and all that it requires; nano is needed, the others are offers."""
LEAST_ROOM = 1_000_000_000
"""Bytes of free disk under which results and small models may not fit."""

EXTRAS: dict[str, dict[str, str]] = {
    "train": {"accelerate": "accelerate", "pyyaml": "yaml", "matplotlib": "matplotlib.figure"},
    "prepare": {"scenedetect": "scenedetect.detectors", "matplotlib": "matplotlib.figure"},
    "eval": {
        "torchvision": "torchvision",
        "torchmetrics": "torchmetrics.image.lpip",
        "torch-fidelity": "torch_fidelity",
    },
    "ray": {"ray": "ray.data"},
    "app": {"streamlit": "streamlit"},
    "share": {"pyngrok": "pyngrok"},
    "heif": {"pillow-heif": "pillow_heif"},
}
"""Packages of each extra, and what is imported of them."""
SLOW = {
    "transformers": "transformers.models.whisper.modeling_whisper",
    "diffusers": "diffusers.models.autoencoders.autoencoder_kl",
}
"""What is needed and takes seconds to import."""

_REQUIREMENTS_FILE = Path(__file__).parents[2] / "requirements.txt"
_SYSTEM_LIBRARIES = {"libEGL.so": "libegl1 libgles2", "libGLESv2.so": "libegl1 libgles2", "libGL.so": "libgl1"}
"""Libraries that wheels take from the system, and the Debian packages to install (mediapipe takes two together)."""


@dataclass(frozen=True)
class Check:
    """state: "ok", "note" (works, but look) or "missing". needed: the built-in model cannot run without it."""

    name: str
    state: str
    detail: str
    fix: str = ""
    needed: bool = False


def examine() -> list[Check]:
    """Every check, in reading order."""
    return list(_all())


def ready(checks: Sequence[Check]) -> bool:
    """Whether the built-in model can run."""
    return not any(check.needed and check.state == "missing" for check in checks)


def advice(checks: Sequence[Check]) -> Iterator[str]:
    """What to type: first what is needed, then what the published weights take, then the verdict."""
    absent = {check.name for check in checks if check.fix.startswith(f"{command()} download")}
    offers = absent | {check.name for check in checks if check.state == "note" and check.fix.startswith("pip install ")}
    needed = dict.fromkeys(c.fix for c in checks if c.needed and c.state == "missing" and c.name not in absent)
    yield from (f"needed: {fix}" for fix in needed)
    for checkpoint, purpose in CHECKPOINTS.items() if absent else ():
        from ..weights.registry import with_required

        if any(entry.name in absent for entry in with_required([checkpoint])):
            yield f"{purpose}: {command()} download {checkpoint}"
    yield from (f"{c.name}: {c.fix}" for c in checks if c.state == "note" and c.name not in offers)
    if ready(checks):
        yield f"ready: {command()} run --image face.png --audio speech.wav --out talking.mp4"
    else:
        yield f"not ready: install what is missing, then `{command()} doctor` again"


def place(name: str) -> Path | None:
    """Where a known model lies, if it is here."""
    from ..errors import UserError
    from ..weights.registry import find

    try:
        return find(name)
    except UserError:
        return None


def package_problem(error: BaseException) -> str:
    """One sentence where a package, or a library of the system that one takes, is missing or broken; else empty."""
    module = str(getattr(error, "name", None) or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module in REQUIREMENTS:
        return str(missing_package("This command", module))
    if packages := _system_packages(error):
        return f"A library of the system is missing ({_reason(error)}); type: apt-get install {packages}"
    if isinstance(error, ImportError) and module in REQUIREMENTS:
        return f"{module} cannot be loaded ({_reason(error)}); `{command()} doctor` says more."
    return ""


def _all() -> Iterator[Check]:
    with ThreadPoolExecutor(1) as executor:  # in the meantime the rest is looked at
        tried = executor.submit(_try_slow)
        yield _python()
        yield _torch()
        yield from _packages(tried)
        yield from _here()
        yield from (_extra(name, tried.result()) for name in EXTRAS)


def _here() -> Iterator[Check]:
    yield _codecs()
    yield _opencv()
    yield _mediapipe()
    try:
        from ..weights import files as _files  # noqa: F401  what looks into files needs torch
        from ..weights.registry import ENTRIES
    except ImportError as error:
        yield Check("weights", "missing", f"cannot be looked for ({error})", _install("safetensors"), needed=True)
        return
    yield from (_weights(entry.name) for entry in ENTRIES)
    yield _room()


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Check("Python", "missing", f"{found} is too old", "use Python 3.10 or newer", needed=True)
    return Check("Python", "ok", f"{found} on {platform.system()} {platform.machine()}")


def _torch() -> Check:
    try:
        import torch

        from ..models.device import pick_device, pick_dtype, short_name
    except ImportError as error:
        return Check("torch", "missing", _reason(error), f'pip install "{REQUIREMENTS["torch"]}"', needed=True)
    device = pick_device()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} cores"
    kind = short_name(pick_dtype("auto", device))
    return Check("torch", "ok", f"{torch.__version__}; --device auto takes {device} ({name}) with {kind}")


def _try_slow() -> dict[str, str]:
    """What is installed of EXTRAS and SLOW → why it cannot be imported, "" if it can."""
    modules = {name: [module] for name, module in SLOW.items()}
    for extra, parts in EXTRAS.items():
        modules[extra] = [module for package, module in parts.items() if _version(package)]
    return dict(try_all(modules))


def _version(package: str) -> str:
    """ "" where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _packages(tried: "Future[dict[str, str]]") -> Iterator[Check]:
    for name in ("numpy", "safetensors", "soxr", "typer", "rich"):
        yield _importable(name, lambda name=name: version(name))
    for name in SLOW:
        problem = tried.result()[name]
        if _version(name) and problem:
            yield Check(name, "missing", problem, _install(name), needed=True)
        else:
            yield _importable(name, lambda name=name: version(name))


def _extra(name: str, tried: Mapping[str, str]) -> Check:
    """An extra that is not installed is an offer; one that is has been imported."""
    found = {package: _version(package) for package in EXTRAS[name]}
    modules = dict.fromkeys(module.partition(".")[0] for module in EXTRAS[name].values())
    install, label = "pip install " + " ".join(f'"{REQUIREMENTS[one]}"' for one in modules), f"extra {name}"
    if problem := tried[name]:
        from ..models.libraries import torchvision_advice

        advice = torchvision_advice() if problem.startswith("torchvision") else f"pip uninstall, then {install}"
        return Check(label, "note", f"does not work: {problem}", advice)
    if absent := [package for package, number in found.items() if not number]:
        return Check(label, "note", f"not installed: {', '.join(absent)}", install)
    return Check(label, "ok", ", ".join(f"{package} {number}" for package, number in found.items()))


def _importable(name: str, describe: Callable[[], str], module: str = "") -> Check:
    """A package that is needed: its metadata, and whether it can be imported where that is quick."""
    try:
        if name not in SLOW:
            import_module(module or name)
        return Check(name, "ok", describe())
    except PackageNotFoundError:
        return Check(name, "missing", "not installed", _install(module or name), needed=True)
    except Exception as error:  # a broken package may fail in any way, and the doctor has to say so
        packages = _system_packages(error)
        fix = f"apt-get install {packages}" if packages else _install(module or name)
        return Check(name, "missing", _reason(error), fix, needed=True)


def _install(module: str) -> str:
    """All at once in a checkout or a pack; where the package was installed from a wheel, one by one."""
    if _REQUIREMENTS_FILE.is_file():
        return "pip install -r requirements.txt"
    return f'pip install "{REQUIREMENTS[module]}"'


def _codecs() -> Check:
    def describe() -> str:
        names = {"libx264": "H.264", "aac": "AAC", "libvpx-vp9": "VP9", "libopus": "Opus"}
        able = [shown for codec, shown in names.items() if _has_encoder(codec)]
        if "H.264" not in able:
            raise RuntimeError("this build has no libx264, which writes mp4")
        return f"{version('av')}, writes {', '.join(able)}"

    return _importable("av", describe)


def _has_encoder(name: str) -> bool:
    from av.codec import Codec

    try:
        return Codec(name, "w") is not None
    except ValueError:
        return False


def _opencv() -> Check:
    names = {str(d.metadata["Name"]) for d in distributions()}
    wheels = sorted(name for name in names if name.lower().startswith(("opencv-", "opencv_")))
    check = _importable("opencv", lambda: f"{import_module('cv2').__version__} ({', '.join(wheels)})", module="cv2")
    if check.state == "ok" and len(wheels) > 1:
        return Check(
            "opencv",
            "note",
            f"{len(wheels)} packages write into the same cv2 folder: {', '.join(wheels)}",
            f"pip uninstall {' '.join(wheels)}, then pip install opencv-contrib-python (the one mediapipe asks for)",
        )
    return check


def _mediapipe() -> Check:
    def describe() -> str:
        from ..face.detect import FaceFinder

        model = place("face-landmarker")
        if model is None:
            import_module("mediapipe.tasks.python.vision")
            return f"{version('mediapipe')}; not tried, its model file is missing"
        FaceFinder(model).close()
        return f"{version('mediapipe')}, the face landmarker starts"

    return _importable("mediapipe", describe)


def _weights(name: str) -> Check:
    from ..weights.registry import get, with_required

    entry = get(name)
    needed = entry in with_required(["nano"])
    path = place(name)
    problem = _problem(entry, path) if path else "not here"
    if not problem:
        return Check(name, "ok", f"{entry.title}: {path}", needed=needed)
    size = "" if entry.built_in else f" ({entry.size}, {entry.license})"
    fix = "install latentsync again, its assets are not complete" if entry.built_in else f"{command()} download {name}"
    return Check(name, "missing" if needed else "note", f"{entry.title}{size}: {problem}", fix, needed)


def _problem(entry: "ModelEntry", path: Path) -> str:
    """What a look at the size, or at the header of our own small file, finds wrong."""
    size = path.stat().st_size
    if entry.bytes and path.name == entry.file and size != entry.bytes:
        return f"{path} has {size:,} bytes where {entry.bytes:,} are right"
    if not entry.built_in:
        return ""
    try:
        from ..weights.identify import identify
    except ModuleNotFoundError:  # torch, which another line says
        return ""
    return identify(path).problem or ""


def _room() -> Check:
    from ..weights.registry import human_size, model_folders

    folder = model_folders()[0]
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{human_size(free)} free for downloads in {folder}"
    if free < LEAST_ROOM:
        return Check("disk", "note", detail, "make room, or let LATENTSYNC_MODELS name a folder on another disk")
    return Check("disk", "ok", detail)


def _system_packages(error: BaseException) -> str:
    """Wheels that need a library of the system fail to load with its file name."""
    return next((package for library, package in _SYSTEM_LIBRARIES.items() if library in str(error)), "")


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
