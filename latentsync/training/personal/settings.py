"""How a model of one person is trained."""

from dataclasses import dataclass

from ...models.unet import UNet


@dataclass(frozen=True)
class PersonalSettings:
    """steps: of training. batch_size: windows of a step, `frames` moments each. rank: of the LoRA. everywhere: on all
    layers of the U-Net but those that hear, not on its attention alone. decoder: train the decoder of the VAE too.
    adversarial_from: step from which a critic judges the mouths; none judges where a network needs many steps, since
    one step's guess is rightly a blur. decoded: mouths that are decoded in a step. own_reference: share of the moments
    that are their own reference, as in use; from the others the network learns to draw the mouth. judge_every: steps
    between two looks at the held-out end, also between two checkpoints. patience: looks without a better one after
    which it ends.
    """

    steps: int = 400
    batch_size: int = 2
    frames: int = 6
    rank: int = 16
    learning_rate: float = 1e-3
    decoder_learning_rate: float = 2e-4
    everywhere: bool = True
    decoder: bool = True
    adversarial: bool = True
    adversarial_from: int = 50
    adversarial_weight: float = 0.5
    texture_weight: float = 20.0
    feature_weight: float = 0.25
    clean_weight: float = 1.0
    motion_weight: float = 2.0
    p_max_noise: float = 0.85
    shape_rate: float = 0.2
    shape_weight: float = 0.02
    decoded: int = 6
    own_reference: float = 0.15
    ema_decay: float = 0.99
    most_frames: int = 480
    judge_every: int = 50
    patience: int = 4
    seed: int = 1247
    checkpointing: bool = False

    @classmethod
    def for_network(cls, unet: UNet, *, seed: int = 1247) -> "PersonalSettings":
        """One-step networks as nano has its own recipe; those of many steps are trained as LatentSync's second stage
        is, with 16 frames, on the noise and on decoded mouths."""
        config = unet.config
        if config.prediction_type == "sample" and config.motion == "none":
            return cls(seed=seed)
        return cls(
            steps=600, batch_size=1, frames=16, rank=32, learning_rate=1e-4, everywhere=False, decoder=False,
            adversarial=False, motion_weight=0, p_max_noise=0, decoded=2, own_reference=0, most_frames=0, seed=seed,
            checkpointing=True,
        )  # fmt: skip
