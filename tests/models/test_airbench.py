"""The fast CIFAR run: its parts by NumPy, and its steps against the original's in PyTorch."""

import dataclasses
import importlib
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lsm
from experiments.configs.cifar import airbench
from lsm.config import PatchWhitening
from lsm.data import ArrayDataset, Arrays
from lsm.errors import ConfigError
from lsm.mesh import Mesh
from lsm.models import MLP, Airbench, BatchNorm, Views
from lsm.models.initializers import Dirac
from lsm.train.program import build

ROOT = pathlib.Path(__file__).parents[2]
KEY = jax.random.key(0)


def pictures(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_it_has_the_original_s_parameters():
    variables = jax.eval_shape(lambda: Airbench().init(KEY, jnp.zeros((1, 32, 32, 3))))
    sizes = {name: sum(x.size for x in jax.tree.leaves(tree)) for name, tree in variables.items()}
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert sizes["params"] == convolutions + 2 * (64 + 256 + 256) + 24 + 2560
    assert sizes["constants"] == 2 * 2 * 3 * 24


def test_patches_are_white():
    """The outputs of the filters have second moments of 1, and of 0 with each other."""
    # Neighbours are alike, as in pictures.
    smooth = np.cumsum(pictures(50, 9, 9, 3).astype(np.int64), axis=1) // 20
    dataset = ArrayDataset({"image": smooth.astype(np.uint8), "label": np.zeros(50, np.int32)})
    spec = {"constants/whiten/kernel": jax.ShapeDtypeStruct((2, 2, 3, 24), np.float32)}
    task = airbench.get_config().task
    start = PatchWhitening("constants/whiten/kernel", epsilon=0.0)
    kernel = start.arrays(task, dataset, spec)["constants/whiten/kernel"]
    x = np.asarray(task.inputs(dataset.take(np.arange(50))))
    patches = [x[:, i : i + 8, j : j + 8] for i in (0, 1) for j in (0, 1)]
    made_NxF = np.concatenate(patches, -1).reshape(-1, 12) @ kernel.reshape(12, 24)[:, :12]
    np.testing.assert_allclose(made_NxF.T @ made_NxF / len(made_NxF), np.eye(12), atol=1e-3)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("constants/witen/kernel", "constants/whiten/kernel"),
        ("params/head/kernel", r"is \(256, 10\); a kernel"),
    ],
)
def test_what_cannot_be_whitened_is_one_line(path, message):
    spec = {
        "constants/whiten/kernel": jax.ShapeDtypeStruct((2, 2, 3, 24), np.float32),
        "params/head/kernel": jax.ShapeDtypeStruct((256, 10), np.float32),
    }
    with pytest.raises(ConfigError, match=message):
        PatchWhitening(path).arrays(airbench.get_config().task, None, spec)


def test_the_first_filters_pass_their_input_on():
    x = jnp.asarray(pictures(1, 5, 5, 3), jnp.float32)
    conv = nn.Conv(7, (3, 3), use_bias=False, kernel_init=Dirac())
    made = conv.apply(conv.init(KEY, x), x)
    np.testing.assert_array_equal(made[..., :3], x)
    assert float(jnp.abs(made[..., 3:]).min()) > 0


def test_views_are_the_mean_of_six():
    x = jnp.asarray(pictures(2, 6, 6, 1) / 255, jnp.float32)
    model = MLP(widths=(4,), outputs=3)
    viewed = Views(model)
    variables = viewed.init(KEY, x)
    assert jax.tree.structure(variables) == jax.tree.structure(model.init(KEY, x))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
    weights = [(x, 0.5), (padded[:, :6, :6], 0.25), (padded[:, 2:, 2:], 0.25)]
    expected = sum(
        weight * model.apply(variables, view[:, :, ::side]) / 2
        for view, weight in weights
        for side in (1, -1)
    )
    np.testing.assert_allclose(viewed.apply(variables, x), expected, atol=1e-6)
    trained = viewed.apply(variables, x, train=True)
    np.testing.assert_array_equal(trained, model.apply(variables, x, train=True))


