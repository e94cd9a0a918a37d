"""Run the kernels for Keras on JAX: by the operations that `ostinato.interop.jax` runs by."""

from __future__ import annotations

import jax

from .._functions import Chosen
from ._jax_arguments import recurrent as run
from ._keras_kernels import Inputs, Options, Result


def recurrent(options: Options, inputs: Inputs, training: bool) -> Result:
    """Run one layer."""
    if jax.default_backend() != "cpu":
        raise RuntimeError(
            f"sequences: expected JAX on the CPU, got {jax.default_backend()}; set "
            "JAX_PLATFORMS=cpu, or use the layer of keras.layers"
        )
    x, h0, c0, *weights, mask = inputs
    y, *states = run(
        Chosen(options.cell, options.scalars),
        x,
        [*weights, None],
        (h0, c0),
        (None, None, mask, "zero" if options.zero else "repeat"),
        None,
        reverse=options.reverse,
        batch_first=True,
        precision=None if options.precision == "exact" else options.precision,
    )
    if options.reverse:
        y = y[:, ::-1]
    return Result(y, *states, *([] if options.has_c else [None]))
