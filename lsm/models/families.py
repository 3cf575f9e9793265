"""The published families, as settings of `lsm.models`: of texts, and networks for pictures.

Each function takes any field of the model or of its `Transformer` to change, and defaults to one
published size. Llama 3.1 and later rescale rotary frequencies: `rescale=Llama3Rescale(factor=8)`.
"""

import dataclasses
from typing import Any

from lsm.errors import ConfigError, nearest
from lsm.models.bert import BERT, BLOCKS
from lsm.models.experts import Experts
from lsm.models.gpt import GPT
from lsm.models.initializers import XAVIER, Gaussian
from lsm.models.mixer import Mixer
from lsm.models.transformer import Transformer
from lsm.models.vit import Convolutions, ViT


def _model(settings: dict[str, Any], kind: type = GPT) -> Any:
    """Returns the model with these fields, each given to the class that has it."""
    inner = {field.name for field in dataclasses.fields(Transformer)}
    outer = {field.name for field in dataclasses.fields(kind)} - {"transformer", "parent", "name"}
    for name in settings:
        if name not in inner | outer:
            hint = nearest(name, inner | outer)
            which = f"neither {kind.__name__} nor Transformer has a field {name!r}"
            raise ConfigError(f"families: {which}.{hint}")
    blocks = Transformer(**{name: settings[name] for name in settings if name in inner})
    return kind(transformer=blocks, **{name: settings[name] for name in settings if name in outer})


def gpt2(**changes: Any) -> GPT:
    """GPT-2 (Radford et al. 2019); by default the smallest, of 124 M parameters."""
    settings = {
        "vocabulary": 50257,
        "layers": 12,
        "heads": 12,
        "width": 768,
        "context": 1024,
        "bias": True,
        "epsilon": 1e-5,
    }
    return _model(settings | changes)


def llama(**changes: Any) -> GPT:
    """Llama 2 and 3 (arXiv:2307.09288, arXiv:2407.21783); by default Llama 3 8B."""
    settings = {
        "vocabulary": 128256,
        "layers": 32,
        "heads": 32,
        "kv_heads": 8,
        "width": 4096,
        "hidden": 14336,
        "context": 8192,
        "theta": 500_000.0,
        "norm": "rms",
        "epsilon": 1e-5,
        "mlp": "swiglu",
        "tied": False,
    }
    return _model(settings | changes)


def mixtral(**changes: Any) -> GPT:
    """Mixtral (arXiv:2401.04088), with 8 experts of which a token uses 2; by default 8x7B."""
    settings = {"vocabulary": 32000, "theta": 1e6, "experts": Experts(count=8, top_k=2)}
    return llama(**settings | changes)


def qwen2(**changes: Any) -> GPT:
    """Qwen 2 and 2.5 (arXiv:2407.10671): biases on queries, keys and values; by default 0.5B."""
    settings = {
        "vocabulary": 151936,
        "layers": 24,
        "heads": 14,
        "kv_heads": 2,
        "width": 896,
        "hidden": 4864,
        "context": 32768,
        "theta": 1e6,
        "epsilon": 1e-6,
        "bias": "qkv",
        "tied": True,
    }
    return llama(**settings | changes)


def qwen3(**changes: Any) -> GPT:
    """Qwen 3 (arXiv:2505.09388): norms on queries and keys; by default 0.6B."""
    settings = {
        "layers": 28,
        "heads": 16,
        "kv_heads": 8,
        "width": 1024,
        "head_width": 128,
        "hidden": 3072,
        "bias": False,
        "qk_norm": True,
    }
    return qwen2(**settings | changes)


def gemma2(**changes: Any) -> GPT:
    """Gemma 2 (arXiv:2408.00118): local and global layers in turn, soft caps; by default 2B."""
    settings = {
        "vocabulary": 256000,
        "layers": 26,
        "heads": 8,
        "kv_heads": 4,
        "head_width": 256,
        "width": 2304,
        "hidden": 9216,
        "theta": 10_000.0,
        "norm": "rms_offset",
        "epsilon": 1e-6,
        "mlp": "geglu",
        "window": 4096,
        "global_every": 2,
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "norm_position": "sandwich",
        "scale_embedding": True,
        "tied": True,
    }
    return llama(**settings | changes)