def test_batch_norm_is_flax_s_and_so_is_its_gradient():
    x = jnp.asarray(pictures(4, 3, 3, 2), jnp.float32)
    wanted = jnp.asarray(pictures(4, 3, 3, 2), jnp.float32)

    def run(module, **options):
        variables = module.init(KEY, x, **options)
        params = jax.tree.map(lambda p: p + 0.5, variables["params"])

        def loss(params, x):
            y, changed = module.apply(
                variables | {"params": params}, x, mutable=["batch_stats"], **options
            )
            return (y * wanted).sum(), changed

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    ours = run(BatchNorm(momentum=0.6), train=True)
    theirs = run(nn.BatchNorm(use_running_average=False, momentum=0.6))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3), ours, theirs)


def corrected(peer, torch):
    """Returns the original's Muon with the momentum's bias corrected, as Optax has it."""

    class Muon(peer.Muon):
        @torch.no_grad()
        def step(self):
            for part in self.param_groups:
                for p in part["params"]:
                    held = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    t = self.state[p]["t"] = self.state[p].get("t", 0) + 1
                    held.mul_(0.6).add_(0.4 * p.grad)
                    ahead = 0.4 * p.grad / (1 - 0.6**t) + 0.6 * held / (1 - 0.6 ** (t + 1))
                    p.mul_(len(p) ** 0.5 / p.norm())
                    p.sub_(part["lr"] * peer.orthogonal(ahead.flatten(1)).view_as(p))

    return Muon


@pytest.mark.slow
def test_its_steps_are_the_original_s(monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is the reference")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    peer = importlib.import_module("airbench_torch")
    monkeypatch.setattr(airbench, "BATCH", 16)  # the rates of its sum over a batch go with it
    config, widths = airbench.get_config(), (8, 16, 16)
    task = dataclasses.replace(config.task, model=Views(Airbench(widths)))
    config = dataclasses.replace(config, task=task)
    batch = {"image": pictures(16, 32, 32, 3), "label": pictures(16).astype(np.int32) % 10}
    # 25 steps an epoch, as the original has.
    program = build(config, config.horizon(400), batch, jax.devices()[:1])
    state, net = program.init(), peer.Net(widths)
    params = state.params | {
        "whiten": state.params["whiten"] | state.model_state["constants"]["whiten"]
    }

    def put(theirs, ours):
        ours = np.array(ours)
        ours = ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T
        theirs.data = torch.tensor(ours).contiguous()

    put(net.whiten.weight, params["whiten"]["kernel"])
    put(net.whiten.bias, params["whiten"]["bias"])
    put(net.head.weight, params["head"]["kernel"])
    convolutions = [m for m in net.groups.modules() if isinstance(m, torch.nn.Conv2d)]
    for i, layer in enumerate(convolutions):
        put(layer.weight, params[f"conv_{i}"]["kernel"])
    monkeypatch.setattr(peer, "Muon", corrected(peer, torch))
    training = peer.Training(net, 16)
    x = torch.tensor(np.array(task.inputs(batch)).transpose(0, 3, 1, 2))
    for _ in range(5):
        expected = training.step(x, torch.tensor(batch["label"]).long())
        state, metrics = program.step(state, batch)
        loss = metrics["loss"]
        np.testing.assert_allclose(loss.sum / loss.weight, expected, rtol=1e-5)


@pytest.mark.slow
def test_runs_on_eight_devices_and_goes_on_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(airbench, "BATCH", 16)
    config = airbench.get_config()
    columns = {"image": pictures(32, 32, 32, 3), "label": pictures(32).astype(np.int32) % 10}
    source = Arrays(train=columns, test=columns)

    def run(name, mesh):
        task = dataclasses.replace(config.task, model=Views(Airbench((8, 16, 16))))
        data = dataclasses.replace(config.data, source=source)
        changes = {"task": task, "data": data, "mesh": mesh, "writers": ()}
        experiment = dataclasses.replace(config, **changes)
        result = lsm.fit(experiment, tmp_path / name)
        return result, lsm.load(tmp_path / name, experiment=experiment, step="last").params

    with monkeypatch.context() as patched:
        patched.setattr("lsm.train.interrupt.Interrupt.stops_after", lambda self, step: step == 5)
        assert run("parts", Mesh(fsdp=8))[0].stopped == "interrupted"
    (whole, straight), (again, resumed) = run("whole", Mesh(fsdp=8)), run("parts", Mesh(fsdp=8))
    assert again.metrics == whole.metrics
    jax.tree.map(np.testing.assert_array_equal, straight, resumed)
