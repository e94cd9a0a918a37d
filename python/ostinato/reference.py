"""Define the equations in NumPy float64, as the papers give them: the specification of the kernels.

One layer, one direction. Shapes: ``x [T,B,I]``, ``h [B,H]``, ``c [B,H]``; weights have PyTorch's
names, shapes and gate orders. Each cell is a pair of functions for one time step; `forward` and
`backward` run any cell through time. Attention, convolution, normalisation and pooling have a
forward pass alone, whose gradients the tests take by finite differences. The tests compare the
kernels with this module, which shares no code with them and is not fast.

>>> import numpy as np
>>> rng = np.random.default_rng(0)
>>> w_ih, w_hh = rng.normal(size=(12, 2)), rng.normal(size=(12, 3))
>>> p = Weights(w_ih, w_hh, rng.normal(size=12), rng.normal(size=12))
>>> run = forward("lstm", rng.normal(size=(5, 4, 2)), p)
>>> run.y.shape, run.h_n.shape, run.c_n.shape
((5, 4, 3), (4, 3), (4, 3))
>>> g = backward(run, dy=np.ones((5, 4, 3)))
>>> g.x.shape, g.weights.weight_hh.shape
((5, 4, 2), (12, 3))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._annotations import readable
from ._reference_layers import attention, conv1d, layer_norm, pool

Array = npt.NDArray[Any]

__all__ = [
    "CELLS",
    "FUNCTIONS",
    "Gradients",
    "Options",
    "Run",
    "TreeRun",
    "Weights",
    "attention",
    "backward",
    "clockwork",
    "conv1d",
    "ctc",
    "dropout_mask",
    "forward",
    "layer_norm",
    "philox",
    "pool",
    "tree_lstm",
    "tree_lstm_backward",
]


class Options(NamedTuple):
    """Hold what a general cell has in place of the usual functions.

    >>> Options(recurrent_activation=("hard_sigmoid", 0.2, 0.5), clip=3.0).activation
    'tanh'

    Attributes:
        activation: the name of a function of `FUNCTIONS`, or a tuple of its name and parameters:
            of a_g of an LSTM, a_n of a GRU, a of an RNN.
        recurrent_activation: the same, of the gates.
        output_activation: the same, of c'.
        clip: the bound of what the first two are given, or None.
        coupled_gates: whether f is 1 - i.
    """

    activation: Any = "tanh"
    recurrent_activation: Any = "sigmoid"
    output_activation: Any = "tanh"
    clip: float | None = None
    coupled_gates: bool = False


@dataclass
class Weights:
    """Hold the weights of one layer and direction.

    >>> import numpy as np
    >>> p = Weights(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), np.ones(3))
    >>> p.zeros().weight_ih.shape
    (3, 2)

    Attributes:
        weight_ih: ``[G*H,I]``, with G gates.
        weight_hh: ``[G*H,H]``; ``[4*H,P]`` beside weight_hr.
        bias_ih: ``[G*H]``.
        bias_hh: ``[G*H]``.
        weight_peephole: ``[3,H]`` in the order i f o, or None.
        weight_hr: ``[P,H]`` of a projected LSTM, whose h is P wide, or None.
        weight_ln_ih: ``[4*H]`` of a layer-norm LSTM, the gain of W x, or None.
        weight_ln_hh: ``[4*H]``, the gain of R h.
        weight_ln_c: ``[H]``, the gain of c'.
        bias_ln_c: ``[H]``, the shift of c'.
        options: functions, clip and coupled gates of a general cell; no array.
    """

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array
    weight_peephole: Array | None = None
    weight_hr: Array | None = None
    weight_ln_ih: Array | None = None
    weight_ln_hh: Array | None = None
    weight_ln_c: Array | None = None
    bias_ln_c: Array | None = None
    options: Options | None = None

    @property
    def cell_size(self) -> int:
        """H, the width of c: that of h, unless h is projected."""
        return int((self.weight_hh if self.weight_hr is None else self.weight_hr).shape[1])

    def zeros(self) -> Weights:
        """Return gradients of the same shapes, at zero.

        Returns:
            The gradients.
        """
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "options"}
        zeros: dict[str, Any] = {
            n: None if w is None else np.zeros(w.shape) for n, w in given.items()
        }
        return Weights(**zeros)


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return np.where(
        x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x)))
    )


# A step takes (x, h, c, p) and gives (h', c', cache); its backward takes (dh', dc', cache, p, g),
# adds the gradients of
# the weights to g and gives (dx, dh, dc). Cells without c pass it through.
Step = Callable[[Array, Array, Array, Weights], "tuple[Array, Array, Any]"]
StepBackward = Callable[[Array, Array, Any, Weights, Weights], "tuple[Array, Array, Array]"]


def _input_backward(da: Array, x: Array, p: Weights, g: Weights) -> Array:
    """Return dx of a = W x + b_ih, and add the gradients of W and b_ih to g."""
    g.weight_ih += da.T @ x
    g.bias_ih += da.sum(0)
    return da @ p.weight_ih


def _recurrent_backward(da: Array, h: Array, p: Weights, g: Weights) -> Array:
    """Return dh of a = R h + b_hh, and add the gradients of R and b_hh to g."""
    g.weight_hh += da.T @ h
    g.bias_hh += da.sum(0)
    return da @ p.weight_hh


# Elman (1990):  h' = phi(W x + b_ih + R h + b_hh)


def _rnn(phi: Callable[[Array], Array]) -> Step:
    def step(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
        new = phi(x @ p.weight_ih.T + p.bias_ih + h @ p.weight_hh.T + p.bias_hh)
        return new, c, (x, h, new)

    return step


def _rnn_backward(slope: Callable[[Array], Array]) -> StepBackward:
    def step(
        dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
    ) -> tuple[Array, Array, Array]:
        x, h, new = cache
        da = dh * slope(new)
        return _input_backward(da, x, p, g), _recurrent_backward(da, h, p, g), dc

    return step


# Hochreiter, Schmidhuber (1997); Gers et al. (2000); peepholes Gers et al. (2002):
# i = s(a_i + p_i c)   f = s(a_f + p_f c)   g = tanh(a_g)   c' = f c + i g   o = s(a_o + p_o c')
# h' = o tanh(c')


def _lstm(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    ai, af, ag, ao = np.split(
        x @ p.weight_ih.T + p.bias_ih + h @ p.weight_hh.T + p.bias_hh, 4, axis=1
    )
    pi, pf, po = np.zeros((3, c.shape[1])) if p.weight_peephole is None else p.weight_peephole
    i, f, gg = sigmoid(ai + pi * c), sigmoid(af + pf * c), np.tanh(ag)
    new_c = f * c + i * gg
    o = sigmoid(ao + po * new_c)
    return o * np.tanh(new_c), new_c, (x, h, c, i, f, gg, o, new_c)


def _lstm_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, c, i, f, gg, o, new_c = cache
    pi, pf, po = np.zeros((3, c.shape[1])) if p.weight_peephole is None else p.weight_peephole
    do = dh * np.tanh(new_c)
    dao = do * o * (1 - o)
    dnew = dc + dh * o * (1 - np.tanh(new_c) ** 2) + dao * po
    dai = dnew * gg * i * (1 - i)
    daf = dnew * c * f * (1 - f)
    dag = dnew * i * (1 - gg**2)
    if g.weight_peephole is not None:
        g.weight_peephole += np.stack([(dai * c).sum(0), (daf * c).sum(0), (dao * new_c).sum(0)])
    da = np.concatenate([dai, daf, dag, dao], axis=1)
    return (
        _input_backward(da, x, p, g),
        _recurrent_backward(da, h, p, g),
        dnew * f + dai * pi + daf * pf,
    )


# Sak, Senior, Beaufays (2014):  m = o tanh(c')   h' = W_hr m,  the rest as above


def _lstm_projected(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    assert p.weight_hr is not None
    m, new_c, cache = _lstm(x, h, c, p)
    return m @ p.weight_hr.T, new_c, (m, *cache)


def _lstm_projected_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    m, *rest = cache
    assert p.weight_hr is not None
    assert g.weight_hr is not None
    g.weight_hr += dh.T @ m
    return _lstm_backward(dh @ p.weight_hr, dc, tuple(rest), p, g)


# Ba, Kiros, Hinton (2016), the LSTM of the supplement; n(a) is a with zero mean and unit variance:
# a = n(W x) gain_ih + b_ih + n(R h) gain_hh + b_hh   c' = f c + i g
# h' = o tanh(n(c') gain_c + shift_c), the rest as above. The variance is that of the row, not of a
# sample, and EPS is added to it.

EPS = 1e-5


def _norm(a: Array) -> tuple[Array, Array]:
    """Return the normed rows, and what their deviations were divided by."""
    deviation = a - a.mean(1, keepdims=True)
    scale = np.sqrt((deviation**2).mean(1, keepdims=True) + EPS)
    return deviation / scale, scale


def _norm_backward(d: Array, cache: tuple[Array, Array]) -> Array:
    normed, scale = cache
    along = (d * normed).mean(1, keepdims=True)
    out: Array = (d - d.mean(1, keepdims=True) - normed * along) / scale
    return out


def _lstm_layer_norm(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    norm_x, norm_h = _norm(x @ p.weight_ih.T), _norm(h @ p.weight_hh.T)
    a = norm_x[0] * p.weight_ln_ih + p.bias_ih + norm_h[0] * p.weight_ln_hh + p.bias_hh
    ai, af, ag, ao = np.split(a, 4, axis=1)
    i, f, gg, o = sigmoid(ai), sigmoid(af), np.tanh(ag), sigmoid(ao)
    new_c = f * c + i * gg
    norm_c = _norm(new_c)
    m = np.tanh(norm_c[0] * p.weight_ln_c + p.bias_ln_c)
    return o * m, new_c, (x, h, c, norm_x, norm_h, norm_c, m, i, f, gg, o, new_c)


def _lstm_layer_norm_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, c, norm_x, norm_h, norm_c, m, i, f, gg, o, _ = cache
    da_m = dh * o * (1 - m**2)
    dnew = dc + _norm_backward(da_m * p.weight_ln_c, norm_c)
    dai, daf = dnew * gg * i * (1 - i), dnew * c * f * (1 - f)
    dag, dao = dnew * i * (1 - gg**2), dh * m * o * (1 - o)
    da = np.concatenate([dai, daf, dag, dao], axis=1)
    g.weight_ln_c += (da_m * norm_c[0]).sum(0)
    g.bias_ln_c += da_m.sum(0)
    g.weight_ln_ih += (da * norm_x[0]).sum(0)
    g.weight_ln_hh += (da * norm_h[0]).sum(0)
    g.bias_ih += da.sum(0)
    g.bias_hh += da.sum(0)
    dwx = _norm_backward(da * p.weight_ln_ih, norm_x)
    drh = _norm_backward(da * p.weight_ln_hh, norm_h)
    g.weight_ih += dwx.T @ x
    g.weight_hh += drh.T @ h
    return dwx @ p.weight_ih, drh @ p.weight_hh, dnew * f


# Cho et al. (2014):  r, z = s(a_r, a_z)   h' = (1 - z) n + z h
#     reset-after:   n = tanh(W_n x + b_in + r (R_n h + b_hn))
#     reset-before:  n = tanh(W_n x + b_in + R_n (r h) + b_hn)


def _gru(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    xr, xz, xn = np.split(x @ p.weight_ih.T + p.bias_ih, 3, axis=1)
    hr, hz, hn = np.split(h @ p.weight_hh.T + p.bias_hh, 3, axis=1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + r * hn)
    return (1 - z) * n + z * h, c, (x, h, r, z, n, hn)


def _gru_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, r, z, n, hn = cache
    dan = dh * (1 - z) * (1 - n**2)
    daz = dh * (h - n) * z * (1 - z)
    dar = dan * hn * r * (1 - r)
    dx = _input_backward(np.concatenate([dar, daz, dan], axis=1), x, p, g)
    return (
        dx,
        _recurrent_backward(np.concatenate([dar, daz, dan * r], axis=1), h, p, g) + dh * z,
        dc,
    )


def _gru_before(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    size = h.shape[1]
    xr, xz, xn = np.split(x @ p.weight_ih.T + p.bias_ih, 3, axis=1)
    hr, hz = np.split(h @ p.weight_hh[: 2 * size].T + p.bias_hh[: 2 * size], 2, axis=1)
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = np.tanh(xn + (r * h) @ p.weight_hh[2 * size :].T + p.bias_hh[2 * size :])
    return (1 - z) * n + z * h, c, (x, h, r, z, n)


def _gru_before_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, r, z, n = cache
    size = h.shape[1]
    dan = dh * (1 - z) * (1 - n**2)
    daz = dh * (h - n) * z * (1 - z)
    drh = dan @ p.weight_hh[2 * size :]
    dar = drh * h * r * (1 - r)
    da = np.concatenate([dar, daz, dan], axis=1)
    g.weight_hh += np.concatenate([da[:, : 2 * size].T @ h, dan.T @ (r * h)])
    g.bias_hh += da.sum(0)
    dh_before = da[:, : 2 * size] @ p.weight_hh[: 2 * size] + drh * r + dh * z
    return _input_backward(da, x, p, g), dh_before, dc


FUNCTIONS: dict[str, Callable[..., tuple[Array, Array]]] = {
    "tanh": lambda a: (np.tanh(a), 1 - np.tanh(a) ** 2),
    "sigmoid": lambda a: (sigmoid(a), sigmoid(a) * sigmoid(-a)),
    "relu": lambda a: (np.maximum(a, 0), np.where(a > 0, 1.0, 0.0)),
    "linear": lambda a: (a, np.ones_like(a)),
    "affine": lambda a, alpha, beta: (alpha * a + beta, np.full_like(a, alpha)),
    "leaky_relu": lambda a, alpha: (np.where(a < 0, alpha * a, a), np.where(a < 0, alpha, 1.0)),
    "thresholded_relu": lambda a, alpha: (
        np.where(a > alpha, a, 0.0),
        np.where(a > alpha, 1.0, 0.0),
    ),
    "scaled_tanh": lambda a, alpha, beta: (
        alpha * np.tanh(beta * a),
        alpha * beta * (1 - np.tanh(beta * a) ** 2),
    ),
    "hard_sigmoid": lambda a, alpha, beta: (
        np.clip(alpha * a + beta, 0, 1),
        np.where((alpha * a + beta > 0) & (alpha * a + beta < 1), alpha, 0.0),
    ),
    "elu": lambda a, alpha: (
        np.where(a < 0, alpha * np.expm1(np.minimum(a, 0)), a),
        np.where(a < 0, alpha * np.exp(np.minimum(a, 0)), 1.0),
    ),
    "softsign": lambda a: (a / (1 + np.abs(a)), (1 + np.abs(a)) ** -2.0),
    "softplus": lambda a: (np.logaddexp(0, a), sigmoid(a)),
    "exponential": lambda a: (np.exp(a), np.exp(a)),
}
"""The functions of ONNX' recurrent operators, and e^a: (a, alpha, beta) -> (value, slope)."""