def gemma3(**changes: Any) -> GPT:
    """Gemma 3 (arXiv:2503.19786): five local layers to one global, norms on queries and keys.

    By default the text model of 1B.
    """
    settings = {
        "vocabulary": 262144,
        "heads": 4,
        "kv_heads": 1,
        "width": 1152,
        "hidden": 6912,
        "context": 32768,
        "window": 512,
        "global_every": 6,
        "global_theta": 1e6,
        # Norms on queries and keys took the place of Gemma 2's soft caps.
        "attention_softcap": None,
        "logit_softcap": None,
        "qk_norm": True,
    }
    return gemma2(**settings | changes)


def bert_base(**changes: Any) -> BERT:
    """BERT base (arXiv:1810.04805), uncased: 109,482,240 parameters with its pooler."""
    blocks = {field.name: getattr(BLOCKS, field.name) for field in dataclasses.fields(BLOCKS)}
    return _model(blocks | changes, BERT)


def bert_large(**changes: Any) -> BERT:
    """BERT large, uncased: 335,141,888 parameters with its pooler."""
    return bert_base(**{"layers": 24, "heads": 16, "width": 1024} | changes)


def minilm(**changes: Any) -> BERT:
    """MiniLM-L6-H384 (arXiv:2002.10957): 22,713,216 parameters with its pooler."""
    return bert_base(**{"layers": 6, "width": 384} | changes)


def vit_ti(**changes: Any) -> ViT:
    """ViT-Ti (arXiv:2010.11929, arXiv:2012.12877); like the others by default with patches of 16.

    With a "cls" token and learned positions, as published. Kernels start as in big_vision, by
    Glorot's rule; queries, keys and values are one kernel here, and start as in
    `torch.nn.MultiheadAttention`.
    """
    settings = {
        "layers": 12,
        "heads": 3,
        "width": 192,
        "mlp": "gelu_exact",
        "bias": True,
        "initializer": XAVIER,
        "pooling": "cls",
    }
    return _model(settings | changes, ViT)


def vit_s(**changes: Any) -> ViT:
    """ViT-S, of 22 M parameters."""
    return vit_ti(**{"heads": 6, "width": 384} | changes)


def vit_b(**changes: Any) -> ViT:
    """ViT-B, of 86 M parameters."""
    return vit_ti(**{"heads": 12, "width": 768} | changes)


def vit_l(**changes: Any) -> ViT:
    """ViT-L, of 304 M parameters."""
    return vit_ti(**{"layers": 24, "heads": 16, "width": 1024} | changes)


def cct_2(**changes: Any) -> ViT:
    """CCT-2/3x2 for CIFAR-10 (arXiv:2104.05704), of 0.28 M parameters.

    The authors' code also puts the residual stream itself through each block's second norm.
    """
    settings = {
        "outputs": 10,
        "layers": 2,
        "heads": 2,
        "width": 128,
        "hidden": 128,
        "epsilon": 1e-5,
        "bias": "but_qkv",
        "initializer": Gaussian(0.02),
        "stem": Convolutions(),
        "pooling": "sequence",
    }
    return vit_ti(**settings | changes)


def cct_7(**changes: Any) -> ViT:
    """CCT-7/3x1 for CIFAR-10, of 3.76 M parameters."""
    settings = {
        "layers": 7,
        "heads": 4,
        "width": 256,
        "hidden": 512,
        "stem": Convolutions(widths=()),
    }
    return cct_2(**settings | changes)


def mixer_s(**changes: Any) -> Mixer:
    """Mixer-S (arXiv:2105.01601), like the others by default with patches of 16."""
    return Mixer(**{"layers": 8, "width": 512, "tokens": 256, "channels": 2048} | changes)


def mixer_b(**changes: Any) -> Mixer:
    """Mixer-B."""
    return Mixer(**changes)


def mixer_l(**changes: Any) -> Mixer:
    """Mixer-L."""
    return Mixer(**{"layers": 24, "width": 1024, "tokens": 512, "channels": 4096} | changes)
