"""Names of ViT and MLP-Mixer in timm's checkpoints, for `Start.names`."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import numpy as np

from lsm.interop.names import Source, Torch, by_key_head, transposed

_BLOCKS = ((r"^blocks/", "blocks/{}/"), (r"/norm_([12])/", r"/norm\1/"), (r"^norm_f/", "norm/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimmViT(Torch):
    """`lsm.models.ViT` with patches: timm's names, as in vit_base_patch16_224.

    Learned positions of another grid (both are square) are resized as timm does it: bicubic, with
    antialiasing. So a network for 224 x 224 goes on at 384 x 384.

    Attributes:
      heads: heads of the model; its queries, keys and values stand in another order there.
    """

    heads: int
    rename: tuple[tuple[str, str], ...] = (
        *_BLOCKS,
        (r"^patches/", "patch_embed/proj/"),
        (r"^cls$", "cls_token"),
        (r"^positions$", "pos_embed"),
        (r"/qkv/", "/attn/qkv/"),
        (r"/out/", "/attn/proj/"),
        (r"/up/", "/mlp/fc1/"),
        (r"/down/", "/mlp/fc2/"),
    )

    def sources(self, here: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, Source]:
        """See `Names.sources`."""
        functions = {
            "params/blocks/qkv/kernel": lambda qkv: self._columns(transposed(qkv)),
            "params/blocks/qkv/bias": self._columns,
        }
        if (learned := here.get("params/positions")) is not None:
            before = int("params/cls" in here)
            resized = functools.partial(_resized, count=learned.shape[0], before=before)
            functions["params/positions"] = resized
        return {
            path: dataclasses.replace(source, function=functions.get(path, source.function))
            for path, source in super().sources(here).items()
        }

    def _columns(self, qkv: np.ndarray) -> np.ndarray:
        return by_key_head(*np.split(qkv, 3, axis=-1), self.heads)


def timm_mixer() -> Torch:
    """`lsm.models.Mixer`: timm's names, as in mixer_b16_224."""
    return Torch(
        rename=(
            *_BLOCKS,
            (r"^patches/", "stem/proj/"),
            (r"/(tokens|channels)_up/", r"/mlp_\1/fc1/"),
            (r"/(tokens|channels)_down/", r"/mlp_\1/fc2/"),
        )
    )


def _resized(x_1xNxD: np.ndarray, count: int, before: int) -> np.ndarray:
    """Returns `count` positions (N, D); those `before` the grid stay as they are."""
    first, grid = np.split(x_1xNxD[0], [before])
    if len(first) + len(grid) == count:
        return x_1xNxD[0]
    old, new = (round(n**0.5) for n in (len(grid), count - before))
    grid = jax.image.resize(grid.reshape(old, old, -1), (new, new, grid.shape[1]), "bicubic")
    return np.concatenate([first, np.reshape(grid, (new * new, -1))])
