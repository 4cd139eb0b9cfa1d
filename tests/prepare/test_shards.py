"""Tar files of clips: their form, and that training on them takes the same batches as on files."""

from PIL import Image  # noqa: F401
