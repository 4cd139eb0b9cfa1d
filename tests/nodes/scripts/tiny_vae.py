"""nano with a tiny VAE beside ComfyUI's own loader of such VAEs: whose latents fit whose, and what previews show."""

from begin import JOB, answer, pack, start

start(["--cpu"])

import comfy.latent_formats  # noqa: E402
import folder_paths  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy.cli_args import LatentPreviewMethod, args  # noqa: E402

import nodes  # noqa: E402

torch.set_num_threads(1)
torch.set_grad_enabled(False)
folder_paths.add_model_folder_path("latentsync", JOB["folder"])
host, sampling, previews = (pack(f"nodes.host{name}") for name in ("", ".sampling", ".previews"))
registry, vae_files = pack("latentsync.weights.registry"), pack("latentsync.weights.vae_files")
crops = torch.from_numpy(np.load(JOB["crops"])).float() / 255
FOUR = np.linspace(0, len(crops) - 1, 4).astype(int)
SD15 = comfy.latent_formats.SD15()


def apart(a, b):
    return float((a - b).norm() / b.norm())


def look(previewed, scaled):
    """A preview's mean color against that of the pictures it shows, in grey levels, and its size."""
    picture = previewed.picture(scaled)
    if picture is None:
        return None
    off = np.asarray(picture, float).mean((0, 1)) - 255 * crops[FOUR].numpy().mean((0, 1, 2))
    return {"off": float(np.abs(off).max()), "size": picture.size}


def looks(scaled):
    """For each of ComfyUI's settings: of a new run, and of a second step at once."""
    found = {}
    for method in LatentPreviewMethod:
        args.preview_method = method
        run = previews.Previews(SD15)
        found[method.value] = [look(run, scaled), look(run, scaled)]
    return found


model, vae, _ = host.load(JOB["checkpoint"], None, None)
own = vae.first_stage_model.vae
latents, scaled = vae.encode(crops), own.encode(crops.movedim(-1, 1) * 2 - 1)
engine = sampling._Autoencoder(vae, model.model.latent_format)
facts = {
    "model": apart(model.model.process_latent_in(latents), scaled),
    "1.5": apart(SD15.process_in(latents), scaled),
    "engine encodes": apart(engine.encode(crops.movedim(-1, 1) * 2 - 1), scaled),
    "rows kept": apart(engine.decode(scaled, 40)[:, :, 40:], own.decode(scaled).clamp(-1, 1)[:, :, 40:]),
    "rows left out": float(engine.decode(scaled, 40)[:, :, :40].std(-2).max()),
}
known = vae_files.load_vae(JOB["taesd"])
pictures = known.encode(crops.movedim(-1, 1) * 2 - 1)
# what previews show is what this VAE makes of its latents, with random weights too
crops = (known.decode(pictures).movedim(1, -1) / 2 + 0.5).clamp(0, 1)
registry.ASSETS = registry.Path(JOB["plain"])  # as if the built-in model had no such VAE
facts["without"] = looks(pictures)
folder_paths.add_model_folder_path("vae_approx", JOB["taesd"])
(theirs,) = nodes.VAELoader().load_vae("taesd")
facts["theirs"] = apart(theirs.decode(SD15.process_out(pictures)), crops)
facts["with"] = looks(pictures)
registry.ASSETS = registry.Path(JOB["assets"])  # and as if it had one of its own weights
args.preview_method = LatentPreviewMethod.Auto
crops = (own.decode(scaled).movedim(1, -1) / 2 + 0.5).clamp(0, 1)
facts["nano"] = look(previews.Previews(SD15), scaled)
answer(**facts)
