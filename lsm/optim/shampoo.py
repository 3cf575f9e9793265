"""Shampoo: second-order preconditioning with one matrix for each axis, as an Optax transform."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = optax.Params
# TPUs multiply float32 numbers as bfloat16 unless asked not to.
_EXACT = jax.lax.Precision.HIGHEST


class ShampooState(NamedTuple):
    """State of `scale_by_shampoo`.

    Trees by axis hold a (d, d) float32 matrix for each parameter whose axis of size d is
    preconditioned, and `optax.MaskedNode()` for the others.
    """

    count: jax.Array  # shape=(), dtype=int32: updates seen.
    statistics: tuple[PyTree, ...]  # moving average of the Gram matrices, for each axis.
    roots: tuple[PyTree, ...]  # their inverse 2k-th roots, `update_every` steps old at most.
    graft: optax.OptState  # state of the transform that gives the size of the step.


def scale_by_shampoo(
    graft: optax.GradientTransformation,
    *,
    b2: float = 0.999,
    ridge: float = 1e-6,
    max_dim: int = 1024,
    update_every: int = 10,
) -> optax.GradientTransformation:
    """Preconditions every axis of a gradient with its own second-moment matrix.

    For a gradient G of order k, and each of its axes i,

        H_i  <-  b2 H_i + (1 - b2) G_(i) G_(i)^T          G_(i): G unfolded to (d_i, rest)
        U    =   G x_1 H_1^(-1/2k) x_2 ... x_k H_k^(-1/2k)

    (for a matrix: L^(-1/4) G R^(-1/4)), and U is scaled to the norm of the grafted step. Axes
    longer than `max_dim` are left alone and do not count in k; a vector, or a tensor none of whose
    axes is left, takes the grafted step itself, which for RMSProp is the diagonal preconditioner.
    A stack of matrices is a tensor like any other here; `lsm.optim.unstacked` takes its
    layers apart.

    Args:
      graft: transform without a learning rate, whose step gives each tensor its norm.
      b2: decay of the moving average; the paper's plain sum never forgets.
      ridge: added to a matrix before its root is taken, relative to its largest eigenvalue.
      max_dim: longest axis that is preconditioned.
      update_every: steps between two computations of the roots, O(d^3) each.

    Returns:
      An `optax.GradientTransformation` with a `ShampooState`.

    References:
      Gupta, Koren & Singer 2018, Shampoo: Preconditioned Stochastic Tensor Optimization,
      arXiv:1802.09568; Anil et al. 2020, Scalable Second Order Optimization for Deep Learning,
      arXiv:2002.09018 (moving average, grafting, stale roots).
    """

    def init(params: PyTree) -> ShampooState:
        # From 0, uncorrected: a factor of H changes no more than the size of U, which is grafted.
        zeros = _by_axis(params, max_dim, lambda d: jnp.zeros((d, d), jnp.float32))
        eyes = _by_axis(params, max_dim, lambda d: jnp.eye(d, dtype=jnp.float32))
        return ShampooState(jnp.zeros([], jnp.int32), zeros, eyes, graft.init(params))

    def update(updates, state, params=None):
        statistics = tuple(
            _map(lambda g, h, axis=axis: b2 * h + (1 - b2) * _gram(g, axis), updates, by_leaf)
            for axis, by_leaf in enumerate(state.statistics)
        )
        # A branch, so that `eigh` runs at these steps alone; the first step is one of them.
        roots = jax.lax.cond(
            state.count % update_every == 0,
            lambda: tuple(_roots(updates, by_leaf, max_dim, ridge) for by_leaf in statistics),
            lambda: state.roots,
        )
        grafted, graft_state = graft.update(updates, state.graft, params)
        directions = updates
        for axis, by_leaf in enumerate(roots):
            directions = _map(
                lambda g, root, axis=axis: _times(g, root, axis), directions, by_leaf, keep=True
            )
        sized = jax.tree.map(
            # Vectors have no matrix, and take the grafted step as it is.
            lambda u, step: _resize(u, step) if _axes(u.shape, max_dim) else step,
            directions,
            grafted,
        )
        count = optax.safe_increment(state.count)
        return sized, ShampooState(count, statistics, roots, graft_state)

    return optax.GradientTransformation(init, update)


def _axes(shape: tuple[int, ...], max_dim: int) -> tuple[int, ...]:
    """Returns the axes that are preconditioned: none of a vector, and no axis of size 1."""
    if sum(d > 1 for d in shape) < 2:
        return ()
    return tuple(axis for axis, d in enumerate(shape) if 1 < d <= max_dim)


def _by_axis(params: PyTree, max_dim: int, make) -> tuple[PyTree, ...]:
    order = max((x.ndim for x in jax.tree.leaves(params)), default=0)

    def leaf(x: jax.Array, axis: int):
        chosen = axis in _axes(x.shape, max_dim)
        return make(x.shape[axis]) if chosen else optax.MaskedNode()

    return tuple(jax.tree.map(lambda x, i=i: leaf(x, i), params) for i in range(order))


def _map(function, updates: PyTree, by_leaf: PyTree, keep: bool = False) -> PyTree:
    """Maps over the leaves that have a matrix; for the others keeps the update, or the mask."""

    def leaf(g, matrix):
        if isinstance(matrix, optax.MaskedNode):
            return g if keep else matrix
        return function(g, matrix)

    return jax.tree.map(leaf, updates, by_leaf)


def _roots(updates: PyTree, statistics: PyTree, max_dim: int, ridge: float) -> PyTree:
    return _map(
        lambda g, h: _inverse_root(h, 2 * len(_axes(g.shape, max_dim)), ridge), updates, statistics
    )


def _gram(g: jax.Array, axis: int) -> jax.Array:
    rest = [i for i in range(g.ndim) if i != axis]
    g = g.astype(jnp.float32)
    return jnp.tensordot(g, g, axes=(rest, rest), precision=_EXACT)


def _inverse_root(h: jax.Array, p: int, ridge: float) -> jax.Array:
    """Returns (h + ridge * largest eigenvalue * I)^(-1/p) of a symmetric h >= 0."""
    values, vectors = jnp.linalg.eigh(h)
    largest = jnp.maximum(values[-1], 1e-30)  # All gradients were 0: any finite root will do.
    # Rounding makes small eigenvalues negative.
    powers = (jnp.maximum(values, 0) + ridge * largest) ** (-1 / p)
    return jnp.matmul(vectors * powers, vectors.T, precision=_EXACT)


def _times(g: jax.Array, root: jax.Array, axis: int) -> jax.Array:
    product = jnp.tensordot(root, g.astype(jnp.float32), axes=(1, axis), precision=_EXACT)
    return jnp.moveaxis(product, 0, axis).astype(g.dtype)


def _resize(direction: jax.Array, step: jax.Array) -> jax.Array:
    length = jnp.linalg.norm(direction)
    # Without a gradient both are 0, and so is the step.
    return direction * jnp.where(length > 0, jnp.linalg.norm(step) / length, 0)