def _applied(function: Any, clip: float | None, a: Array) -> tuple[Array, Array]:
    """Return a function of a within [-clip, clip], and its slope, which is zero beyond."""
    name, *parameters = (function,) if isinstance(function, str) else function
    if clip is None:
        return FUNCTIONS[name](a, *parameters)
    value, slope = FUNCTIONS[name](np.clip(a, -clip, clip), *parameters)
    return value, np.where(np.abs(a) > clip, 0.0, slope)


def _options(p: Weights) -> Options:
    return Options() if p.options is None else p.options


def _rnn_general(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    a = x @ p.weight_ih.T + p.bias_ih + h @ p.weight_hh.T + p.bias_hh
    new, slope = _applied(_options(p).activation, _options(p).clip, a)
    return new, c, (x, h, slope)


def _rnn_general_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, slope = cache
    return _input_backward(dh * slope, x, p, g), _recurrent_backward(dh * slope, h, p, g), dc


# The LSTM with functions f of the gates, g and h, a clip of what f and g are given, and perhaps
# f = 1 - i in place of a forget gate.


def _lstm_general(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    chosen = _options(p)
    ai, af, ag, ao = np.split(
        x @ p.weight_ih.T + p.bias_ih + h @ p.weight_hh.T + p.bias_hh, 4, axis=1
    )
    pi, pf, po = np.zeros((3, c.shape[1])) if p.weight_peephole is None else p.weight_peephole
    i = _applied(chosen.recurrent_activation, chosen.clip, ai + pi * c)
    f = _applied(chosen.recurrent_activation, chosen.clip, af + pf * c)
    if chosen.coupled_gates:
        f = 1 - i[0], np.zeros_like(i[0])
    g = _applied(chosen.activation, chosen.clip, ag)
    new_c = f[0] * c + i[0] * g[0]
    o = _applied(chosen.recurrent_activation, chosen.clip, ao + po * new_c)
    s = _applied(chosen.output_activation, None, new_c)
    return o[0] * s[0], new_c, (x, h, c, i, f, g, o, s, new_c)


def _lstm_general_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, c, i, f, gg, o, s, new_c = cache
    pi, pf, po = np.zeros((3, c.shape[1])) if p.weight_peephole is None else p.weight_peephole
    dao = dh * s[0] * o[1]
    dnew = dc + dh * o[0] * s[1] + dao * po
    df = dnew * c
    dai = (dnew * gg[0] - (df if _options(p).coupled_gates else 0)) * i[1]
    daf = df * f[1]
    dag = dnew * i[0] * gg[1]
    if g.weight_peephole is not None:
        g.weight_peephole += np.stack([(dai * c).sum(0), (daf * c).sum(0), (dao * new_c).sum(0)])
    da = np.concatenate([dai, daf, dag, dao], axis=1)
    return (
        _input_backward(da, x, p, g),
        _recurrent_backward(da, h, p, g),
        dnew * f[0] + dai * pi + daf * pf,
    )


def _gru_general(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    o = _options(p)
    xr, xz, xn = np.split(x @ p.weight_ih.T + p.bias_ih, 3, axis=1)
    hr, hz, hn = np.split(h @ p.weight_hh.T + p.bias_hh, 3, axis=1)
    r, z = (_applied(o.recurrent_activation, o.clip, a) for a in (xr + hr, xz + hz))
    n = _applied(o.activation, o.clip, xn + r[0] * hn)
    return (1 - z[0]) * n[0] + z[0] * h, c, (x, h, r, z, n, hn)


def _gru_general_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, r, z, n, hn = cache
    dan = dh * (1 - z[0]) * n[1]
    daz = dh * (h - n[0]) * z[1]
    dar = dan * hn * r[1]
    dx = _input_backward(np.concatenate([dar, daz, dan], axis=1), x, p, g)
    da = np.concatenate([dar, daz, dan * r[0]], axis=1)
    return dx, _recurrent_backward(da, h, p, g) + dh * z[0], dc


def _gru_before_general(x: Array, h: Array, c: Array, p: Weights) -> tuple[Array, Array, Any]:
    o, size = _options(p), h.shape[1]
    xr, xz, xn = np.split(x @ p.weight_ih.T + p.bias_ih, 3, axis=1)
    hr, hz = np.split(h @ p.weight_hh[: 2 * size].T + p.bias_hh[: 2 * size], 2, axis=1)
    r, z = (_applied(o.recurrent_activation, o.clip, a) for a in (xr + hr, xz + hz))
    an = xn + (r[0] * h) @ p.weight_hh[2 * size :].T + p.bias_hh[2 * size :]
    n = _applied(o.activation, o.clip, an)
    return (1 - z[0]) * n[0] + z[0] * h, c, (x, h, r, z, n)


def _gru_before_general_backward(
    dh: Array, dc: Array, cache: Any, p: Weights, g: Weights
) -> tuple[Array, Array, Array]:
    x, h, r, z, n = cache
    size = h.shape[1]
    dan = dh * (1 - z[0]) * n[1]
    daz = dh * (h - n[0]) * z[1]
    drh = dan @ p.weight_hh[2 * size :]
    dar = drh * h * r[1]
    da = np.concatenate([dar, daz, dan], axis=1)
    g.weight_hh += np.concatenate([da[:, : 2 * size].T @ h, dan.T @ (r[0] * h)])
    g.bias_hh += da.sum(0)
    dh_before = da[:, : 2 * size] @ p.weight_hh[: 2 * size] + drh * r[0] + dh * z[0]
    return _input_backward(da, x, p, g), dh_before, dc


CELLS: dict[str, tuple[int, Step, StepBackward]] = {
    "rnn_tanh": (1, _rnn(np.tanh), _rnn_backward(lambda h: 1 - h**2)),
    "rnn_relu": (
        1,
        _rnn(lambda a: np.maximum(a, 0)),
        _rnn_backward(lambda h: (h > 0).astype(h.dtype)),
    ),
    "lstm": (4, _lstm, _lstm_backward),
    "lstm_peephole": (4, _lstm, _lstm_backward),
    "lstm_projected": (4, _lstm_projected, _lstm_projected_backward),
    "lstm_layer_norm": (4, _lstm_layer_norm, _lstm_layer_norm_backward),
    "gru": (3, _gru, _gru_backward),
    "gru_reset_before": (3, _gru_before, _gru_before_backward),
    "rnn_general": (1, _rnn_general, _rnn_general_backward),
    "lstm_general": (4, _lstm_general, _lstm_general_backward),
    "gru_general": (3, _gru_general, _gru_general_backward),
    "gru_reset_before_general": (3, _gru_before_general, _gru_before_general_backward),
}
"""The cells by name, each as (number of gates, step, gradient of the step)."""


@dataclass
class Run:
    """Hold what `forward` computed, and what `backward` needs.

    >>> import numpy as np
    >>> p = Weights(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), np.ones(3))
    >>> forward("rnn_tanh", np.ones((5, 4, 2)), p).active.all()
    np.True_

    Attributes:
        y: ``[T,B,H]``, P wide where h is projected, and zero past the end of a row.
        h_n: the last h, as wide as y.
        c_n: ``[B,H]``, the last c.
        cells: ``[T,B,H]``, c after each step.
        cell: the name of the cell.
        weights: the weights of the pass.
        order: the steps in the order in which they were run.
        active: ``[T,B]``, whether the row takes part in the step.
        restarted: ``[T+1,B]``, whether the step began with the state of a restart; ``[T]`` tells
            whether that of a restart is the last state.
        repeats: ``[T,B]``, whether the step is skipped and repeats the output of the one before.
        caches: what the backward of each step needs.
    """

    y: Array
    h_n: Array
    c_n: Array
    cells: Array  # [T,B,H]: c after each step
    cell: str
    weights: Weights
    order: list[int]
    active: Array  # [T,B]: the row takes part in the step
    # [T+1,B]: the state was that of a restart before the step; [T]: after the last one, which was
    # skipped
    restarted: Array
    repeats: Array  # [T,B]: the step is skipped and its output is that of the step before it
    caches: list[Any] = field(repr=False)


def forward(
    cell: str,
    x: Array,
    weights: Weights,
    h0: Array | None = None,
    c0: Array | None = None,
    *,
    lengths: Array | None = None,
    reverse: bool = False,
    resets: Array | None = None,
    mask: Array | None = None,
    repeat: bool = False,
    restart: tuple[Array, Array] | None = None,
) -> Run:
    """Run a cell over time.

    >>> import numpy as np
    >>> p = Weights(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), np.ones(3))
    >>> forward("rnn_relu", np.ones((5, 4, 2)), p, lengths=np.array([5, 3, 0, 1])).y.shape
    (5, 4, 3)

    Args:
        cell: a name of `CELLS`.
        x: ``[T,B,I]``.
        weights: the weights of the cell.
        h0: ``[B,H]``; None: zeros.
        c0: ``[B,H]``; None: zeros.
        lengths: ``[B]``; row b takes part at t < lengths[b]. None: T.
        reverse: whether to run from the last real step to the first.
        resets: bool ``[T,B]``: where the state is replaced by ``restart`` before the step; in
            reverse after it, so that the pieces between two resets are the same.
        mask: bool ``[T,B]``: a step where it is False carries the state over.
        repeat: whether the output of a masked step is that of the step before it, or zero.
        restart: ``(h, c)``, each ``[H]``; None: zeros.

    Returns:
        The outputs, the last states, and what `backward` needs.
    """
    _, step, _ = CELLS[cell]
    steps, batch, _ = x.shape
    size, cell_size = weights.weight_hh.shape[1], weights.cell_size
    h = np.zeros((batch, size)) if h0 is None else h0.astype(np.float64)
    c = np.zeros((batch, cell_size)) if c0 is None else c0.astype(np.float64)
    restart_h, restart_c = (np.zeros(size), np.zeros(cell_size)) if restart is None else restart
    inside = np.arange(steps)[:, None] < (
        np.full(batch, steps) if lengths is None else np.asarray(lengths)
    )
    active = inside if mask is None else inside & mask
    pieces = (
        np.zeros((steps, batch), bool) if resets is None else resets & inside
    )  # a piece begins at t
    if reverse:
        pieces = np.concatenate(
            [pieces[1:], np.zeros((1, batch), bool)]
        )  # or, from the end, behind t
    y, cells = np.zeros((steps, batch, size)), np.zeros((steps, batch, cell_size))
    caches: list[Any] = [None] * steps
    restarted, repeats = np.zeros((steps + 1, batch), bool), np.zeros((steps, batch), bool)
    fresh, output, any_output = (
        np.zeros(batch, bool),
        np.zeros((batch, size)),
        np.zeros(batch, bool),
    )
    order = list(range(steps))[:: -1 if reverse else 1]
    for t in order:
        new = pieces[t] & inside[t]
        h, c = np.where(new[:, None], restart_h, h), np.where(new[:, None], restart_c, c)
        fresh, any_output = fresh | new, any_output & ~new
        on = active[t][:, None]
        new_h, new_c, caches[t] = step(np.where(on, x[t], 0.0).astype(np.float64), h, c, weights)
        h, c = np.where(on, new_h, h), np.where(on, new_c, c)
        restarted[t], fresh = fresh & active[t], fresh & ~active[t]
        repeats[t] = any_output & inside[t] & ~active[t] & repeat
        y[t] = np.where(on, new_h, np.where(repeats[t][:, None], output, 0))
        cells[t] = np.where(on, new_c, 0)
        output, any_output = np.where(on, new_h, output), any_output | active[t]
    restarted[steps] = fresh
    return Run(y, h, c, cells, cell, weights, order, active, restarted, repeats, caches)


class Gradients(NamedTuple):
    """Hold the gradients that `backward` computed.

    >>> import numpy as np
    >>> p = Weights(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), np.ones(3))
    >>> backward(forward("rnn_tanh", np.ones((5, 4, 2)), p), dh_n=np.ones((4, 3))).h0.shape
    (4, 3)

    Attributes:
        x: ``[T,B,I]``.
        h0: ``[B,H]``.
        c0: ``[B,H]``.
        weights: of the weights.
        restart: of the state of the restarts, ``(h, c)``, each ``[H]``.
        flow: ``[T,2]``, sums over b and H of (dL/dh_t)^2 and (dL/dc_t)^2.
    """

    x: Array
    h0: Array
    c0: Array
    weights: Weights
    restart: tuple[Array, Array]
    flow: Array  # [T,2]: sums over b and H of (dL/dh_t)^2 and (dL/dc_t)^2


def backward(
    run: Run,
    dy: Array | None = None,
    dh_n: Array | None = None,
    dc_n: Array | None = None,
    *,
    dcells: Array | None = None,
    clip_value: float = 0.0,
    clip_norm: float = 0.0,
    cuts: Array | None = None,
) -> Gradients:
    """Compute the gradients of a pass by backpropagation through time.

    They are those of ``sum(y dy) + sum(h_n dh_n) + sum(c_n dc_n) + sum(cells dcells)``.

    >>> import numpy as np
    >>> p = Weights(np.ones((3, 2)), np.ones((3, 3)), np.ones(3), np.ones(3))
    >>> backward(forward("rnn_tanh", np.ones((5, 4, 2)), p), dy=np.ones((5, 4, 3))).x.shape
    (5, 4, 2)

    Args:
        run: the forward pass.
        dy: ``[T,B,H]``; None: zeros.
        dh_n: ``[B,H]``; None: zeros.
        dc_n: ``[B,H]``; None: zeros.
        dcells: ``[T,B,H]``; None: zeros.
        clip_value: bound on every element of dL/dh_t, and of what step t + 1 hands to c_t; 0: none.
        clip_norm: bound on the norm over H of each row of the same, after clip_value; 0: none.
        cuts: bool ``[T,B]``: where no gradient goes to the state that the step started from.

    Returns:
        The gradients.

    Source: Werbos (1990), "Backpropagation through time: what it does and how to do it".
    """
    _, _, step_backward = CELLS[run.cell]
    steps, batch, size = run.y.shape
    dh = np.zeros((batch, size)) if dh_n is None else dh_n.astype(np.float64)
    dc = np.zeros((batch, run.weights.cell_size)) if dc_n is None else dc_n.astype(np.float64)
    g = run.weights.zeros()
    dx = np.zeros((steps, batch, run.weights.weight_ih.shape[1]))
    restart, flow = (np.zeros(size), np.zeros(run.weights.cell_size)), np.zeros((steps, 2))

    def hand_over(gone: Array, to_restart: Array) -> None:
        nonlocal dh, dc
        for sums, d in zip(restart, (dh, dc)):
            sums += d[to_restart].sum(0)
        dh, dc = (np.where((gone | to_restart)[:, None], 0, d) for d in (dh, dc))

    hand_over(np.zeros(batch, bool), run.restarted[steps])
    for t in reversed(run.order):
        on = run.active[t][:, None]
        dh = dh + np.where(on | run.repeats[t][:, None], 0 if dy is None else dy[t], 0)
        dc = dc + np.where(on, 0 if dcells is None else dcells[t], 0)
        into = [np.where(on, d, 0) for d in (dh, dc)]
        if clip_value > 0:
            into = [np.clip(d, -clip_value, clip_value) for d in into]
        if clip_norm > 0:
            norms = [np.sqrt((d**2).sum(1, keepdims=True)) for d in into]
            into = [
                np.where(n > clip_norm, d * clip_norm / np.maximum(n, clip_norm), d)
                for d, n in zip(into, norms)
            ]
        flow[t, 0] = (into[0] ** 2).sum()
        if run.cell.startswith("lstm"):
            flow[t, 1] = (_cell_gradient(into[0], into[1], run.caches[t], run.weights) ** 2).sum()
        dx[t], dh_before, dc_before = step_backward(into[0], into[1], run.caches[t], run.weights, g)
        dh, dc = np.where(on, dh_before, dh), np.where(on, dc_before, dc)
        hand_over(run.active[t] & (False if cuts is None else cuts[t]), run.restarted[t])
    return Gradients(dx, dh, dc, g, restart, flow)


def _cell_gradient(dh: Array, dc: Array, cache: Any, p: Weights) -> Array:
    """Return dL/dc_t of an LSTM by all paths, from dL/dh_t and what step t + 1 handed to c_t."""
    *_, o, new_c = cache
    if p.weight_ln_c is not None:
        norm_c, m = cache[5:7]
        return dc + _norm_backward(dh * o * (1 - m**2) * p.weight_ln_c, norm_c)
    if p.options is not None:
        o, s, new_c = cache[6:]
        po = 0 if p.weight_peephole is None else p.weight_peephole[2]
        general: Array = dc + dh * o[0] * s[1] + dh * s[0] * o[1] * po
        return general
    dh = dh if p.weight_hr is None else dh @ p.weight_hr
    po = 0 if p.weight_peephole is None else p.weight_peephole[2]
    out: Array = dc + dh * o * (1 - np.tanh(new_c) ** 2) + dh * np.tanh(new_c) * o * (1 - o) * po
    return out


def clockwork(
    x: Array,
    weights: Weights,
    sizes: Sequence[int],
    periods: Sequence[int],
    *,
    lengths: Array | None = None,
    h0: Array | None = None,
    clock: Array | None = None,
    phi: Callable[[Array], Array] = np.tanh,
) -> tuple[Array, Array]:
    """Run a clockwork RNN over time, with the matrices of all modules as one.

    Source: Koutnik et al. (2014), equation 2: at step t the block-rows of the modules whose period
    divides t are computed, and the others are zero weights, whose units keep their values.

    >>> import numpy as np
    >>> p = Weights(np.ones((4, 2)), np.ones((4, 4)), np.ones(4), np.ones(4))
    >>> y, h = clockwork(np.ones((5, 3, 2)), p, sizes=[2, 2], periods=[1, 4])
    >>> y.shape, h.shape
    ((5, 3, 4), (3, 4))

    Args:
        x: ``[T,B,I]``.
        weights: ``weight_ih [H,I]``, ``weight_hh [H,H]`` and biases ``[H]``; what stands in
            ``weight_hh`` from a faster module to a slower one is not read.
        sizes: the units of each module.
        periods: the period of each, in increasing order.
        lengths: ``[B]``; None: T.
        h0: ``[B,H]``; None: zeros.
        clock: ``[B]``, the number of the first step of each row; None: 0.
        phi: the activation.

    Returns:
        The outputs ``[T,B,H]``, zero past the end of a row, and the last h ``[B,H]``.
    """
    steps, batch, _ = x.shape
    period = np.repeat(periods, sizes)
    weight_hh = np.where(period[:, None] <= period, weights.weight_hh, 0)
    h = np.zeros((batch, len(period))) if h0 is None else np.array(h0, np.float64)
    y = np.zeros((steps, batch, len(period)))
    for t in range(steps):
        for b in range(batch):
            if lengths is not None and t >= lengths[b]:
                continue
            number = t + (0 if clock is None else clock[b])
            a = weights.weight_ih @ x[t, b] + weights.bias_ih
            a = phi(a + weight_hh @ h[b] + weights.bias_hh)
            h[b] = np.where(number % period == 0, a, h[b])
            y[t, b] = h[b]
    return y, h


def philox(key: int, counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return four random 32-bit words of a 64-bit key and a 128-bit counter, by Philox4x32-10.

    >>> [hex(w) for w in philox(0, (0, 0, 0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']

    Args:
        key: from 0 to 2^64 - 1.
        counter: four words of 32 bits.

    Returns:
        Four words of 32 bits.

    Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3".
    """
    k0, k1, m32 = key & 0xFFFFFFFF, key >> 32, 0xFFFFFFFF
    a, b, c, d = counter
    for _ in range(10):
        p, q = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (q >> 32) ^ b ^ k0, q & m32, (p >> 32) ^ d ^ k1, p & m32
        k0, k1 = (k0 + 0x9E3779B9) & m32, (k1 + 0xBB67AE85) & m32
    return a, b, c, d


def dropout_mask(
    key: int, rate: float, layer: int, direction: int, shape: tuple[int, int, int]
) -> Array:
    """Return the mask of the dropout after one layer and direction.

    >>> sorted({float(m) for m in dropout_mask(1, 0.5, 0, 0, (2, 3, 4)).ravel()})
    [0.0, 2.0]

    Args:
        key: the key of the call, from 0 to 2^64 - 1.
        rate: the probability that an element is 0.
        layer: number of the layer.
        direction: 0, or 1 for the direction from the end.
        shape: ``(T, B, H)``.

    Returns:
        ``[T,B,H]`` of 0 with probability ``rate``, else 1 / (1 - rate).
    """
    mask = np.zeros(shape)
    for t, b, u in np.ndindex(*shape):
        word = philox(key, (u // 4, b, t, layer * 2 + direction))[u % 4]
        mask[t, b, u] = ((word >> 8) / 2**24 >= rate) / (1 - rate)
    return mask


def ctc(logits: Array, labels: Array, blank: int = 0) -> tuple[float, Array]:
    """Return the CTC loss of one sequence and its gradient, in log space.

    With l' the labels with a blank before, between and behind them, a(t, s) and b(t, s) are the
    probabilities of all paths that come to l'_s at step t, and that go on from there.

    >>> import numpy as np
    >>> loss, gradient = ctc(np.zeros((3, 4)), np.array([1, 2]))
    >>> round(float(np.exp(-loss)) * 4**3)  # paths of 64: 112 122 012 102 120
    5

    Args:
        logits: ``[T,V]``.
        labels: ``[n]`` whole numbers.
        blank: the class of the blank.

    Returns:
        ``loss, gradient``: nats, and ``[T,V]``. Where no path writes the labels the loss is
        infinite and the gradient NaN.

    Source: Graves et al. (2006), equations 6 to 16.
    """
    steps, size = len(logits), 2 * len(labels) + 1
    log_y = logits - logits.max(-1, keepdims=True)
    log_y = log_y - np.log(np.exp(log_y).sum(-1, keepdims=True))
    states = np.full(size, blank)
    states[1::2] = labels

    def skips(s: int) -> bool:  # whether a path may come to s from s - 2
        return s >= 2 and bool(states[s] != blank and states[s] != states[s - 2])

    a, b = np.full((steps, size), -np.inf), np.full((steps, size), -np.inf)
    for t in range(steps):
        for s in range(size):
            if t == 0:
                before: Any = 0.0 if s <= 1 else -np.inf
            else:
                ways = [s, *([s - 1] if s else []), *([s - 2] if skips(s) else [])]
                before = np.logaddexp.reduce(a[t - 1, ways])
            a[t, s] = before + log_y[t, states[s]]
    for t in range(steps - 1, -1, -1):
        for s in range(size):
            if t == steps - 1:
                b[t, s] = 0.0 if s >= size - 2 else -np.inf
            else:
                ways = [r for r in (s, s + 1) if r < size]
                ways += [s + 2] if s + 2 < size and skips(s + 2) else []
                b[t, s] = np.logaddexp.reduce(b[t + 1, ways] + log_y[t + 1, states[ways]])
    total: Any = 0.0 if size == 1 else -np.inf
    if steps:
        total = np.logaddexp.reduce(a[-1, -2:])
    gradient: Array = np.exp(log_y)
    with np.errstate(invalid="ignore"):
        for s in range(size):
            gradient[:, states[s]] -= np.exp(a[:, s] + b[:, s] - total)
    return float(-total), gradient


class TreeRun(NamedTuple):
    """Hold what a pass over one tree computed, node by node.

    >>> import numpy as np
    >>> run = tree_lstm(np.zeros((1, 2)), [-1], np.zeros((12, 2)), np.zeros((12, 3)), np.zeros(12))
    >>> run.h.shape
    (1, 3)

    Attributes:
        h: ``[n,H]``.
        c: ``[n,H]``.
        children: the children of each node, in their order.
        order: the nodes, children before their parents.
        gates: i, o, g and the f of each child, for every node.
    """

    h: Array
    c: Array
    children: list[list[int]]
    order: list[int]
    gates: dict[int, tuple[Array, Array, Array, list[Array]]]


def _bottom_up(parents: Any) -> tuple[list[list[int]], list[int]]:
    """Return the children of each node, and the nodes with children before their parents."""
    children: list[list[int]] = [
        [k for k, p in enumerate(parents) if p == n] for n in range(len(parents))
    ]
    order = [list(parents).index(-1)]
    for node in order:  # which grows
        order += children[node]
    return children, order[::-1]


def _beside(values: Array, own: list[int], places: int) -> list[Array]:
    """Return the rows of children by their places, zeros where there is none."""
    return [values[own[k]] if k < len(own) else np.zeros(values.shape[1]) for k in range(places)]


def tree_lstm(
    x: Array,
    parents: Any,
    weight_ih: Array,
    weight_hh: Array,
    bias: Array,
    children: int | None = None,
) -> TreeRun:
    """Run a TreeLSTM over one tree, node by node.

    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> w, r, b = rng.normal(size=(12, 2)), rng.normal(size=(12, 3)), rng.normal(size=12)
    >>> tree_lstm(rng.normal(size=(4, 2)), [-1, 0, 0, 1], w, r, b).h.shape
    (4, 3)

    Args:
        x: ``[n,I]``, a row a node.
        parents: ``[n]``, -1 for the root.
        weight_ih: ``[4*H,I]``, gates i o g f.
        weight_hh: ``[4*H,H]``; with N children ``[(3+N)*H,N*H]``, gates i o g f_1 ... f_N.
        bias: ``[4*H]``.
        children: None: child-sum; N: at most N children a node, by their places.

    Returns:
        h and c of every node, with what `tree_lstm_backward` needs.

    Source: Tai, Socher, Manning (2015), equations 2 to 8 and 9 to 14.
    """
    size, (below, order) = len(bias) // 4, _bottom_up(parents)
    h, c = np.zeros((len(x), size)), np.zeros((len(x), size))
    gates = {}
    for n in order:
        a, own = weight_ih @ x[n] + bias, below[n]
        if children is None:
            r = weight_hh[: 3 * size] @ h[own].sum(0)
            forget = [weight_hh[3 * size :] @ h[k] for k in own]
        else:
            r = weight_hh @ np.concatenate(_beside(h, own, children))
            r, forget = r[: 3 * size], np.split(r[3 * size :], children)[: len(own)]
        i, o = sigmoid(a[:size] + r[:size]), sigmoid(a[size : 2 * size] + r[size : 2 * size])
        g = np.tanh(a[2 * size : 3 * size] + r[2 * size :])
        f = [sigmoid(a[3 * size :] + part) for part in forget]
        c[n] = i * g + sum(part * c[k] for part, k in zip(f, own))
        h[n] = o * np.tanh(c[n])
        gates[n] = i, o, g, f
    return TreeRun(h, c, below, order, gates)


def tree_lstm_backward(
    run: TreeRun,
    dh: Array,
    x: Array,
    weight_ih: Array,
    weight_hh: Array,
    children: int | None = None,
) -> tuple[Array, Array, Array, Array]:
    """Return the gradients of x, weight_ih, weight_hh and bias from those of h of all nodes.

    >>> import numpy as np
    >>> w, r, b = np.ones((12, 2)), np.ones((12, 3)), np.ones(12)
    >>> run = tree_lstm(np.ones((3, 2)), [-1, 0, 0], w, r, b)
    >>> [d.shape for d in tree_lstm_backward(run, np.ones((3, 3)), np.ones((3, 2)), w, r)]
    [(3, 2), (12, 2), (12, 3), (12,)]

    Args:
        run: of `tree_lstm`.
        dh: ``[n,H]``.
        x: ``[n,I]``.
        weight_ih: as in the run.
        weight_hh: as in the run.
        children: as in the run.

    Returns:
        ``dx, dweight_ih, dweight_hh, dbias``.
    """
    size = dh.shape[1]
    dh, dc, dx = dh.astype(np.float64), np.zeros(dh.shape), np.zeros(x.shape)
    dw, dr, db = np.zeros(weight_ih.shape), np.zeros(weight_hh.shape), np.zeros(4 * size)
    for n in reversed(run.order):
        (i, o, g, f), own, t = run.gates[n], run.children[n], np.tanh(run.c[n])
        d = dc[n] + dh[n] * o * (1 - t * t)
        iog = np.concatenate([d * g * i * (1 - i), dh[n] * t * o * (1 - o), d * i * (1 - g * g)])
        df = [d * run.c[k] * part * (1 - part) for part, k in zip(f, own)]
        for part, k in zip(f, own):
            dc[k] += d * part
        if children is None:
            dr[: 3 * size] += np.outer(iog, run.h[own].sum(0))
            for k, part in zip(own, df):
                dr[3 * size :] += np.outer(part, run.h[k])
                dh[k] += iog @ weight_hh[: 3 * size] + part @ weight_hh[3 * size :]
        else:
            lacking = [np.zeros(size)] * (children - len(own))
            a = np.concatenate([iog, *df, *lacking])
            dr += np.outer(a, np.concatenate(_beside(run.h, own, children)))
            for k, part in zip(own, np.split(a @ weight_hh, children)):
                dh[k] += part
        da = np.concatenate([iog, sum(df, np.zeros(size))])
        dw, db = dw + np.outer(da, x[n]), db + da
        dx[n] = da @ weight_ih
    return dx, dw, dr, db


readable(globals())
