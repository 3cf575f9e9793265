"""Every optimiser against a NumPy float64 reference, and against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsm.durations import Horizon
from lsm.errors import ConfigError
from lsm.optim import (
    LAMB,
    SGD,
    Adafactor,
    Adagrad,
    Adam,
    AdamW,
    Lion,
    MatrixAxes,
    Momentum,
    Muon,
    RMSProp,
    Shampoo,
)

HORIZON = Horizon(steps=100, batch_size=10, examples=100)
STEPS = 7
SHAPES = {"kernel": (4, 3), "bias": (3,)}
LR = 0.1
DECAY = 0.3


def start():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradients():
    rng = np.random.default_rng(1)
    return [{n: rng.normal(size=s) for n, s in SHAPES.items()} for _ in range(STEPS)]


def run(optimizer, params=None, grads=None):
    """Returns the parameters after each step, float32 under jit."""
    params = jax.tree.map(jnp.float32, start() if params is None else params)
    transform = optimizer.make(HORIZON)
    state = transform.init(params)

    @jax.jit
    def step(params, state, grads):
        updates, state = transform.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    trajectory = []
    for g in gradients() if grads is None else grads:
        params, state = step(params, state, jax.tree.map(jnp.float32, g))
        trajectory.append(params)
    return trajectory


# References: the direction that a step takes, from all gradients so far (the last is this step's)
# and the parameter. Written as sums over the history, not as the recursions under test.


def averaged(history, b):
    """(1 - b) sum_i b^(t - i) x_i: an exponential moving average that starts at 0."""
    return (1 - b) * sum(b ** (len(history) - 1 - i) * x for i, x in enumerate(history))


def corrected(history, b):
    return averaged(history, b) / (1 - b ** len(history))


def squares(history):
    return [g**2 for g in history]


def sgd(history, w):
    return history[-1]


def momentum(history, w, b=0.9):
    return averaged(history, b) / (1 - b)


def momentum_average(history, w, b=0.9):
    return averaged(history, b)


def nesterov(history, w, b=0.9):
    return history[-1] + b * momentum(history, w, b)


def nesterov_average(history, w, b=0.9):
    return (1 - b) * history[-1] + b * averaged(history, b)


def adagrad(history, w, eps=1e-10, initial=0.0):
    return history[-1] / (np.sqrt(initial + sum(squares(history))) + eps)


def rmsprop(history, w, b=0.9, eps=1e-8):
    return history[-1] / (np.sqrt(averaged(squares(history), b)) + eps)


def rmsprop_in_root(history, w, b=0.9, eps=0.1):
    return history[-1] / np.sqrt(averaged(squares(history), b) + eps)


def adam(history, w, b1=0.9, b2=0.999, eps=1e-8):
    return corrected(history, b1) / (np.sqrt(corrected(squares(history), b2)) + eps)


def lion(history, w, b1=0.9, b2=0.99):
    before = averaged(history[:-1], b2) if history[:-1] else 0
    return np.sign(b1 * before + (1 - b1) * history[-1])


def adafactor(history, w, c=0.8, factored_from=128, threshold=1.0):
    """Shazeer & Stern 2018, algorithms 4 (matrices) and 5 (vectors)."""
    factored = w.ndim == 2 and min(w.shape) >= factored_from
    rows, columns, v = np.zeros(w.shape[0]), np.zeros(w.shape[-1]), np.zeros_like(w)
    for t, g in enumerate(history, start=1):
        b = 1 - t**-c
        square = g**2 + 1e-30
        v = b * v + (1 - b) * square
        if factored:
            rows = b * rows + (1 - b) * square.sum(axis=1)
            columns = b * columns + (1 - b) * square.sum(axis=0)
    if factored:
        v = np.outer(rows, columns) / rows.sum()
    u = history[-1] / np.sqrt(v)
    u = u / max(1, np.sqrt(np.mean(u**2)) / threshold)
    return u * max(1e-3, np.sqrt(np.mean(w**2)))


def adafactor_factored(history, w):
    return adafactor(history, w, factored_from=1)


def inverse_root(h, p, ridge):
    values, vectors = np.linalg.eigh(h)
    return vectors @ np.diag((np.maximum(values, 0) + ridge * values[-1]) ** (-1 / p)) @ vectors.T


# The first gradient leaves L singular. The root of a singular matrix is the ridge's, which at the
# default 1e-6 float32 knows to one digit; a larger one makes the two comparable.
RIDGE = 1e-2


def shampoo_step(history, graft, k=3, b2=0.999, ridge=RIDGE):
    """L^(-1/4) G R^(-1/4) with roots of the last step at which they were computed."""
    step = graft(history)
    g = history[-1]
    if g.ndim < 2:
        return step
    known = history[: (len(history) - 1) // k * k + 1]
    left = inverse_root(averaged([g @ g.T for g in known], b2), 4, ridge)
    right = inverse_root(averaged([g.T @ g for g in known], b2), 4, ridge)
    u = left @ g @ right
    return u * np.linalg.norm(step) / np.linalg.norm(u)


def shampoo_sgd(history, w):
    return shampoo_step(history, graft=lambda h: h[-1])


def shampoo_adam(history, w, b1=0.9, b2=0.999, eps=1e-8):
    def graft(h):
        return h[-1] / (np.sqrt(corrected(squares(h), b2)) + eps)

    steps = [shampoo_step(history[: t + 1], graft) for t in range(len(history))]
    return corrected(steps, b1)


def newton_schulz(x):
    """Five quintic iterations with Jordan's coefficients."""
    x = x / np.linalg.norm(x)
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(5):
        x = a * x + (b * (x @ x.T) + c * (x @ x.T) @ (x @ x.T)) @ x
    return x


