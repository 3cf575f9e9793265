"""Learning rates by layer, against factors written out."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.models import GPT, Classifier, Lora
from lsm.models.families import minilm, vit_ti
from lsm.optim import SGD, AdamW, Group, LayerDecay
from lsm.params import flat, nested

HORIZON = Horizon(steps=10, batch_size=1, examples=10)
STACKS = Classifier.layout.fget(Classifier(minilm())).stacks
PARAMS = nested(
    {
        "blocks/qkv/kernel": jnp.ones((3, 2, 2)),
        "blocks/norm_1/scale": jnp.ones((3, 2)),
        "tokens/embedding": jnp.ones((4, 2)),
        "positions": jnp.ones((5, 2)),
        "norm/scale": jnp.ones(2),
        "pooler/kernel": jnp.ones((2, 2)),
        "head/kernel": jnp.ones((2, 2)),
    }
)


def updates(optimizer, params=PARAMS, stacks=STACKS):
    transform = optimizer.make(HORIZON, stacks=stacks)
    made, _ = transform.update(params, transform.init(params), params)
    return flat(made)


def test_the_factor_falls_from_the_head_to_the_embeddings():
    found = updates(SGD(learning_rate=1.0, layer_decay=LayerDecay(0.5)))
    for name in ("blocks/qkv/kernel", "blocks/norm_1/scale"):
        for layer, factor in enumerate([0.125, 0.25, 0.5]):
            np.testing.assert_array_equal(found[name][layer], -factor)
    for name in ("tokens/embedding", "positions", "norm/scale"):
        np.testing.assert_array_equal(found[name], -0.0625)
    for name in ("pooler/kernel", "head/kernel"):
        np.testing.assert_array_equal(found[name], -1.0)


def test_it_is_a_factor_of_groups_and_of_decoupled_decay_too():
    decayed = AdamW(learning_rate=1.0, weight_decay=0.5, groups=(Group("qkv", 0.1),))
    plain = updates(decayed)["blocks/qkv/kernel"]
    decayed = AdamW(
        learning_rate=1.0,
        weight_decay=0.5,
        groups=(Group("qkv", 0.1), Group("head", 0)),
        layer_decay=LayerDecay(0.5),
    )
    found = updates(decayed)
    factors = np.array([0.125, 0.25, 0.5])[:, None, None]
    np.testing.assert_allclose(found["blocks/qkv/kernel"], plain * factors, rtol=1e-6)
    assert not np.any(found["head/kernel"])  # frozen


def test_what_has_no_layers_is_refused():
    optimizer = SGD(learning_rate=1.0, layer_decay=LayerDecay(0.5))
    with pytest.raises(ConfigError, match="no parameters are stacked layers"):
        updates(optimizer, stacks=())
    with pytest.raises(ConfigError, match="LayerDecay.embeddings: .* matches no parameter"):
        updates(optimizer, {"blocks": {"kernel": jnp.ones((3, 2))}})
    with pytest.raises(ConfigError, match="LayerDecay.rate: 1.5 given"):
        LayerDecay(1.5)


@pytest.mark.parametrize("model", [vit_ti(), GPT(vocabulary=9), minilm(), Lora(minilm(), "qkv")])
def test_the_published_models_have_stacks(model):
    assert dict(model.layout.stacks)["blocks/"] == 1


def test_training_state_has_no_more_leaves():
    plain, by_layer = (
        AdamW(learning_rate=1.0, layer_decay=decay).make(HORIZON, stacks=STACKS).init(PARAMS)
        for decay in (None, LayerDecay(0.9))
    )
    assert by_layer.pop("layer_decay") == optax.EmptyState() and flat(by_layer).keys() == flat(plain).keys()  # fmt: skip
