"""Define the recurrent layers of Keras that the kernels run."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from .._annotations import readable
from .._functions import Chosen, Function, LstmOptions, gru_cell, lstm_cell, rnn_cell
from ._keras_kernels import Inputs, Options, Result

_BACKENDS = ("jax", "numpy", "tensorflow", "torch")
_GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}

# By the name of an activation of Keras 3: the same function of the kernels.
ACTIVATIONS: dict[str, Function] = {
    "elu": ("elu", 1.0),
    "exponential": "exponential",
    "hard_sigmoid": ("hard_sigmoid", 1 / 6, 0.5),
    "leaky_relu": ("leaky_relu", 0.2),
    "linear": "linear",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "softplus": "softplus",
    "softsign": "softsign",
    "tanh": "tanh",
}


def _function(name: str, activation: Any) -> Function:
    """Return an activation as the kernels have it."""
    for known, function in ACTIVATIONS.items():
        if activation is getattr(keras.activations, known):
            return function
    got = getattr(activation, "__name__", type(activation).__name__)
    raise ValueError(
        f"{name}: expected one of {', '.join(ACTIVATIONS)}, got {got}; use the layer of "
        "keras.layers for other functions"
    )


def _chosen(layer: Any) -> Chosen:
    """Return the cell of a layer of Keras; raise where the kernels have none."""
    activation = _function("activation", layer.activation)
    if isinstance(layer, keras.layers.SimpleRNN):
        return rnn_cell(activation, None)
    gates = _function("recurrent_activation", layer.recurrent_activation)
    if isinstance(layer, keras.layers.GRU):
        return gru_cell(layer.reset_after, activation, gates, None)
    return lstm_cell(LstmOptions(activation, gates, activation), "lstm")


def _bridge() -> Callable[[Options, Inputs, bool], Result]:
    """Return the function that runs the kernels for what Keras computes with."""
    name = keras.config.backend()
    if name not in _BACKENDS:
        raise RuntimeError(
            f"KERAS_BACKEND: expected one of {', '.join(_BACKENDS)} for an ostinato layer, got "
            f"{name}"
        )
    run: Any = importlib.import_module(f"._keras_on_{name}", __package__)
    function: Callable[[Options, Inputs, bool], Result] = run.recurrent
    return function


def check(layer: Any) -> None:
    """Raise where the kernels cannot run a layer of Keras.

    Args:
        layer: one of `keras.layers.LSTM`, `GRU` or `SimpleRNN`.

    Raises:
        RuntimeError: what Keras computes with is none that the kernels know.
        ValueError: an option that they do not have.
    """
    _bridge()
    _chosen(layer)
    if layer.dropout == 1:
        raise ValueError("dropout: expected a number in [0, 1), got 1.0")


def prepare(layer: Any) -> None:
    """Let Keras leave its own kernels, and its compiler where that knows no others.

    Args:
        layer: a layer of ours.
    """
    layer.use_cudnn = False
    if keras.config.backend() == "tensorflow":
        layer.supports_jit = False


class _Recurrent:
    """What the three layers have in common: the loop over the steps, which the kernels run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("use_cudnn", "auto") is True:
            raise ValueError(
                "use_cudnn: expected 'auto' or False, got True; the kernels of ostinato run in "
                "its place"
            )
        super().__init__(*args, **kwargs)
        check(self)
        prepare(self)

    def inner_loop(
        self, sequences: Any, initial_state: Any, mask: Any, training: Any = False
    ) -> tuple[Any, Any, list[Any]]:
        """Run all steps, as Keras asks a layer to do.

        >>> import numpy as np
        >>> from ostinato.interop import keras as ok
        >>> layer = ok.SimpleRNN(4)
        >>> layer.build((2, 5, 3))
        >>> x, h = np.ones((2, 5, 3), "float32"), np.zeros((2, 4), "float32")
        >>> last, outputs, states = layer.inner_loop(x, [h], None)
        >>> tuple(last.shape), tuple(outputs.shape)
        ((2, 4), (2, 5, 4))

        Args:
            sequences: ``[B,T,I]``.
            initial_state: h, for an LSTM h and c, each ``[B,H]``.
            mask: bool ``[B,T]``, True where a step counts; None: everywhere.
            training: whether dropout acts.

        Returns:
            The last output ``[B,H]``, all outputs ``[B,T,H]``, and the list of last states.

        Raises:
            ValueError: dropout that the kernels do not have, in training.
        """
        return _run(self, sequences, initial_state, mask, bool(training))


