"""How fast a U-Net is trained: python -m benchmarks.training PREPARED [--sizes tiny small] [--json FILE]

PREPARED is a folder of `latentsync prepare`. Every combination of size, latents (cached, or encoded at each step) and
worker processes is trained for some steps by the trainer itself, after some that do not count, in a temporary folder.
Clips (windows of 16 frames) a second and the share of the time that the trainer waits for data are what every run
logs. CPU seconds are those of the trainer's process, all its threads together; they hardly change when other programs
keep the processor busy. There are no pixel losses: their networks are the user's. Filling the caches is timed apart.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latentsync.dataset import ClipFile, find_clips
from latentsync.models.vae import VAE
from latentsync.training.dataset import ClipDataset, ClipStore, to_signed
from latentsync.training.distributed import make_accelerator
from latentsync.training.logging import read_log
from latentsync.training.recipes import STAGES, UNetRecipe, unet_recipe
from latentsync.training.trainer import Trainer
from latentsync.training.unet.data import UNetWindows
from latentsync.training.unet.init import initial_unet
from latentsync.training.unet.task import UNetTask
from latentsync.weights.vae_files import load_vae
from latentsync.weights.whisper_files import load_whisper

WARM = 2
"""Steps that do not count: the first ones create the optimizer's state and wait for the workers."""
LATENTS = "latents"
NO_PIXEL_LOSSES = {"sync_weight": 0.0, "lpips": "off", "trepa_weight": 0.0}


@dataclass
class Bench:
    """What all combinations share."""

    args: argparse.Namespace
    clips: list[ClipFile]
    store: ClipStore
    vae: VAE
    audio_dim: int
    folder: Path

    def recipe(self, workers: int) -> UNetRecipe:
        args = self.args
        settings = {
            "resolution": args.resolution,
            "batch_size": args.batch_size,
            "precision": args.precision,
            "workers": workers,
        }
        settings |= {"steps": WARM + args.steps, "gradient_checkpointing": args.gradient_checkpointing}
        return unet_recipe(args.stage, None, **settings, **NO_PIXEL_LOSSES, log_every=1, save_every=10**9)

    def task(self, size: str, cached: bool, recipe: UNetRecipe) -> UNetTask:
        start = initial_unet("none", recipe, size=size, audio_dim=self.audio_dim, channels=self.vae.channels)
        make = UNetWindows(self.store, pixels=False, latents=LATENTS if cached else None)
        return UNetTask(start.unet, self.vae, recipe, ClipDataset(self.clips, make, recipe.seed))

    def fill(self) -> dict[str, float]:
        """CPU seconds that the caches take for a second of film."""
        seconds = sum(self.store.info(clip).frames for clip in self.clips) / 25
        task = self.task("tiny", False, self.recipe(0))

        def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return task.codec.encode_pair(to_signed(pixels))

        speech = cpu(lambda: [self.store.audio(clip, 0) for clip in self.clips])
        latents = cpu(lambda: [self.store.fill_latents(clip, LATENTS, encode) for clip in self.clips])
        return {"speech": round(speech / seconds, 3), "latents": round(latents / seconds, 3)}

    def measure(self, size: str, cached: bool, workers: int) -> dict[str, Any]:
        recipe, marks = self.recipe(workers), []
        accelerator = make_accelerator(recipe.precision, 1, cpu=self.args.cpu)

        def report(line: str) -> None:
            if "clips per second" in line:
                marks.append(time.process_time())

        run = self.folder / f"{size}-{cached}-{workers}"
        Trainer(self.task(size, cached, recipe), recipe, run, accelerator, report).fit()
        lines = [line for line in read_log(run) if line["step"] > WARM]
        clips = len(lines) * recipe.batch_size
        worked = sum(recipe.batch_size / line["clips per second"] for line in lines)
        waited = sum(line["waiting for data"] * recipe.batch_size / line["clips per second"] for line in lines)
        return {
            "size": size,
            "latents": "cached" if cached else "encoded",
            "workers": workers,
            "clips_per_second": round(clips / worked, 3),
            "waiting_share": round(waited / worked, 3),
            "cpu_seconds_per_clip": round((marks[-1] - marks[WARM - 1]) / clips, 3),
        }


def cpu(work: Any) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measured(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    whisper, vae = load_whisper(args.whisper), load_vae(args.vae)
    clips = find_clips(args.prepared)[: args.clips]
    bench = Bench(args, clips, ClipStore(folder / "cache", args.resolution, whisper), vae, whisper.dim, folder)
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "precision": args.precision,
        "stage": args.stage,
        "resolution": args.resolution,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "clips": len(clips),
        "vae": args.vae,
        "cpu_seconds_per_second_of_film": bench.fill(),
        "runs": [bench.measure(*choice) for choice in product(args.sizes, (True, False), args.workers)],
        "load_average": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def table(facts: dict[str, Any]) -> str:
    fill = facts["cpu_seconds_per_second_of_film"]
    lines = [
        f"{facts['machine']}, load {facts['load_average']}; torch {facts['torch']}, {facts['precision']}",
        f"stage {facts['stage']} at {facts['resolution']} px, batch size {facts['batch_size']}, {facts['steps']} steps",
        f"caches, CPU seconds for a second of film: speech {fill['speech']}, latents {fill['latents']}",
        f"{'size':8} {'latents':8} {'workers':>7} {'clips/s':>8} {'waiting':>8} {'CPU s a clip':>13}",
    ]
    for run in facts["runs"]:
        lines.append(
            f"{run['size']:8} {run['latents']:8} {run['workers']:7} {run['clips_per_second']:8.3f}"
            f" {100 * run['waiting_share']:7.0f}% {run['cpu_seconds_per_clip']:13.3f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="a folder of `latentsync prepare`")
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small"])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--stage", choices=STAGES, default="1")
    parser.add_argument("--clips", type=int, default=8, help="so many of the folder, the first ones")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="that count")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--vae", default="nano")
    parser.add_argument("--whisper", default="tiny.en")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--threads", type=int, help="of torch; its own choice without")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        facts = measured(args, Path(folder))
    print(table(facts))
    if args.json:
        args.json.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
