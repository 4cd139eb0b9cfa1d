"""ComfyUI's own nodes in the place of ours: the same mouths come out."""

import numpy as np
import pytest

from latentsync.settings import GUIDANCE, STEPS, Settings

from ..nodes.graphs import Node
from .api import api, pictures, psnr, the


class Variants:
    """The graph of single_nodes.json, cut after Condition, and other ways from there to pictures without loss."""

    def __init__(self, **changes):
        self.graph = api("single_nodes", **changes)
        self.loader, self.fitted, self.asked, self.heard = (
            Node(the(self.graph, f"LatentSync{kind}")) for kind in ("Loader", "FitLength", "Condition", "EncodeAudio")
        )
        self.ours = Node(the(self.graph, "LatentSyncSampler"))
        for kind in ("SaveVideo", "CreateVideo", "LatentSyncComposite", "VAEDecode"):
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
        )
        mask = self.node("MaskToImage", mask=done[1])
        return tuple(self.node("SaveImage", images=one, filename_prefix="kept").id for one in (done, mask))


def mouth(comfy, run, kept):
    """The pixels that are repainted for the most part: (N, 3)."""
    made, mask = (pictures(comfy, run, node) for node in kept)
    assert len(made) == 20  # two windows
    return made[mask[..., 0] > 127]


def stock(v, **changes):
    """The KSampler of ksampler.json in the graph of single_nodes.json."""
    known = api("ksampler", **changes)
    inputs = dict(known.prompt[the(known, "KSampler")]["inputs"])
    inputs |= {"model": v.loader, "positive": v.asked, "negative": v.asked[1], "latent_image": v.asked[2]}
    return v.node("KSampler", **inputs)


def made_by(comfy, v, sampled):
    kept = v.keep(v.decode(sampled))
    return mouth(comfy, comfy.queue(v.graph, timeout=1500).check(), kept)


# nano's one step, as the template has it, and the 20 of the published models
NANO = {"steps": 1, "cfg": 1.0, "scheduler": "simple"}
USUAL = {"steps": STEPS, "cfg": GUIDANCE, "scheduler": "ddim_uniform"}


@pytest.mark.parametrize("how", [NANO, USUAL], ids=["one step", "20 steps"])
def test_ksampler_is_near_ours(comfy, files, how):
    """The same noise, two windows."""
    inputs = api("ksampler").prompt[the(api("ksampler"), "KSampler")]["inputs"]
    assert inputs | NANO == inputs
    assert Settings.solver == inputs["sampler_name"] == "ddim"
    v = Variants(steps=how["steps"], guidance=how["cfg"], fit="silence")
    ours = made_by(comfy, v, v.ours)
    v = Variants(fit="silence")
    theirs = made_by(comfy, v, stock(v, **how))
    v = Variants(fit="silence")
    other = made_by(comfy, v, stock(v, **USUAL | {"steps": 2, "cfg": 4.0}))
    assert psnr(theirs, ours) >= 30
    assert psnr(theirs, ours) > psnr(other, ours) + 3  # it is not that all mouths are alike


def test_sampler_custom_advanced_is_ksampler(comfy, files):
    """One noise for all frames, from the empty latent's batch_index or from LatentSync: Noise."""
    v = Variants(fit="silence")
    custom = v.node(
        "SamplerCustomAdvanced",
        noise=v.node("LatentSyncNoise", seed=Settings.seed),
        guider=v.node("CFGGuider", model=v.loader, positive=v.asked, negative=v.asked[1], cfg=1.0),
        sampler=v.node("KSamplerSelect", sampler_name="ddim"),
        sigmas=v.node("BasicScheduler", model=v.loader, scheduler="simple", steps=2, denoise=1.0),
        latent_image=v.asked[2],
    )
    kept, simple = v.keep(v.decode(custom)), v.keep(v.decode(stock(v, steps=2, cfg=1.0)))
    run = comfy.queue(v.graph).check()
    assert np.array_equal(mouth(comfy, run, kept), mouth(comfy, run, simple))


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
    ours, same, large = (pictures(comfy, run, made) for made, _ in kept.values())
    where = pictures(comfy, run, kept["ours"][1])[..., 0] > 127
    assert np.array_equal(ours, same)
    assert not np.array_equal(ours, large)
    assert psnr(large[where], ours[where]) > 30
