"""The inserted stream by native code, where processor and insertion are such that it can be."""

from otter_cli.model.native.library import library, why_not
from otter_cli.model.native.run import NativeStream

__all__ = ["NativeStream", "library", "why_not"]