def muon_momentum(history, b=0.95):
    """Nesterov's with the bias of each term corrected, as Dozat's NAdam has it."""
    t = len(history)
    return b * averaged(history, b) / (1 - b ** (t + 1)) + (1 - b) * history[-1] / (1 - b**t)


def muon(history, w):
    if w.ndim < 2:
        return adam(history, w)
    return 0.2 * np.sqrt(max(w.shape)) * newton_schulz(muon_momentum(history))


def muon_jordan(history, w):
    if w.ndim < 2:
        return adam(history, w)
    return np.sqrt(max(1, w.shape[1] / w.shape[0])) * newton_schulz(muon_momentum(history))


CASES = {
    "sgd": (SGD, {}, sgd),
    "momentum, accumulate": (Momentum, {"convention": "accumulate"}, momentum),
    "momentum, average": (Momentum, {"convention": "average"}, momentum_average),
    "nesterov, accumulate": (Momentum, {"nesterov": True}, nesterov),
    "nesterov, average": (Momentum, {"convention": "average", "nesterov": True}, nesterov_average),
    "adagrad": (Adagrad, {}, adagrad),
    "adagrad, keras start": (
        Adagrad,
        {"initial_accumulator": 0.1},
        lambda h, w: adagrad(h, w, initial=0.1),
    ),
    "rmsprop": (RMSProp, {}, rmsprop),
    "rmsprop, eps in root": (RMSProp, {"eps_in_root": True, "eps": 0.1}, rmsprop_in_root),
    "adam": (Adam, {}, adam),
    "adamw": (AdamW, {}, adam),
    "lion": (Lion, {}, lion),
    "adafactor": (Adafactor, {}, adafactor),
    "adafactor, factored": (Adafactor, {"min_factored_dim": 1}, adafactor_factored),
    "shampoo, sgd graft": (
        Shampoo,
        {"graft": "sgd", "b1": 0.0, "update_every": 3, "ridge": RIDGE},
        shampoo_sgd,
    ),
    "shampoo, adam graft": (Shampoo, {"update_every": 3, "ridge": RIDGE}, shampoo_adam),
    "muon": (Muon, {}, muon),
    "muon, jordan's scale": (Muon, {"rms": None}, muon_jordan),
}
COUPLED = (SGD, Momentum, Adagrad, RMSProp, Adam)


