"""Lets torchvision be imported beside a PyTorch that cannot load its compiled operators. Run by a .pth file at the start of every Python process.

torchvision describes its operators `nms` and `qnms` to PyTorch while it is imported, and that fails if they were never declared, which the
library that cannot be loaded would have done. Declaring them is enough: nothing that prepares an image calls either of them.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing. Waits for the import of torchvision, so that no other Python process pays for importing PyTorch."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            # Kept for the life of the process: the declarations go away with the object.
            sys.modules[__name__].library = library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
