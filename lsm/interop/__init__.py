"""Files of other libraries."""

from lsm.interop.tensors import Tensors, open_tensors

__all__ = ["Tensors", "open_tensors"]
