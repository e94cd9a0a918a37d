"""Replace the recurrent layers of a Keras model by those that the kernels run, and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras

from .._annotations import readable
from ._keras_layers import GRU, LSTM, SimpleRNN, check, prepare

_KINDS: dict[Any, Any] = {
    keras.layers.LSTM: LSTM,
    keras.layers.GRU: GRU,
    keras.layers.SimpleRNN: SimpleRNN,
}
_BACK = {ours: theirs for theirs, ours in _KINDS.items()}


class Replaced(NamedTuple):
    """What `replace` did, layer by layer.

    >>> import keras
    >>> from ostinato.interop import keras as ok
    >>> gru = keras.layers.GRU(5, return_sequences=True, name="gru")
    >>> rnn = keras.layers.SimpleRNN(4, recurrent_dropout=0.1, name="rnn")
    >>> print(ok.replace(keras.Sequential([keras.Input((7, 3)), gru, rnn])))
    gru: GRU
    rnn: kept, recurrent_dropout=0.1, which the kernels do not have

    Attributes:
        replaced: the layers that the kernels now run, by their names.
        kept: why a recurrent layer was kept, by its name.
    """

    replaced: dict[str, Any]
    kept: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: {type(layer).__name__}" for name, layer in self.replaced.items()]
        lines += [f"{name}: kept, {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines) or "no recurrent layers"


def _layers(model: Any) -> list[Any]:
    """Return a model and all layers within it, those of wrappers and models included, each once."""
    if not isinstance(model, keras.Layer):
        raise TypeError(f"model: expected a keras.Model or layer, got {type(model).__name__}")
    return list({id(layer): layer for layer in model._flatten_layers()}.values())


def _why_not(layer: Any) -> str:
    """Tell why a recurrent layer is kept; "" where it can be replaced."""
    if type(layer) is keras.layers.RNN:
        return f"a loop over {type(layer.cell).__name__}; the kernels have LSTM, GRU, SimpleRNN"
    if type(layer) not in _KINDS:
        name = f"{type(layer).__module__}.{type(layer).__qualname__}"
        return f"{name} is a class of its own, whose methods may do something else"
    if layer.recurrent_dropout:
        return f"recurrent_dropout={layer.recurrent_dropout}, which the kernels do not have"
    if layer.dropout and getattr(layer.cell, "dropout_mask_count", None) is not None:
        return "implementation=1 drops other inputs for each gate"
    if getattr(layer, "use_cudnn", "auto") is True:
        return "use_cudnn=True asks for other kernels"
    try:
        check(layer)
    except (RuntimeError, ValueError) as error:
        return str(error)
    return ""


def _forget(layers: list[Any]) -> None:
    """Drop what Keras has compiled of models, which would go on with the layers as they were."""
    for model in layers:
        if not isinstance(model, keras.Model):
            continue
        model.train_function = model.test_function = model.predict_function = None
        if keras.config.backend() == "tensorflow" and model.compiled and model.jit_compile:
            model.jit_compile = all(layer.supports_jit for layer in _layers(model))


def replace(model: Any) -> Replaced:
    """Make every LSTM, GRU and SimpleRNN of Keras within a model one of ostinato, in place.

    The objects stay: only their class changes, so that weights, optimizer, names, shared layers,
    wrappers such as ``Bidirectional``, and models of one's own class go on. Layers that cannot be
    replaced, such as an ``RNN`` of cells, are kept and named.

    >>> import keras
    >>> from ostinato.interop import keras as ok
    >>> layer = keras.layers.Bidirectional(keras.layers.LSTM(4, name="lstm"))
    >>> model = keras.Sequential([keras.Input((7, 3)), layer])
    >>> sorted(ok.replace(model).replaced)
    ['backward_lstm', 'forward_lstm']

    Args:
        model: a ``keras.Model``, or a layer within which others are. A layer that is replaced
            itself may be given too.

    Returns:
        The layers that were replaced, and why others were kept.

    Raises:
        TypeError: something else than a model or a layer.
    """
    replaced: dict[str, Any] = {}
    kept: dict[str, str] = {}
    layers = _layers(model)
    sought: list[Any] = [one for one in layers if isinstance(one, keras.layers.RNN)]
    for layer in [one for one in sought if not isinstance(one, tuple(_BACK))]:
        if reason := _why_not(layer):
            kept[layer.name] = reason
        else:
            layer.__class__ = _KINDS[type(layer)]
            prepare(layer)
            replaced[layer.name] = layer
    _forget(layers)
    return Replaced(replaced, kept)


def restore(model: Any) -> list[str]:
    """Make every layer of ostinato within a model one of ``keras.layers`` again, in place.

    A model that is saved afterwards is a file of Keras alone.

    >>> import keras
    >>> from ostinato.interop import keras as ok
    >>> model = keras.Sequential([keras.Input((7, 3)), ok.GRU(5, name="gru")])
    >>> ok.restore(model), type(model.layers[0]).__module__.startswith("keras")
    (['gru'], True)

    Args:
        model: a ``keras.Model``, or a layer.

    Returns:
        The names of the layers that were restored.

    Raises:
        TypeError: something else than a model or a layer.
    """
    names = []
    layers = _layers(model)
    for layer in layers:
        theirs = _BACK.get(type(layer))
        if theirs is not None:
            layer.__class__ = theirs
            if hasattr(layer, "use_cudnn"):
                layer.use_cudnn = "auto"
            names.append(layer.name)
    _forget(layers)
    return names


readable(globals())
