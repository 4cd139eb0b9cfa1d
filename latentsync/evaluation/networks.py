"""Networks for the metrics: the user's TorchScript files, or those of known libraries with weights on this machine.

Nothing is downloaded here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, missing_package
from ..models.libraries import hide_broken_torchvision, torchvision_advice
from .image_metrics import FVD_FRAMES, Features, pixels

LPIPS_FILES = {"alex": "alexnet-", "vgg": "vgg16-", "squeeze": "squeezenet1_1-"}
"""Beginnings of torchvision's file names."""
INCEPTION, INCEPTION_FILE = "inception", "weights-inception-2015-12-05-6726825d.pth"
"""torch-fidelity's copy of the network of the published FID."""

ARNIQA, ARNIQA_FILES = "arniqa", ("ARNIQA.pth", "regressor_koniq10k.pth")
"""Its authors' names, as torchmetrics 1.8 loads them."""


class Network:
    """A TorchScript file that the user trusts: loading it runs its code.

    If its forward has arguments `return_features`, `rescale` or `resize`, as in the public Inception and I3D files,
    they are passed as true.
    """

    EXTRAS = ("return_features", "rescale", "resize")

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        self.name, self.device = str(path), device
        if not Path(path).is_file():
            raise UserError(f"There is no file {path}; give a TorchScript network (torch.jit.save).")
        try:
            self.module: Any = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is not a TorchScript network; export one with torch.jit.save.") from error
        arguments = {argument.name for argument in self.module.forward.schema.arguments}
        self.extras = {name: True for name in self.EXTRAS if name in arguments}

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Tensor:
        try:
            out = self.module(*(x.to(self.device) for x in inputs), **self.extras)
        except RuntimeError as error:
            shape = " and ".join("×".join(map(str, x.shape)) for x in inputs)
            last = str(error).strip().splitlines()[-1]
            raise UserError(f"{self.name} cannot take images of {shape} ({last}); see docs/evaluation.md.") from error
        return out.float().cpu()


def fid_network(name: str, device: str = "cpu") -> Features:
    """ "inception", or a TorchScript file."""
    return Inception(device) if name == INCEPTION else Network(name, device)


def fvd_network(name: str, device: str = "cpu") -> Features:
    """A folder with a VideoMAE, or a TorchScript file (I3D)."""
    return VideoMae(Path(name), device) if Path(name).is_dir() else Network(name, device)


class Quality:
    """Image quality without a reference: "arniqa" (Agnolucci et al. 2024, on KonIQ-10k as HyperIQA) by torchmetrics, or
    a TorchScript file that takes (N, 3, H, W) in [0, 1] and gives N scores. Higher is better."""

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        self.name, self.device = name_or_path, device
        self._net: Any = _arniqa(device) if name_or_path == ARNIQA else Network(name_or_path, device)

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> float:
        """picture: (H, W, 3) uint8."""
        scores = self._net((pixels([picture]) / 255).to(self.device))
        if scores.numel() != 1:
            raise UserError(f"{self.name} gave {tuple(scores.shape)} for one image; it must give one score an image.")
        return float(scores)


def _arniqa(device: str) -> Any:
    for file in ARNIQA_FILES:
        _hub_file(file, "ARNIQA", "--quality-network")
    problem = hide_broken_torchvision()
    try:
        from torchmetrics.image.arniqa import ARNIQA as Metric

        return Metric(regressor_dataset="koniq10k").to(device).eval()
    except ImportError as error:
        raise _lacking("ARNIQA", problem, "torchmetrics", "torchvision") from error


class Inception:
    """2048 features of Inception v3 as in the published FID (Heusel et al. 2017), by torchmetrics."""

    name = INCEPTION

    def __init__(self, device: str = "cpu") -> None:
        file = _hub_file(INCEPTION_FILE, "FID's Inception", "--fid-network")
        problem = hide_broken_torchvision()
        try:
            from torchmetrics.image.fid import NoTrainInceptionV3

            self.module: Any = NoTrainInceptionV3("inception-v3-compat", ["2048"], str(file)).to(device)
        except ImportError as error:
            raise _lacking("FID", problem, "torchmetrics", "torch_fidelity", "torchvision") from error
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures: Tensor, /) -> Tensor:
        return self.module(pictures.round().clamp(0, 255).to(self.device, torch.uint8)).float().cpu()


class VideoMae:
    """Mean of VideoMAE's last hidden states; FVD on them follows motion more than on I3D's (Ge et al. 2024)."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        from ..models.perceptual import load_videomae

        self.name, self.device = str(folder), device
        self.features = load_videomae(folder, device, FVD_FRAMES)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, /) -> Tensor:
        from ..models.perceptual import videomae_input

        frames = pictures.to(self.device).transpose(1, 2) / 127.5 - 1
        return self.features(videomae_input(frames)).float().cpu()


class Lpips:
    """LPIPS (Zhang et al. 2018): "alex", "vgg" or "squeeze" by torchmetrics, or a TorchScript file that takes two
    (N, 3, H, W) in [-1, 1] and gives N distances. 0 … about 1, 0 if equal."""

    def __init__(self, name_or_path: str, device: str = "cpu") -> None:
        self.device = device
        known = name_or_path in LPIPS_FILES
        self._net: Any = _torchmetrics_lpips(name_or_path, device) if known else Network(name_or_path, device)

    @torch.no_grad()
    def __call__(self, a: np.ndarray, b: np.ndarray) -> float:
        x, y = (pixels([p]) / 127.5 - 1 for p in (a, b))
        return float(self._net(x.to(self.device), y.to(self.device)).mean())


def _torchmetrics_lpips(name: str, device: str) -> Any:
    _hub_file(LPIPS_FILES[name] + "*.pth", f"LPIPS {name}", "--lpips")
    problem = hide_broken_torchvision()
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        return LearnedPerceptualImagePatchSimilarity(net_type=name).to(device).eval()  # type: ignore[arg-type]
    except ImportError as error:
        raise _lacking("LPIPS", problem, "torchmetrics", "torchvision") from error


def _lacking(what: str, problem: str, *modules: str) -> UserError:
    """problem: of the installed torchvision."""
    if problem:
        broken = f"torchvision, which cannot be imported here ({problem})"
        return UserError(f"{what} needs {broken}; {torchvision_advice()}.")
    return missing_package(what, *modules)


def _hub_file(pattern: str, what: str, option: str) -> Path:
    """Weights in PyTorch's hub folder. UserError: they are not there."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = sorted(folder.glob(pattern))
    if not found:
        raise UserError(
            f"{what} needs the file {pattern} in {folder}, which is not there; fetch it, or give a TorchScript file by"
            f" {option}, or leave {option} out."
        )
    return found[0]