def reference(direction, coupled, decay=DECAY):
    w, history, trajectory = start(), {name: [] for name in SHAPES}, []
    for grads in gradients():
        for name, g in grads.items():
            shrink = decay * w[name] if name == "kernel" else 0
            history[name].append(g + shrink if coupled else g)
            u = direction(history[name], w[name])
            w[name] = w[name] - LR * (u if coupled else u + shrink)
        trajectory.append(dict(w))
    return trajectory


def assert_same(measured, expected, rtol=2e-5, atol=2e-5):
    for step, (got, want) in enumerate(zip(measured, expected, strict=True)):
        for name in SHAPES:
            np.testing.assert_allclose(
                got[name], want[name], rtol, atol, err_msg=f"{name}, step {step}"
            )


@pytest.mark.parametrize("case", CASES)
def test_matches_numpy_reference(case):
    cls, options, direction = CASES[case]
    optimizer = cls(learning_rate=LR, weight_decay=DECAY, **options)
    assert_same(run(optimizer), reference(direction, cls in COUPLED))


@pytest.mark.parametrize("cls", [SGD, Adam])
def test_without_weight_decay_nothing_shrinks(cls):
    direction = {SGD: sgd, Adam: adam}[cls]
    assert_same(run(cls(learning_rate=LR)), reference(direction, cls in COUPLED, decay=0.0))


@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_lamb_matches_numpy_reference(decay):
    w, history, expected = start(), {name: [] for name in SHAPES}, []
    w["bias"] = np.zeros(3)  # A parameter of norm 0 takes Adam's step as it is.
    first = dict(w)
    for grads in gradients():
        for name, g in grads.items():
            history[name].append(g)
            u = adam(history[name], w[name], eps=1e-6)
            u = u + (decay * w[name] if name == "kernel" else 0)
            size = np.linalg.norm(w[name])
            ratio = size / np.linalg.norm(u) if size else 1
            w[name] = w[name] - LR * ratio * u
        expected.append(dict(w))
    assert_same(run(LAMB(learning_rate=LR, weight_decay=decay), params=first), expected)


def test_adafactor_with_momentum_averages_directions():
    directions = {name: [] for name in SHAPES}
    w, history, expected = start(), {name: [] for name in SHAPES}, []
    for grads in gradients():
        for name, g in grads.items():
            history[name].append(g)
            directions[name].append(adafactor(history[name], w[name]))
            w[name] = w[name] - LR * averaged(directions[name], 0.9)
        expected.append(dict(w))
    assert_same(run(Adafactor(learning_rate=LR, momentum=0.9)), expected)


TORCH = {
    "sgd": (SGD, {}, "SGD", {}),
    "momentum": (Momentum, {}, "SGD", {"momentum": 0.9}),
    "nesterov": (Momentum, {"nesterov": True}, "SGD", {"momentum": 0.9, "nesterov": True}),
    "average": (Momentum, {"convention": "average"}, "SGD", {"momentum": 0.9, "dampening": 0.9}),
    "adagrad": (Adagrad, {}, "Adagrad", {}),
    "rmsprop": (RMSProp, {"average": 0.99}, "RMSprop", {}),
    "adam": (Adam, {}, "Adam", {}),
    "adamw": (AdamW, {}, "AdamW", {}),
}


@pytest.mark.parametrize("case", TORCH)
def test_matches_pytorch(case):
    torch = pytest.importorskip("torch")
    cls, options, name, torch_options = TORCH[case]
    params = start()
    grads = gradients()
    if case == "average":  # PyTorch's first buffer is g, not (1 - dampening) g.
        grads[0] = {n: np.zeros_like(g) for n, g in grads[0].items()}
    tensors = {n: torch.nn.Parameter(torch.tensor(x)) for n, x in params.items()}
    peer = getattr(torch.optim, name)(tensors.values(), lr=LR, weight_decay=0.0, **torch_options)
    if case != "average":
        peer.param_groups[0]["weight_decay"] = DECAY
    decay = 0.0 if case == "average" else DECAY
    expected = []
    for g in grads:
        for n, tensor in tensors.items():
            tensor.grad = torch.tensor(g[n])
        peer.step()
        expected.append({n: tensor.detach().numpy().copy() for n, tensor in tensors.items()})
    optimizer = cls(learning_rate=LR, weight_decay=decay, decay=".*", **options)
    assert_same(run(optimizer, grads=grads), expected)


