"""This engine beside the public LatentSync code: python -m benchmarks.compare --reference CHECKOUT [--parts unet …]

CHECKOUT is a clone of github.com/bytedance/LatentSync (a229c39 is the last known to work); nothing of it is copied. It
needs `pip install einops kornia`; its other packages are replaced by empty ones, or in torchvision's case by what is
used of it, because nothing that is measured calls them. Both sides get the same random weights of the published size
from the same files and the same inputs, and run by turns, each time in a fresh process: so a machine that gets slower
or hotter is slower for both. Figures are medians over the rounds; CPU seconds are those of the process.

  unet       one pass over a window of 16 frames (256 px unless said), one branch, no solver around it
  vae        encoding 16 pictures, decoding 16 latents
  align      cutting the face out of a 1080 x 1920 frame, its points given
  paste      putting it back
  masks      pictures of a window to what the VAE is given

For unet and vae also the time to import and load, and the largest resident memory after loading and after the pass,
each by its own loader (the reference: from_pretrained and torch.load, then .to(dtype), as in its scripts). "same": the
largest difference of outputs where both compute the same function; align and paste are compared in the reference's way
of computing them, which this engine has as an option, and timed in its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("unet", "vae", "align", "paste", "masks")
SIDES = ("reference", "ours")
WIDTHS = (320, 640, 1280, 1280)
VAE_WIDTHS = (128, 256, 512, 512)
FRAMES = 16
AUDIO = (50, 384)
POINTS = np.array([[480.0, 720.0], [600.0, 716.0], [541.0, 782.0]])
"""Brows and nose of a face 300 pixels high in a frame of 1080 x 1920."""
ABSENT = ("decord", "insightface", "imageio", "soundfile", "torchvision", "matplotlib", "python_speech_features")
"""What the reference imports and nothing here calls."""


class _Empty(types.ModuleType):
    """A module that has whatever is asked of it; what it has does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stand(MetaPathFinder, Loader):
    """Finds empty modules for packages that are absent."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.split(".")[0] not in ABSENT:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "torchvision":
            modes = types.SimpleNamespace(BICUBIC="bicubic")
            used = types.SimpleNamespace(Resize=_Resize, Normalize=_Normalize, InterpolationMode=modes)
            module.__dict__.update(transforms=used)


class _Resize:
    """torchvision's, for tensors: nothing where the size is right."""

    def __init__(self, size: tuple[int, int], **_: Any) -> None:
        self.size = size

    def __call__(self, image: Any) -> Any:
        import torch.nn.functional as F

        if tuple(image.shape[-2:]) == tuple(self.size):
            return image
        return F.interpolate(image[None].float(), self.size, mode="bicubic", antialias=True)[0]


class _Normalize:
    def __init__(self, mean: list[float], std: list[float], inplace: bool = False) -> None:
        self.mean, self.std = mean[0], std[0]

    def __call__(self, image: Any) -> Any:
        return image.sub_(self.mean).div_(self.std)