def _run(layer: Any, x: Any, states: Any, mask: Any, training: bool) -> tuple[Any, Any, list[Any]]:
    cell = layer.cell
    low = cell.compute_dtype
    dtype = "float64" if low == "float64" else "float32"
    chosen = _chosen(layer)
    options = Options(
        chosen.cell,
        chosen.scalars,
        layer.go_backwards,
        "bfloat16" if low == "bfloat16" and not chosen.scalars else "exact",
        layer.zero_output_for_mask,
    )
    x = ops.cast(_dropped(cell, x, training), dtype)
    states = list(states) if isinstance(states, (list, tuple)) else [states]
    if layer.stateful:  # what is assigned to them must not change what the gradient reads
        states = [ops.copy(s) for s in states]
    h0, c0 = ([ops.cast(s, dtype) for s in states] + [None])[:2]
    mask = _flags(mask)
    w_ih, w_hh, b_ih, b_hh = _weights(layer, dtype)
    inputs = Inputs(x, h0, c0, w_ih, w_hh, b_ih, b_hh, mask)
    y, h_n, c_n = _bridge()(options, inputs, training)
    last = h_n
    if mask is not None and not options.zero and _begins_with_state(layer):
        y = _before(options, y, h0, mask)
    elif mask is not None:
        last = _last(options, h_n, mask)
    return last, y, [h_n] if c_n is None else [h_n, c_n]


def _dropped(cell: Any, x: Any, training: bool) -> Any:
    """Return x with the dropout of a training step, by the mask that Keras has drawn."""
    if not training:
        return x
    if cell.recurrent_dropout:
        raise ValueError(
            f"recurrent_dropout: expected 0 in training, got {cell.recurrent_dropout}; the "
            "kernels have none within a step: use the layer of keras.layers"
        )
    if not cell.dropout:
        return x
    if getattr(cell, "dropout_mask_count", None) is not None:
        raise ValueError(
            f"implementation: expected 2 with dropout={cell.dropout}, got 1, which drops other "
            "inputs for each gate: use the layer of keras.layers"
        )
    return x * ops.expand_dims(cell.get_dropout_mask(x[:, 0, :]), 1)


def _flags(mask: Any) -> Any:
    """Return a mask as bool ``[B,T]``, or None."""
    if isinstance(mask, (list, tuple)):
        mask = mask[0]
    if mask is None:
        return None
    mask = ops.cast(mask, "bool")
    return ops.squeeze(mask, -1) if len(mask.shape) == 3 else mask


def _begins_with_state(layer: Any) -> bool:
    """Return whether masked steps give the initial state before the first one that counts.

    Keras' loops over JAX and NumPy do, if they are not unrolled; all others give zeros, as the
    kernels do.
    """
    return keras.config.backend() in ("jax", "numpy") and not layer.unroll


def _before(options: Options, y: Any, h0: Any, mask: Any) -> Any:
    """Return outputs with the initial state before the first step that counts."""
    flags = ops.flip(mask, 1) if options.reverse else mask
    begun = ops.cumsum(ops.cast(flags, "int32"), axis=1) > 0
    return ops.where(ops.expand_dims(begun, 2), y, ops.expand_dims(h0, 1))


def _last(options: Options, h_n: Any, mask: Any) -> Any:
    """Return the last output, which is zero where no step has counted."""
    counts = mask[:, 0 if options.reverse else -1] if options.zero else ops.any(mask, axis=1)
    return ops.where(ops.expand_dims(counts, 1), h_n, ops.zeros_like(h_n))


