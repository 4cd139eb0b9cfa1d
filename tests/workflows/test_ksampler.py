"""ComfyUI's own nodes in the place of ours: the same mouths come out."""

import numpy as np
import pytest

from latentsync.settings import Settings

from ..nodes.graphs import Node
from .api import api, pictures, psnr, the


class Variants:
    """The graph of parts.json, cut after Condition, and other ways from there to pictures without loss."""

    def __init__(self, **changes):
        self.graph = api("parts", **changes)
        self.loader, self.fitted, self.asked, self.heard = (
            Node(the(self.graph, f"LatentSync{kind}")) for kind in ("Loader", "FitLength", "Condition", "EncodeAudio")
        )
        self.ours = Node(the(self.graph, "LatentSyncSampler"))
        for kind in ("SaveVideo", "CreateVideo", "LatentSyncComposite", "VAEDecode", "PreviewImage"):
            del self.graph.prompt[the(self.graph, kind)]

    def node(self, kind, **inputs):
        return self.graph.node(kind, f"more {len(self.graph.prompt)}", **inputs)

    def decode(self, latent):
        return self.node("VAEDecode", samples=latent, vae=self.loader[1])

    def keep(self, crops):
        """Put the crops into the pictures; the ids of what saves these, and the mask."""
        done = self.node(
            "LatentSyncComposite",
            images=self.fitted,
            crops=crops,
            face_track=self.fitted[3],
            paste=Settings.paste,
        )
        mask = self.node("MaskToImage", mask=done[1])
        return tuple(self.node("SaveImage", images=one, filename_prefix="kept").id for one in (done, mask))


def mouth(comfy, run, kept):
    """The pixels that are repainted for the most part: (N, 3)."""
    made, mask = (pictures(comfy, run, node) for node in kept)
    assert len(made) == 20  # two windows
    return made[mask[..., 0] > 127]


@pytest.fixture(scope="module")
def sampled(comfy, files):
    """20 steps by LatentSyncSampler, KSampler and SamplerCustomAdvanced, in one run."""
    v = Variants(fit="silence")
    assert (Settings.solver, Settings.steps) == ("ddim", 20)
    stock = dict(api("ksampler").prompt[the(api("ksampler"), "KSampler")]["inputs"])
    assert (stock["sampler_name"], stock["scheduler"], stock["steps"]) == ("ddim", "ddim_uniform", 20)
    cond = {"positive": v.asked, "negative": v.asked[1]}
    simple = v.node("KSampler", **stock | {"model": v.loader, **cond, "latent_image": v.asked[2]})
    custom = v.node(
        "SamplerCustomAdvanced",
        noise=v.node("LatentSyncNoise", seed=stock["seed"]),
        guider=v.node("CFGGuider", model=v.loader, cfg=stock["cfg"], **cond),
        sampler=v.node("KSamplerSelect", sampler_name="ddim"),
        sigmas=v.node("BasicScheduler", model=v.loader, scheduler="ddim_uniform", steps=20, denoise=1.0),
        latent_image=v.asked[2],
    )
    kept = {name: v.keep(v.decode(one)) for name, one in (("ours", v.ours), ("simple", simple), ("custom", custom))}
    other = v.node("KSampler", **stock | {"model": v.loader, **cond, "latent_image": v.asked[2], "steps": 1, "seed": 5})
    kept["other"] = v.keep(v.decode(other))
    run = comfy.queue(v.graph).check()
    return {name: mouth(comfy, run, one) for name, one in kept.items()}


@pytest.mark.parametrize("name", ["simple", "custom"])
def test_stock_samplers_are_near_ours(sampled, name):
    near = psnr(sampled[name], sampled["ours"])
    assert near >= 30
    assert near > psnr(sampled["other"], sampled["ours"]) + 3  # it is not that all mouths are alike


def test_ksampler_and_the_advanced_one_are_the_same(sampled):
    """One noise for all frames, from the empty latent's batch_index or from LatentSync: Noise."""
    assert psnr(sampled["simple"], sampled["custom"]) > 50


def test_stock_nodes_between_ours(comfy, files):
    """Audio Encoder Encode in place of ours is the same to the bit; an upscaler before Composite is near."""
    v = Variants(steps=2, guidance=1.0, fit="silence")
    heard = v.node("AudioEncoderEncode", audio_encoder=v.loader[2], audio=v.fitted[1])
    asked = v.node("LatentSyncCondition", **v.graph.prompt[v.asked.id]["inputs"] | {"audio": heard})
    sampling = v.graph.prompt[v.ours.id]["inputs"]
    latent = v.node("LatentSyncSampler", **sampling | {"positive": asked, "negative": asked[1], "latent": asked[2]})
    crops = v.decode(v.ours)
    larger = v.node("ImageScaleBy", image=crops, upscale_method="bicubic", scale_by=2.0)
    kept = {"ours": v.keep(crops), "stock": v.keep(v.decode(latent)), "larger": v.keep(larger)}
    run = comfy.queue(v.graph).check()
    made = {name: mouth(comfy, run, one) for name, one in kept.items()}
    assert np.array_equal(made["stock"], made["ours"])
    assert not np.array_equal(made["larger"], made["ours"])
    assert psnr(made["larger"], made["ours"]) > 30
