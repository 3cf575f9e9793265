"""Tasks as a user writes them, from public names alone: one for each seam."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsm import Data, Evaluation, Experiment, Train
from lsm.data import Arrays
from lsm.losses import binary_cross_entropy, squared_error
from lsm.metrics import weigh
from lsm.models import MLP
from lsm.optim import SGD
from lsm.tasks import Classification, GradientSum, MeanGradient, Task


class Autoencoder(nn.Module):
    """Encodes to a normal, draws from it, decodes; sows its KL divergence from N(0, 1)."""

    width: int = 16
    latent: int = 4
    streams = ("noise",)

    @nn.compact
    def __call__(self, x_BxD, train=False):
        h_BxW = nn.relu(nn.Dense(self.width)(x_BxD))
        mean_BxZ, log_var_BxZ = jnp.split(nn.Dense(2 * self.latent)(h_BxW), 2, axis=-1)
        noise_BxZ = jax.random.normal(self.make_rng("noise"), mean_BxZ.shape)
        z_BxZ = mean_BxZ + noise_BxZ * jnp.exp(log_var_BxZ / 2)
        kl_B = 0.5 * (mean_BxZ**2 + jnp.exp(log_var_BxZ) - 1 - log_var_BxZ).sum(-1)
        logits_BxD = nn.Dense(x_BxD.shape[-1])(nn.relu(nn.Dense(self.width)(z_BxZ)))
        return {"logits": logits_BxD, "kl": kl_B, "z": z_BxZ}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAE(Task):
    """Reconstruction and KL, whose weight rises over `warm_up` steps."""

    model: nn.Module = Autoencoder()
    warm_up: int = 4

    def inputs(self, batch):
        return batch["x"]

    def metrics(self, outputs, batch, train, step):
        beta = jnp.minimum(step / self.warm_up, 1)
        error_B = binary_cross_entropy(outputs["logits"], batch["x"]).sum(-1)
        weights_B = batch.get("weight")
        return {
            "loss": weigh(error_B + beta * outputs["kl"], weights_B),
            "kl": weigh(outputs["kl"], weights_B),
        }


class Players(nn.Module):
    """A generator of points and a discriminator."""

    streams = ("noise",)

    def setup(self):
        self.generator = MLP(widths=(16,), outputs=2)
        self.discriminator = MLP(widths=(16,), outputs=1)

    def __call__(self, x_BxD, train=False):
        fake_BxD = self.generate(x_BxD)
        return self.discriminate(fake_BxD), self.discriminate(x_BxD)

    def generate(self, x_BxD, train=False):
        noise_BxD = jax.random.normal(self.make_rng("noise"), x_BxD.shape)
        return self.generator(noise_BxD)

    def discriminate(self, x_BxD, train=False):
        return self.discriminator(x_BxD)[:, 0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adversarial(Task):
    """Each player's loss stops the other's gradient; both go through the one step."""

    model: nn.Module = Players()

    def inputs(self, batch):
        return batch["x"]

    def forward(self, params, model_state, batch, rngs, train, step):
        def judge(params, x):
            return self.apply(params, model_state, x, {}, train, "discriminate")[0]

        fixed = jax.lax.stop_gradient
        fake, changed = self.apply(params, model_state, batch["x"], rngs, train, "generate")
        outputs = {
            "fooled": judge(fixed(params), fake),
            "fake": judge(params, fixed(fake)),
            "real": judge(params, batch["x"]),
        }
        return outputs, changed

    def metrics(self, outputs, batch, train, step):
        ones, weights = jnp.ones(len(batch["x"])), batch.get("weight")
        generator = binary_cross_entropy(outputs["fooled"], ones)
        discriminator = binary_cross_entropy(outputs["real"], ones)
        discriminator += binary_cross_entropy(outputs["fake"], 0 * ones)
        return {
            "loss": weigh(generator + discriminator, weights),
            "generator": weigh(generator, weights),
            "discriminator": weigh(discriminator, weights),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanTeacher(Classification):
    """A teacher that is the moving average of the student (arXiv:1703.01780), without noise."""

    decay: float = 0.9

    def init(self, key, batch):
        params, model_state = super().init(key, batch)
        return params, {**model_state, "teacher": params}

    def metrics(self, outputs, batch, train, step):
        logits, teacher_logits = outputs
        found = super().metrics(logits, batch, train, step)
        gap = squared_error(jax.nn.softmax(logits), jax.nn.softmax(teacher_logits)).sum(-1)
        total, weight = weigh(gap, batch.get("weight"))
        loss = found["loss"]._replace(sum=found["loss"].sum + total)
        return found | {"loss": loss, "gap": found["loss"]._replace(sum=total, weight=weight)}

    def forward(self, params, model_state, batch, rngs, train, step):
        state = {name: x for name, x in model_state.items() if name != "teacher"}
        inputs = self.inputs(batch)
        logits, changed = self.apply(params, state, inputs, rngs, train)
        teacher_logits, _ = self.apply(model_state["teacher"], state, inputs, {}, False)
        return (logits, teacher_logits), changed

    def predictions(self, outputs, batch):
        return super().predictions(outputs[1], batch)

    def after_update(self, params, model_state, step):
        teacher = optax.incremental_update(params, model_state["teacher"], 1 - self.decay)
        return params, {**model_state, "teacher": teacher}


@dataclasses.dataclass(frozen=True)
class ClippedByExample(MeanGradient):
    """DP-SGD's gradient (arXiv:1607.00133): clipped by example, summed, a fixed divisor."""

    norm: float = 1.0
    expected: float = 16.0

    def sums(self, task):
        def one(params, model_state, row, rngs, step):
            batch = jax.tree.map(lambda x: x[None], row)
            grads, (metrics, _) = jax.grad(task.loss, has_aux=True)(
                params, model_state, batch, rngs, step
            )
            scale = jnp.minimum(1, self.norm / (optax.tree.norm(grads) + 1e-12))
            return jax.tree.map(lambda g: g * scale, grads), metrics

        def gradient(params, model_state, batch, rngs, step):
            by_example = jax.vmap(one, in_axes=(None, None, 0, None, None))
            rows = by_example(params, model_state, dict(batch), rngs, step)
            grads, metrics = jax.tree.map(lambda x: x.sum(0), rows)
            return GradientSum(grads, metrics, {})

        return gradient

    def divisor(self, metrics):
        return self.expected


