"""GPT-2, Llama, Mistral, Qwen, Gemma and Mixtral as Hugging Face has them: a table for each."""

from lsm.interop.family import Family
from lsm.interop.parts import (
    Biases,
    Choice,
    Dropout,
    Fixed,
    Same,
    Settings,
    Size,
    TopK,
)
from lsm.interop.positions import Rotary, Windows
from lsm.interop.table import Row, Table
from lsm.models import families

_SILU = Choice("hidden_act", "mlp", {"silu": "swiglu", "swish": "swiglu"}, "silu")
_BIAS = Choice("attention_bias", "bias", {False: False, True: "attention"}, False)
_TANH = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_SIZES = (
    Same("vocab_size", "vocabulary", int),
    Same("hidden_size", "width", int),
    Same("num_hidden_layers", "layers", int),
    Same("num_attention_heads", "heads", int),
    Same("intermediate_size", "hidden", int),
    Fixed("attention_dropout", 0.0, 0),
)
_BLOCK: tuple[Row, ...] = (
    ("params/tokens/embedding", "model.embed_tokens.weight"),
    (
        "params/blocks/qkv/kernel",
        tuple(f"model.layers.{{}}.self_attn.{x}_proj.weight" for x in "qkv"),
    ),
    ("params/blocks/qkv/bias", tuple(f"model.layers.{{}}.self_attn.{x}_proj.bias" for x in "qkv")),
    ("params/blocks/out/kernel", "model.layers.{}.self_attn.o_proj.weight"),
    ("params/blocks/out/bias", "model.layers.{}.self_attn.o_proj.bias"),
    ("params/blocks/q_norm/scale", "model.layers.{}.self_attn.q_norm.weight"),
    ("params/blocks/k_norm/scale", "model.layers.{}.self_attn.k_norm.weight"),
    ("params/blocks/norm_1/scale", "model.layers.{}.input_layernorm.weight"),
    ("params/norm_f/scale", "model.norm.weight"),
    ("params/head/kernel", "lm_head.weight"),
)
_MLP: tuple[Row, ...] = tuple(
    (f"params/blocks/{part}/{array}", f"model.layers.{{}}.mlp.{part}_proj.{name}")
    for part in ("gate", "up", "down")
    for array, name in (("kernel", "weight"), ("bias", "bias"))
)
_TWO_NORMS: Row = ("params/blocks/norm_2/scale", "model.layers.{}.post_attention_layernorm.weight")
_FOUR_NORMS: tuple[Row, ...] = (
    ("params/blocks/post_norm_1/scale", "model.layers.{}.post_attention_layernorm.weight"),
    ("params/blocks/norm_2/scale", "model.layers.{}.pre_feedforward_layernorm.weight"),
    ("params/blocks/post_norm_2/scale", "model.layers.{}.post_feedforward_layernorm.weight"),
)
_EXPERTS: tuple[Row, ...] = (
    ("params/blocks/router/kernel", "model.layers.{}.block_sparse_moe.gate.weight"),
    *(
        (
            f"params/blocks/experts_{part}/kernel",
            f"model.layers.{{}}.block_sparse_moe.experts.<>.{name}.weight",
        )
        for part, name in (("gate", "w1"), ("down", "w2"), ("up", "w3"))
    ),
)
_GPT2: tuple[Row, ...] = (
    ("params/tokens/embedding", "transformer.wte.weight"),
    ("params/positions", "transformer.wpe.weight"),
    *(
        (f"params/blocks/{part}/{array}", f"transformer.h.{{}}.{there}.{name}")
        for part, there in {
            "qkv": "attn.c_attn",
            "out": "attn.c_proj",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        }.items()
        for array, name in (("kernel", "weight"), ("bias", "bias"))
    ),
    *(
        (f"params/{part}/{array}", f"transformer.{there}.{name}")
        for part, there in {
            "blocks/norm_1": "h.{}.ln_1",
            "blocks/norm_2": "h.{}.ln_2",
            "norm_f": "ln_f",
        }.items()
        for array, name in (("scale", "weight"), ("bias", "bias"))
    ),
    ("params/head/kernel", "lm_head.weight"),
)


_GPT2_HARMLESS = frozenset(
    f"summary_{x}" for x in ("activation", "first_dropout", "proj_to_labels", "type", "use_proj")
) | {"n_ctx", "reorder_and_upcast_attn"}


def _names(rows: tuple[Row, ...], settings: Settings, **more) -> Table:
    tied = [r"^lm_head\.weight$"] if settings["tied"] else []
    buffers = [r"rotary_emb\.inv_freq$", r"attn\.(masked_)?bias$"]
    sizes = {"heads": settings["heads"], "key_heads": settings["kv_heads"]}
    return Table(rows=rows, ignored="|".join(tied + buffers), **sizes, **more)