def peak_mb() -> float:
    """Largest resident size of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def timed(work: Callable[[], Any], repeats: int, warm: bool = True) -> tuple[dict[str, float], Any]:
    result = work() if warm else None
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        result = work()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    return {"wall": median(wall), "cpu": median(cpu)}, result


def inputs(part: str, resolution: int) -> dict[str, np.ndarray]:
    """The same for both sides."""
    random, cells = np.random.default_rng(0), resolution // 8
    if part == "unet":
        sample = random.standard_normal((1, 13, FRAMES, cells, cells), np.float32)
        return {"sample": sample, "audio": random.standard_normal((FRAMES, *AUDIO), np.float32)}
    if part == "vae":
        pixels = random.uniform(-1, 1, (FRAMES, 3, resolution, resolution)).astype(np.float32)
        return {"pixels": pixels, "latents": random.standard_normal((FRAMES, 4, cells, cells), np.float32)}
    import cv2

    coarse = random.integers(0, 255, (240, 135, 3), dtype=np.uint8)
    frame = cv2.resize(coarse, (1080, 1920), interpolation=cv2.INTER_CUBIC)
    faces = random.integers(0, 255, (FRAMES, resolution, resolution, 3), dtype=np.uint8)
    return {"frame": frame, "faces": cv2.GaussianBlur(faces[0], (0, 0), 2)[None] if part == "paste" else faces}


# --- the two sides: name of a figure to (seconds, output) ------------------------------------------------------------


def reference_part(options: argparse.Namespace, given: dict[str, np.ndarray]) -> dict[str, Any]:
    begun = Loading()
    import torch

    dtype = getattr(torch, options.dtype)
    if options.part == "vae":
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        vae: Any = AutoencoderKL.from_pretrained(options.weights, torch_dtype=dtype)
        facts = begun.done()
        pixels, latents = (torch.from_numpy(given[name]).to(dtype) for name in ("pixels", "latents"))
        encoded = measured("encode", lambda: vae.encode(pixels).latent_dist.mean * 0.18215, options)
        return facts | encoded | measured("decode", lambda: vae.decode(latents / 0.18215).sample, options)
    if options.part == "unet":
        import_module("diffusers.models.modeling_utils")  # before the stand-ins: it asks what is installed
    sys.meta_path.insert(0, _Stand())
    sys.path.insert(0, str(options.reference))
    if options.part == "unet":
        from latentsync.models.unet import UNet3DConditionModel  # type: ignore[import-not-found]

        config = reference_config(options.reference, options.widths)
        unet, _ = UNet3DConditionModel.from_pretrained(config, str(options.weights), "cpu")
        unet = unet.to(dtype=dtype).eval()
        facts = begun.done()
        sample, audio = (torch.from_numpy(given[name]).to(dtype) for name in ("sample", "audio"))
        step = torch.tensor(951)
        return facts | measured("pass", lambda: unet(sample, step, encoder_hidden_states=audio).sample, options)
    import cv2
    from latentsync.utils import image_processor  # type: ignore[import-not-found]
    from latentsync.utils.affine_transform import AlignRestore  # type: ignore[import-not-found]

    side = options.resolution
    restorer = AlignRestore(resolution=side, device="cpu", dtype=torch.float32)

    def align() -> tuple[np.ndarray, Any]:
        restorer.p_bias = None  # as for the first frame
        face, matrix = restorer.align_warp_face(given["frame"].copy(), landmarks3=np.round(POINTS), smooth=True)
        return cv2.resize(face, (side, side), interpolation=cv2.INTER_LANCZOS4), matrix

    if options.part == "align":
        return measured("align", lambda: align()[0], options)
    if options.part == "paste":
        _, matrix = align()
        face = torch.from_numpy(given["faces"][0]).permute(2, 0, 1) / 127.5 - 1
        size = restorer.face_size[::-1]
        return measured("paste", lambda: restorer.restore_img(given["frame"], _Resize(size)(face), matrix), options)
    mask = image_processor.load_fixed_mask(side, str(options.reference / "latentsync" / "utils" / "mask.png"))
    processor = image_processor.ImageProcessor(side, device="cpu", mask_image=mask)
    return measured("masks", lambda: processor.prepare_masks_and_masked_images(given["faces"])[1], options)


def our_part(options: argparse.Namespace, given: dict[str, np.ndarray]) -> dict[str, Any]:
    begun = Loading()
    import torch

    from latentsync.models.subpixel import quicken
    from latentsync.weights.load import load_unet
    from latentsync.weights.vae_files import load_vae

    dtype, side = getattr(torch, options.dtype), options.resolution
    if options.part == "unet":
        unet: Any = load_unet(options.weights, dtype=dtype, resolution=side)
        facts = begun.done()
        sample, audio = (torch.from_numpy(given[name]).to(dtype) for name in ("sample", "audio"))
        return facts | measured("pass", lambda: unet(sample, 951, audio[None]), options)
    if options.part == "vae":
        vae: Any = quicken(load_vae(options.weights, dtype=dtype))  # as runs do
        facts = begun.done()
        pixels, latents = (torch.from_numpy(given[name]).to(dtype) for name in ("pixels", "latents"))
        encoded = measured("encode", lambda: vae.encode(pixels), options)
        return facts | encoded | measured("decode", lambda: vae.decode(latents), options)
    from latentsync.conditions import ConditionEncoder
    from latentsync.face.align import align_matrices, crop_face
    from latentsync.face.composite import paste

    frame = given["frame"]

    def align(reference: bool) -> tuple[np.ndarray, np.ndarray]:
        matrix = align_matrices(POINTS[None], side, reference=reference)[0]
        return crop_face(frame, matrix, side, reference=reference), matrix

    if options.part == "align":
        return measured("align", lambda: align(False)[0], options, same=lambda: align(True)[0])
    if options.part == "paste":
        face, (_, own), (_, theirs) = given["faces"][0], align(False), align(True)
        return measured(
            "paste",
            lambda: paste(frame, face, own, resolution=side)[0],
            options,
            same=lambda: paste(frame, face, theirs, resolution=side, reference=True)[0],
        )
    encoder = ConditionEncoder(_Through(), side)
    return measured(
        "masks", lambda: encoder.encode(given["faces"]), options, same=lambda: encoder.encode(given["faces"])[:, :3]
    )


class _Through:
    """A VAE whose latents are the pixels."""

    channels, factor = 3, 8

    def encode(self, pixels: Any) -> Any:
        return pixels

    def decode(self, latents: Any, top: int = 0) -> Any:
        return latents


class Loading:
    """Seconds and memory since the side began, its imports among them."""

    def __init__(self) -> None:
        self._start, self._cpu = time.perf_counter(), time.process_time()

    def done(self) -> dict[str, float]:
        spent = {"load.wall": time.perf_counter() - self._start, "load.cpu": time.process_time() - self._cpu}
        return spent | {"loaded_mb": peak_mb()}


def measured(
    name: str, work: Callable[[], Any], options: argparse.Namespace, same: Callable[[], Any] | None = None
) -> dict[str, Any]:
    """Figures of the work; its output (or that of `same`) is left in the folder for the comparison."""
    import torch

    with torch.inference_mode():
        heavy = options.part in ("unet", "vae")
        spent, result = timed(work, 1 if heavy else 10, warm=not heavy or options.warm)
        result = result if same is None else same()
    array = result.float().numpy() if isinstance(result, torch.Tensor) else np.asarray(result)
    np.save(options.out / f"{name}.{options.child}.npy", array)
    return {f"{name}.wall": spent["wall"], f"{name}.cpu": spent["cpu"], "peak_mb": peak_mb()}


def reference_config(checkout: Path, widths: tuple[int, ...]) -> dict[str, Any]:
    """The model section of its own configuration."""
    import yaml

    config = yaml.safe_load((checkout / "configs" / "unet" / "stage2.yaml").read_text())["model"]
    # PyYAML reads 1e-5 as a word
    return config | {"block_out_channels": list(widths), "norm_eps": float(config["norm_eps"])}


def write_weights(part: str, widths: tuple[int, ...], path: Path) -> Path:
    """Random numbers, as the published files have them: the U-Net a .pt in fp32, the VAE a folder of diffusers."""
    import torch

    from latentsync.evaluation.full_size import SD_VAE, random_unet, random_vae
    from latentsync.models.unet_config import UNetConfig

    torch.manual_seed(0)
    if part == "unet":
        unet = random_unet(UNetConfig(widths=widths), "cpu", torch.float32)
        torch.save({"global_step": 0, "state_dict": unet.state_dict()}, path / "unet.pt")
        return path / "unet.pt"
    vae = random_vae(SD_VAE | {"block_out_channels": widths}, "cpu", torch.float32)
    vae.model.save_pretrained(path / "vae")
    return path / "vae"


# --- the rounds ------------------------------------------------------------------------------------------------------


def child(*words: object) -> str:
    """What a fresh process of this script prints last."""
    command = [sys.executable, str(Path(__file__).resolve()), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()[-1]


def compare(part: str, dtype: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Medians of both sides over the rounds, and the largest difference of each output."""
    widths = options.widths if part == "unet" else options.vae_widths
    words: list[object] = ["--part", part, "--dtype", dtype, "--resolution", options.resolution]
    words += ["--reference", options.reference.resolve(), "--out", folder, "--widths", *widths]
    if part in ("unet", "vae"):
        weights = folder / ("unet.pt" if part == "unet" else "vae")
        if not weights.exists():
            child("--child", "weights", *words)
        words += ["--weights", weights]
    rounds: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(options.rounds):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            rounds[side].append(json.loads(child("--child", side, *words)))
            print(f"{part} {dtype}, round {number + 1}, {side}: {rounds[side][-1]}", file=sys.stderr, flush=True)
    facts: dict[str, Any] = {"part": part, "dtype": dtype, "figures": {}, "same": {}}
    for key in rounds["ours"][0]:
        facts["figures"][key] = {side: round(median(r[key] for r in rounds[side]), 4) for side in SIDES}
    for path in sorted(folder.glob("*.ours.npy")):
        theirs, ours = (np.load(folder / path.name.replace("ours", side)).astype(np.float64) for side in SIDES)
        largest = float(np.abs(theirs).max())
        facts["same"][path.name.split(".")[0]] = {"difference": float(np.abs(theirs - ours).max()), "largest": largest}
    for path in folder.glob("*.npy"):
        path.unlink()
    return facts


