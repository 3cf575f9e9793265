"""torchvision, imported so that it works beside any PyTorch, for what `--peer_python` runs.

Its wheels are built for CUDA. Beside a PyTorch without CUDA its compiled operators are not there,
and then the import fails although neither folders of pictures nor their transforms call them. So
the two that it looks for are declared first.
"""

import torch

try:
    import torchvision
except RuntimeError:
    _library = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

__all__ = ["torchvision"]
