"""What becomes of a model that was trained by adapters: a plain one again."""

from lsm.adapt.merge import merge

__all__ = ["merge"]
