"""Libraries that import torchvision wherever it is installed, though nothing that is used of them here needs it."""

import sys
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


@cache
def hide_broken_torchvision() -> str:
    """Call it before importing diffusers, transformers, accelerate or torchmetrics. Returns why the installed
    torchvision cannot be imported; "" if it can, or if there is none.

    Its wheels fit one build of torch only: beside any other the import fails, with various errors, and with it that of
    diffusers' VAE. One that fails is hidden from the rest of the process, as if it were not installed.
    """
    with suppress(ValueError):  # a module that is half imported has no spec
        if find_spec("torchvision") is None:
            return ""
    try:
        import_module("torchvision")
        return ""
    except Exception as error:  # a broken package may fail in any way
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.modules["torchvision"] = None  # pyright: ignore[reportArgumentType]
        return " ".join(str(error).split())[:200] or type(error).__name__


def torchvision_advice() -> str:
    """What to do about a torchvision that cannot be imported."""
    try:
        torch = f"torch {version('torch')}"
    except PackageNotFoundError:
        torch = "your torch"
    return (
        f"install the torchvision that was built for {torch}, from where that torch came, or"
        " `pip uninstall torchvision`"
    )