def _of_llama(*rows: Row):
    return lambda settings: _names((*_BLOCK, *rows), settings, prefix="model.")


def _like_llama(theta: float, tied: bool, context: int, epsilon: float = 1e-6):
    return (
        *_SIZES,
        _SILU,
        Size("num_key_value_heads", "kv_heads"),
        Same("max_position_embeddings", "context", int, context),
        Same("rms_norm_eps", "epsilon", float, epsilon),
        Same("tie_word_embeddings", "tied", bool, tied),
        Rotary(theta),
    )


def _gemma(*more):
    return (
        *_SIZES,
        Size("num_key_value_heads", "kv_heads", 4),
        Size("head_dim", "head_width", 256),
        Fixed("hidden_activation", *_TANH),
        Fixed("hidden_act", *_TANH, written=False),
        Same("rms_norm_eps", "epsilon", float, 1e-6),
        Same("tie_word_embeddings", "tied", bool, True),
        Same("query_pre_attn_scalar", "query_width", int, 256),
        _BIAS,
        Fixed("use_bidirectional_attention", None, False, written=False),
        *more,
    )


FAMILIES = (
    Family(
        "GPT2LMHeadModel",
        "gpt2",
        families.gpt2(),
        (
            Same("vocab_size", "vocabulary", int, 50257),
            Same("n_embd", "width", int, 768),
            Same("n_layer", "layers", int, 12),
            Same("n_head", "heads", int, 12),
            Same("n_positions", "context", int, 1024),
            Size("n_inner", "hidden"),
            Same("layer_norm_epsilon", "epsilon", float, 1e-5),
            Same("tie_word_embeddings", "tied", bool, True),
            Choice(
                "activation_function",
                "mlp",
                {
                    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast"), "gelu"),
                    "gelu": "gelu_exact",
                    "relu": "relu",
                },
                "gelu_new",
            ),
            Dropout(0.1, "resid_pdrop", "embd_pdrop", "attn_pdrop"),
            Fixed("scale_attn_weights", True),
            Fixed("scale_attn_by_inverse_layer_idx", False),
        ),
        lambda settings: _names(_GPT2, settings, transposes=False, prefix="transformer."),
        _GPT2_HARMLESS,
    ),
    Family(
        "LlamaForCausalLM",
        "llama",
        families.llama(),
        (
            *_like_llama(10_000.0, False, 2048),
            Size("head_dim", "head_width"),
            Biases(),
            Fixed("rope_interleaved", False, written=False),
        ),
        _of_llama(*_MLP, _TWO_NORMS),
    ),
    Family(
        "MistralForCausalLM",
        "mistral",
        families.llama(),
        (
            *_like_llama(10_000.0, False, 131072),
            Size("head_dim", "head_width"),
            Windows(default=4096),
        ),
        _of_llama(*_MLP, _TWO_NORMS),
    ),
    Family(
        "Qwen2ForCausalLM",
        "qwen2",
        families.qwen2(),
        (*_like_llama(10_000.0, False, 32768), Windows(switched=True, default=4096)),
        _of_llama(*_MLP, _TWO_NORMS),
    ),
    Family(
        "Qwen3ForCausalLM",
        "qwen3",
        families.qwen3(),
        (
            *_like_llama(10_000.0, False, 32768),
            Size("head_dim", "head_width", 128),
            _BIAS,
            Windows(switched=True, default=4096),
        ),
        _of_llama(*_MLP, _TWO_NORMS),
    ),
    Family(
        "Gemma2ForCausalLM",
        "gemma2",
        families.gemma2(),
        _gemma(
            Same("max_position_embeddings", "context", int, 8192),
            Rotary(10_000.0),
            Windows(every=2, default=4096),
            Same("attn_logit_softcapping", "attention_softcap", float, 50.0, True),
            Same("final_logit_softcapping", "logit_softcap", float, 30.0, True),
        ),
        _of_llama(*_MLP, *_FOUR_NORMS),
    ),
    Family(
        "Gemma3ForCausalLM",
        "gemma3_text",
        families.gemma3(),
        _gemma(
            Same("max_position_embeddings", "context", int, 131072),
            Rotary(1e6, local=10_000.0),
            Windows(every=6, default=4096),
            Fixed("attn_logit_softcapping", None, written=False),
            Same("final_logit_softcapping", "logit_softcap", float, None, True),
        ),
        _of_llama(*_MLP, *_FOUR_NORMS),
    ),
    Family(
        "MixtralForCausalLM",
        "mixtral",
        families.mixtral(),
        (
            *_like_llama(1e6, False, 131072, 1e-5),
            Size("head_dim", "head_width"),
            Windows(),
            TopK(),
            Fixed("router_jitter_noise", 0.0, 0, written=False),
        ),
        _of_llama(*_EXPERTS, _TWO_NORMS),
    ),
)
"""The decoders."""