def table(rows: list[dict[str, Any]]) -> str:
    """Both sides and how many times less ours takes."""
    lines = [f"{'':28}{'reference':>12}{'ours':>12}{'ratio':>8}"]
    for row in rows:
        label = f"{row['part']} {row['dtype']}"
        for key, pair in row["figures"].items():
            unit = "MB" if key.endswith("_mb") else "s" if max(pair.values()) >= 1 else "ms"
            theirs, ours = (pair[side] * (1000 if unit == "ms" else 1) for side in SIDES)
            name = f"{label}, {key.removesuffix('_mb')}, {unit}"
            lines.append(f"{name:28}{theirs:12.2f}{ours:12.2f}{theirs / max(ours, 1e-9):8.2f}")
        for name, found in row["same"].items():
            lines.append(f"{label}, same {name}: differs by {found['difference']:.3g} of {found['largest']:.3g}")
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of bytedance/LatentSync")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--widths", type=int, nargs="+", default=list(WIDTHS), help="of the U-Net, for a quick look")
    parser.add_argument("--vae-widths", type=int, nargs="+", default=list(VAE_WIDTHS), help="of the VAE")
    parser.add_argument("--warm", action="store_true", help="run unet and vae once before they are timed")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    for name, kind in (("--child", str), ("--part", str), ("--dtype", str), ("--out", Path), ("--weights", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser


def main() -> None:
    options = arguments().parse_args()
    options.widths = tuple(options.widths)
    if options.child != "reference":
        sys.path.insert(0, str(ROOT))
    if options.child == "weights":
        print(write_weights(options.part, options.widths, options.out))
        return
    if options.child:
        part = reference_part if options.child == "reference" else our_part
        print(json.dumps(part(options, inputs(options.part, options.resolution))))
        return
    if not (options.reference / "latentsync" / "models" / "unet.py").is_file():
        raise SystemExit(f"{options.reference} is no checkout of bytedance/LatentSync; clone it and give its folder.")
    if missing := [name for name in ("einops", "kornia") if find_spec(name) is None]:
        raise SystemExit(f"The public code needs {' and '.join(missing)}; type pip install {' '.join(missing)}.")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for part in options.parts:
            for dtype in options.dtypes if part in ("unet", "vae") else ["float32"]:
                rows.append(compare(part, dtype, options, Path(folder)))
    print(table(rows))
    if options.json:
        from latentsync.evaluation.meters import machine

        facts = {"machine": machine("cpu"), "rounds": options.rounds, "resolution": options.resolution, "rows": rows}
        options.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
