"""Names of BERT in Hugging Face's checkpoints, for `Start.names`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from lsm.interop.names import Source, Torch, by_key_head, transposed

_QKV = ("query", "key", "value")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceBERT(Torch):
    """`lsm.models.BERT` and its heads: the names of `BertModel` and `BertFor...`.

    A pooler, and the heads of pre-training, may be in the file without a place here.

    Attributes:
      heads: heads of the model; its queries, keys and values are one array here.
      prefix: what the encoder's names begin with: "bert." in `BertFor...`; "" in `BertModel`, as in
        MiniLM's files.
      head: name of the head: "classifier", or "qa_outputs" of question answering.
    """

    heads: int
    prefix: str = "bert."
    head: str = "classifier"
    rename: tuple[tuple[str, str], ...] = (
        (r"^tokens/", "embeddings/word_embeddings/"),
        (r"^segments/", "embeddings/token_type_embeddings/"),
        (r"^positions$", "embeddings/position_embeddings/embedding"),
        (r"^norm/", "embeddings/LayerNorm/"),
        (r"^pooler/", "pooler/dense/"),
        (r"^transform/", "cls/predictions/transform/dense/"),
        (r"^transform_norm/", "cls/predictions/transform/LayerNorm/"),
        (r"^output_bias$", "cls/predictions/bias"),
        (r"^blocks/", "encoder/layer/{}/"),
        (r"/qkv/", "/attention/self/qkv/"),
        (r"/out/", "/attention/output/dense/"),
        (r"/norm_1/", "/attention/output/LayerNorm/"),
        (r"/up/", "/intermediate/dense/"),
        (r"/down/", "/output/dense/"),
        (r"/norm_2/", "/output/LayerNorm/"),
    )
    ignored: ClassVar[str | None] = r"embeddings\.position_ids$|(^|\.)pooler\.|^cls\."

    def sources(self, here: Mapping[str, jax.ShapeDtypeStruct]) -> Mapping[str, Source]:
        """See `Names.sources`."""
        return {path: self._joined(path, s) for path, s in super().sources(here).items()}

    def _joined(self, path: str, source: Source) -> Source:
        (name,) = source.tensors
        if path.startswith("params/head/"):
            return dataclasses.replace(source, tensors=(name.replace("head", self.head, 1),))
        if not name.startswith("cls."):
            name = self.prefix + name
        if ".qkv." not in name:
            return dataclasses.replace(source, tensors=(name,))
        function = self._kernel if path.endswith("/kernel") else self._columns
        parts = tuple(name.replace(".qkv.", f".{part}.") for part in _QKV)
        return dataclasses.replace(source, tensors=parts, function=function)

    def _columns(self, *qkv: np.ndarray) -> np.ndarray:
        return by_key_head(*qkv, self.heads)

    def _kernel(self, *qkv: np.ndarray) -> np.ndarray:
        return self._columns(*map(transposed, qkv))
