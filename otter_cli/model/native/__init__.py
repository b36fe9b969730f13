"""The inserted stream by native code, where processor and insertion are such that it can be."""

from otter_cli.model.native.library import by_what, library
from otter_cli.model.native.run import NativeStream

__all__ = ["NativeStream", "by_what", "library"]
