"""The functions of a trained model that are exported: its predictions; a decoder's two steps."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsm.data.inputs import Inputs
from lsm.data.texts.encoder import SEGMENTS, TYPES, WORDS
from lsm.errors import ConfigError, LsmError, shortened
from lsm.export.artefact import DECODE, PREDICT, PREFILL
from lsm.export.program import Exportable, Named, lowered
from lsm.export.spec import Array, Function, Symbol
from lsm.models import Cache, Caches, Lora
from lsm.params import flat
from lsm.tasks import LanguageModelling
from lsm.train.program import make_predict
from lsm.train.trained import Trained

_log = logging.getLogger("lsm.export")

BATCH, LENGTH = "batch", "length"


class Traced(NamedTuple):
    """What there is to write of a model.

    Attributes:
      functions: by name, each with its StableHLO.
      weights: the arrays that some function reads, by name; on the run's mesh.
    """

    functions: dict[str, tuple[Function, bytes]]
    weights: dict[str, jax.Array]


def traced(run: Trained, platforms: tuple[str, ...], context: int | None) -> Traced:
    """Returns the functions of a model.

    Args:
      run: the model.
      platforms: see `lsm.export.export`.
      context: positions of a decoder's cache; None where it writes no texts.

    Raises:
      ConfigError: something in it cannot be exported.
    """
    if context is None:
        variables = {"params": run.params, **run.model_state}
        functions, restored = {}, lambda tree: tree
    else:
        if isinstance(run.experiment.task.model, Lora):
            raise ConfigError(
                "export: a decoder with adapters is written without them; merge them first: "
                "python -m lsm.adapt merge --workdir=RUN --out=MERGED."
            )
        variables, restored = run.decoder.variables, _restacked
        functions = _decoder(run, variables, platforms, context)
    functions[PREDICT] = _predict(run, variables, restored, platforms)
    used = {name for function, _ in functions.values() for name in function.weights}
    return Traced(functions, {n: x for n, x in flat(variables).items() if n in used})


def _predict(
    run: Trained, variables: Any, restored: Any, platforms: tuple[str, ...]
) -> tuple[Function, bytes]:
    task, inputs, step = run.experiment.task, run.inputs_known, np.int32(run.step)
    tree, names = jax.tree.structure(variables), list(flat(variables))
    predict = make_predict(task, run.experiment.train.seed)

    def function(weights: Named, batch: Named) -> dict[str, jax.Array]:
        whole = jax.tree.unflatten(tree, [weights[name] for name in names])
        state = dict(restored(whole))
        params = state.pop("params", {})
        return predict(params, state, batch, np.int32(0), step)

    least = 2 if isinstance(task, LanguageModelling) else 1  # targets are all tokens but the first
    columns, symbols = _columns(inputs, least)
    given = (PREDICT, flat(variables), platforms)
    try:
        return _lowered(function, *given, columns, symbols)
    except _Refused as error:
        if len(symbols) == 1:
            raise ConfigError(f"export: {type(task.model).__name__}: {error}") from error
        _log.warning("export: texts are of the run's own length alone: %s", error)
    columns = {
        name: Array((BATCH, *inputs.columns[name].shape), one.dtype)
        for name, one in columns.items()
    }
    try:
        return _lowered(function, *given, columns, {BATCH: symbols[BATCH]})
    except _Refused as error:
        raise ConfigError(f"export: {type(task.model).__name__}: {error}") from error


def _columns(inputs: Inputs, least: int) -> tuple[dict[str, Array], dict[str, Symbol]]:
    """Returns the columns of examples and the symbols in them: of texts, any length is taken."""
    texts = _texts(inputs)
    symbols, found = {BATCH: Symbol()}, {}
    for name, one in inputs.columns.items():
        if one.dtype == object:
            continue
        dims, of = one.shape, [text for text in texts if name in _beside(text)]
        if of and len(dims) == 1:
            number = texts.index(of[0])
            symbol = LENGTH if not number else f"{LENGTH}_{number}"
            symbols[symbol] = Symbol(min(least, dims[0]), dims[0])
            dims = (symbol,)
        dtype = jax.dtypes.canonicalize_dtype(one.dtype)
        found[name] = Array((BATCH, *dims), dtype.name)
    return found, symbols


def _texts(inputs: Inputs) -> list[str]:
    """The columns of tokens."""
    if inputs.encoder is not None:
        return list(inputs.encoder.columns)
    known = inputs.characters is not None
    return [name for name, one in inputs.columns.items() if known and len(one.shape) == 1]


def _beside(text: str) -> tuple[str, ...]:
    """The columns that are as long as one of tokens."""
    return (text, *(text + kind for kind in (TYPES, WORDS, SEGMENTS)))


def _decoder(
    run: Trained, variables: Any, platforms: tuple[str, ...], context: int
) -> dict[str, tuple[Function, bytes]]:
    """Prefill and decode: see `docs/export.md`."""
    model, tree, names = run.decoder.model, jax.tree.structure(variables), list(flat(variables))

    def applied(weights: Named, *given: Any, method: str) -> Any:
        state = jax.tree.unflatten(tree, [weights[name] for name in names])
        return model.apply(state, *given, method=method)

    def said(logits_BxV: jax.Array, cache: Caches) -> dict[str, jax.Array]:
        token_B = logits_BxV.argmax(-1).astype(jnp.int32)
        arrays = flat(tuple((one.k_BxGxKxS, one.v_BxGxSxK) for one in cache))
        held = {"cache/length": cache.length} | {f"cache/{n}": x for n, x in arrays.items()}
        return {"logits": logits_BxV, "token": token_B} | held

    def prefill(weights: Named, given: Named) -> dict[str, jax.Array]:
        tokens_BxT, lengths_B = given["tokens"], given["lengths"]
        cache = model.cache(tokens_BxT.shape[0], context)
        x_BxTxD, cache = applied(weights, tokens_BxT, cache, method="extend")
        last_Bx1x1 = (lengths_B - 1)[:, None, None]
        last_Bx1xD = jnp.take_along_axis(x_BxTxD, last_Bx1x1, axis=1)
        logits_BxV = applied(weights, last_Bx1xD, method="logits")[:, 0]
        return said(logits_BxV, cache.filled(lengths_B))

    def decode(weights: Named, given: Named) -> dict[str, jax.Array]:
        parts = [given[f"cache/{n}/{part}"] for n in range(len(shapes)) for part in (0, 1)]
        length_B = given["cache/length"]
        cache = Caches(
            Cache(k_BxGxKxS=k, v_BxGxSxK=v, length=length_B)
            for k, v in zip(parts[::2], parts[1::2], strict=True)
        )
        tokens_Bx1 = given["token"][:, None]
        logits_Bx1xV, cache = applied(weights, tokens_Bx1, cache, method="decode")
        return said(logits_Bx1xV[:, 0], cache)

    shapes = jax.eval_shape(lambda: model.cache(1, context))
    row, weights = Array((BATCH,), "int32"), flat(variables)
    prompt = {"tokens": Array((BATCH, LENGTH), "int32"), "lengths": row}
    symbols = {BATCH: Symbol(), LENGTH: Symbol(1, context)}
    try:
        first = _lowered(prefill, PREFILL, weights, platforms, prompt, symbols)
        cache = {n: x for n, x in first[0].outputs.items() if n.startswith("cache/")}
        given = {"token": row} | cache
        next_ = _lowered(decode, DECODE, weights, platforms, given, {BATCH: Symbol()})
    except _Refused as error:
        raise ConfigError(f"export: {type(model).__name__}: {error}") from error
    return {PREFILL: first, DECODE: next_}


class _Refused(Exception):
    """What JAX says against a function, in one line."""


def _lowered(
    function: Exportable,
    name: str,
    weights: Mapping[str, jax.Array],
    platforms: tuple[str, ...],
    inputs: Mapping[str, Array],
    symbols: Mapping[str, Symbol],
) -> tuple[Function, bytes]:
    known = {name: Array.of(x) for name, x in weights.items()}
    try:
        return lowered(function, f"{name}.stablehlo", symbols, known, inputs, platforms)
    except LsmError:
        raise
    except Exception as error:  # of any kind: a size that a branch hangs on, an unknown custom call
        reason = str(error).strip().splitlines()[0]
        raise _Refused(f"JAX cannot export it ({shortened(reason, 300)}).") from error


def _restacked(variables: Any) -> Any:
    """Undoes what `lsm.generate.Decoder` does to the blocks: stacks them again."""
    if not isinstance(variables, Mapping):
        return variables
    return {
        name: jax.tree.map(lambda *of: jnp.stack(of), *x)
        if name == "blocks" and isinstance(x, tuple)
        else _restacked(x)
        for name, x in variables.items()
    }
