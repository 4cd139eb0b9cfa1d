"""Colors of a picture as its profile means them, in sRGB, which is what all here takes pictures for."""

import logging
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageCms

_log = logging.getLogger(__name__)

ADOBE_TO_SRGB = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]], np.float32)
"""Linear light of Adobe RGB (1998) to linear light of sRGB; both have the white D65."""
ADOBE_GAMMA = 563 / 256
_INTEROP_IFD, _INTEROP_INDEX = 0xA005, 1
ROWS = 256  # of a picture that are converted at a time in floating point


def to_srgb(image: Image.Image, name: str) -> Image.Image:
    """The picture in sRGB, as RGB or RGBA. A profile that cannot be used is ignored, with a line in the log."""
    alpha = _alpha(image)
    profile = image.info.get("icc_profile")
    converted = _by_profile(_without_alpha(image), profile, name) if profile else None
    if converted is None:
        converted = _without_alpha(image).convert("RGB")
        if not profile and _says_adobe(image):
            converted = _from_adobe(converted)
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _alpha(image: Image.Image) -> Image.Image | None:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        alpha = image.convert("RGBA").getchannel("A")
        return None if alpha.getextrema() == (255, 255) else alpha
    return None


def _without_alpha(image: Image.Image) -> Image.Image:
    """In a mode that profiles know: gray, RGB or CMYK."""
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    if image.mode in ("LA", "1"):
        return image.convert("L")
    return image.convert("RGBA").convert("RGB") if "transparency" in image.info else image.convert("RGB")


def _by_profile(image: Image.Image, data: bytes, name: str) -> Image.Image | None:
    """Relative colorimetric, with the black point moved: what both spaces can show stays exact, which is what skin and
    the mouth need. Perceptual would move all colors, and is the same for profiles without tables."""
    try:
        profile: Any = ImageCms.ImageCmsProfile(BytesIO(data))
        kinds: Any = {"inMode": image.mode, "outMode": "RGB", "renderingIntent": ImageCms.Intent.RELATIVE_COLORIMETRIC}
        black: Any = ImageCms.Flags.BLACKPOINTCOMPENSATION
        convert: Any = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), **kinds, flags=black)
        if image.mode == "RGB" and _changes_nothing(convert):
            return image
        return ImageCms.applyTransform(image, convert)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _log.warning("%s: its color profile cannot be used (%s); its colors are taken as sRGB", name, error)
        return None


def _changes_nothing(convert: Any) -> bool:
    """sRGB itself, but for rounding: then every pixel stays."""
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(len(levels), -1, 3)
    after = np.asarray(ImageCms.applyTransform(Image.fromarray(cube), convert)).astype(int)
    return bool(np.abs(after - cube).max() <= 2)


def _says_adobe(image: Image.Image) -> bool:
    """Cameras state Adobe RGB by Exif's interoperability index R03, mostly without a profile."""
    try:
        return str(image.getexif().get_ifd(_INTEROP_IFD).get(_INTEROP_INDEX, "")).startswith("R03")
    except (OSError, ValueError, KeyError, TypeError, SyntaxError):  # damaged Exif data
        return False


def _from_adobe(image: Image.Image) -> Image.Image:
    linear = (np.arange(256, dtype=np.float32) / 255) ** ADOBE_GAMMA
    pixels = np.array(image)
    for top in range(0, len(pixels), ROWS):
        light = (linear[pixels[top : top + ROWS]] @ ADOBE_TO_SRGB.T).clip(0, 1)
        coded = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
        pixels[top : top + ROWS] = np.rint(coded * 255)
    return Image.fromarray(pixels)