def noise(std, seed):
    """The noise of DP-SGD as an Optax transform; std is that of the mean gradient."""

    def init(params):
        return jnp.zeros([], jnp.int32)

    def update(updates, count, params=None):
        keys = jax.random.split(
            jax.random.fold_in(jax.random.key(seed), count), len(jax.tree.leaves(updates))
        )
        leaves, treedef = jax.tree.flatten(updates)
        noisy = [g + std * jax.random.normal(k, g.shape) for k, g in zip(keys, leaves, strict=True)]
        return jax.tree.unflatten(treedef, noisy), count + 1

    return optax.GradientTransformation(init, update)


def pictures(rows=64, seed=0):
    random = np.random.default_rng(seed)
    label = random.integers(0, 4, rows).astype(np.int32)
    centres = np.random.default_rng(9).normal(size=(4, 12))
    image = (centres[label] + random.normal(size=(rows, 12))).astype(np.float32)
    return {"image": image, "label": label}


SMALL = MLP(widths=(8,), outputs=4)


def experiment(task=Classification(model=SMALL), columns=None, **more):
    columns = columns or pictures()
    train = {"steps": 4, "batch_size": 16} | more.pop("train", {})
    return Experiment(
        **{
            "name": "start",
            "task": task,
            "data": Data(source=Arrays(train=columns, test=columns)),
            "optimizer": SGD(learning_rate=0.1, ema=0.5),
            "train": Train(**train),
            "evaluation": Evaluation(every=2),
            "writers": (),
        }
        | more
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))