def test_muon_takes_a_scanned_stack_layer_by_layer():
    rng = np.random.default_rng(3)
    stack_LxIxO, g_LxIxO = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)
    together = run(Muon(learning_rate=LR), {"kernel": stack_LxIxO}, [{"kernel": g_LxIxO}])[0]
    for layer in range(3):
        alone = run(
            Muon(learning_rate=LR), {"kernel": stack_LxIxO[layer]}, [{"kernel": g_LxIxO[layer]}]
        )[0]
        np.testing.assert_allclose(together["kernel"][layer], alone["kernel"], rtol=1e-5, atol=1e-6)


def test_muon_reads_convolutions_and_heads_as_matrices():
    rng = np.random.default_rng(4)
    conv_HxWxIxO = rng.normal(size=(3, 3, 2, 5))
    out_HxKxD = rng.normal(size=(2, 4, 6))  # attention's output: heads and their width are summed
    zeros = {"conv/kernel": conv_HxWxIxO * 0, "out/kernel": out_HxKxD * 0}
    optimizer = Muon(learning_rate=1.0, axes=(MatrixAxes("out/kernel", (0, 1), (2,)),))
    moved = run(optimizer, zeros, [{"conv/kernel": conv_HxWxIxO, "out/kernel": out_HxKxD}])[0]
    for name, g in (("conv/kernel", conv_HxWxIxO), ("out/kernel", out_HxKxD)):
        flat = g.reshape(-1, g.shape[-1])
        expected = -muon([flat], flat).reshape(g.shape)
        np.testing.assert_allclose(moved[name], expected, rtol=1e-4, atol=1e-5)


def test_muon_says_what_it_cannot_read():
    with pytest.raises(ConfigError, match=r"'kernel' has shape \(3,\).*MatrixAxes"):
        Muon(learning_rate=LR).make(HORIZON).init({"kernel": jnp.ones(3)})
    with pytest.raises(ConfigError, match=r"Muon\.matrices: 'kernel\$' matches no parameter"):
        Muon(learning_rate=LR).make(HORIZON).init({"theta": jnp.ones((2, 2))})


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (Adam, {"b1": 1.0}, r"Adam\.b1: 1\.0 given; allowed: a number in \[0, 1\)"),
        (Adam, {"learning_rate": "1e-3"}, r"Adam\.learning_rate: '1e-3' given"),
        (Adam, {"learning_rate": 0.0}, r"Adam\.learning_rate: 0\.0 given.*\(0, inf\)"),
        (Adam, {"learning_rate": float("nan")}, r"Adam\.learning_rate: nan given"),
        (Adam, {"decay": "(kernel"}, r"Adam\.decay: '\(kernel' is not a regular expression"),
        (Adam, {"schedule": 0.1}, r"Adam\.schedule: 0\.1 given; allowed: a Schedule"),
        (AdamW, {"ema": 1.0}, r"AdamW\.ema: 1\.0 given"),
        (Momentum, {"convention": "torch"}, r"'torch' given; allowed: 'accumulate', 'average'"),
        (Shampoo, {"update_every": 0}, r"Shampoo\.update_every: 0 given"),
        (Adafactor, {"clip_threshold": -1.0}, r"Adafactor\.clip_threshold: -1\.0 given"),
    ],
)
def test_a_field_out_of_range_is_named(cls, options, message):
    with pytest.raises(ConfigError, match=message):
        cls(**{"learning_rate": LR, **options})