def _weights(layer: Any, dtype: str) -> list[Any]:
    """Return weight_ih, weight_hh, bias_ih and bias_hh in PyTorch's layout.

    They are made of Keras' variables by operations that have gradients.
    """
    cell = layer.cell

    def value(variable: Any) -> Any:
        a = ops.cast(ops.convert_to_tensor(variable), dtype)
        if not isinstance(layer, keras.layers.GRU):
            return a
        z, r, n = ops.split(a, 3, axis=-1)
        return ops.concatenate([r, z, n], axis=-1)

    kernel, recurrent = (ops.transpose(value(v)) for v in (cell.kernel, cell.recurrent_kernel))
    if cell.bias is None:
        return [kernel, recurrent, None, None]
    bias = value(cell.bias)
    if len(bias.shape) == 2:
        return [kernel, recurrent, bias[0], bias[1]]
    return [kernel, recurrent, bias, None]


@keras.saving.register_keras_serializable(package="ostinato")
class LSTM(_Recurrent, keras.layers.LSTM):
    """``keras.layers.LSTM`` on the kernels of ostinato.

    Arguments, attributes, weights, configuration, calls and outputs are those of
    ``keras.layers.LSTM``, and so are the random numbers of dropout.

    >>> import numpy as np
    >>> from ostinato.interop import keras as ok
    >>> layer = ok.LSTM(5, return_sequences=True, return_state=True)
    >>> y, h, c = layer(np.zeros((2, 7, 3), "float32"))
    >>> tuple(y.shape), tuple(h.shape), [tuple(w.shape) for w in layer.weights]
    ((2, 7, 5), (2, 5), [(3, 20), (5, 20), (20,)])

    Args:
        units: H, the width of an output.
        *args: the further arguments of ``keras.layers.LSTM``, in its order.
        **kwargs: those by name. ``activation`` and ``recurrent_activation`` are one of `tanh`,
            sigmoid, relu, linear, hard_sigmoid, leaky_relu, elu, softsign, softplus and
            exponential. ``recurrent_dropout`` acts in training, where it is an error.
            ``unroll`` changes nothing: no loop is there to be unrolled.

    Raises:
        RuntimeError: Keras computes with something else than PyTorch, JAX, TensorFlow or NumPy.
        ValueError: an option that the kernels do not have.
    """

    def __init__(self, units: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)


@keras.saving.register_keras_serializable(package="ostinato")
class GRU(_Recurrent, keras.layers.GRU):
    """``keras.layers.GRU`` on the kernels of ostinato.

    Arguments, attributes, weights, configuration, calls and outputs are those of
    ``keras.layers.GRU``, with ``reset_after`` True or False, and so are the random numbers of
    dropout.

    >>> import numpy as np
    >>> from ostinato.interop import keras as ok
    >>> layer = ok.GRU(5, reset_after=False, recurrent_activation="hard_sigmoid")
    >>> tuple(layer(np.zeros((2, 7, 3), "float32")).shape)
    (2, 5)

    Args:
        units: H, the width of an output.
        *args: the further arguments of ``keras.layers.GRU``, in its order.
        **kwargs: those by name; see `LSTM` for what the kernels have.

    Raises:
        RuntimeError: Keras computes with something else than PyTorch, JAX, TensorFlow or NumPy.
        ValueError: an option that the kernels do not have.
    """

    def __init__(self, units: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)


@keras.saving.register_keras_serializable(package="ostinato")
class SimpleRNN(_Recurrent, keras.layers.SimpleRNN):
    """``keras.layers.SimpleRNN`` on the kernels of ostinato.

    Arguments, attributes, weights, configuration, calls and outputs are those of
    ``keras.layers.SimpleRNN``, and so are the random numbers of dropout.

    >>> import numpy as np
    >>> from ostinato.interop import keras as ok
    >>> layer = ok.SimpleRNN(5, activation="relu")
    >>> tuple(layer(np.zeros((2, 7, 3), "float32")).shape)
    (2, 5)

    Args:
        units: H, the width of an output.
        *args: the further arguments of ``keras.layers.SimpleRNN``, in its order.
        **kwargs: those by name; see `LSTM` for what the kernels have.

    Raises:
        RuntimeError: Keras computes with something else than PyTorch, JAX, TensorFlow or NumPy.
        ValueError: an option that the kernels do not have.
    """

    def __init__(self, units: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(units, *args, **kwargs)


readable(globals())
