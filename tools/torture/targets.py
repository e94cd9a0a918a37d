"""What is called: each target makes valid arguments, which the caller spoils, and a function."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import ostinato as ost
from conftest import CELLS, FACES, GATES, names_of, options_of, output_size, scalars_of, widened
from conftest import random_weights as drawn_weights
from ostinato import _core, _native, reference

from .values import EVIL_SCALARS, Draw

Arguments = dict[str, Any]
# The function, its arguments, the names of those that it writes, what the reference gives for
# arguments (None: there is none), and whether the arguments may be changed between two calls.
Target = tuple[Callable[..., Any], Arguments, tuple[str, ...], Callable[..., Any] | None]


@functools.cache
def _weights(cell: str, inputs: int, hidden: int, dtype: str) -> tuple[Any, ...]:
    w = drawn_weights(cell, inputs, hidden, np.random.default_rng(inputs * 100 + hidden))
    return tuple(
        None if a is None else a.astype(dtype) for a in (getattr(w, n) for n in names_of(w))
    )


def _weights_of(d: Draw, cell: str, inputs: int, hidden: int, dtype: Any) -> list[Any]:
    """Return weights of a cell, some without biases, which a caller may change."""
    out = [None if a is None else a.copy() for a in _weights(cell, inputs, hidden, str(dtype))]
    if cell != "lstm_layer_norm":
        out[2:4] = [d.maybe(b, 0.8) for b in out[2:4]]
    return out


def _sizes(d: Draw) -> tuple[int, int, int, int]:
    """Return T, B, I and H, most of them small."""
    most = d.pick((3, 6, 6, 6, 20))
    return d.size(0, most), d.size(0, most), d.size(1, 7), d.pick((1, 2, 3, 5, 8, 16, 17, 33))


def _times(d: Draw, steps: int, batch: int, flat: int | None = None) -> Arguments:
    shape = (steps, batch) if flat is None else (flat,)
    return {
        "lengths": d.maybe(d.whole(0, steps, (batch,)), 0.3) if flat is None else None,
        "resets": d.maybe(d.flags(shape, 0.2), 0.3),
        "mask": d.maybe(d.flags(shape, 0.8), 0.3),
    }


FUNCTIONS = {"rnn": ost.functional.rnn, "lstm": ost.functional.lstm, "gru": ost.functional.gru}
TRAINING = {
    "rnn": ost.functional.rnn_vjp,
    "lstm": ost.functional.lstm_vjp,
    "gru": ost.functional.gru_vjp,
}


def _named(cell: str, weights: list[Any]) -> Arguments:
    """Return the weights of a cell and the options that choose it, as `functional` takes them."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    own = dict(options_of(cell, weights))
    if "layer_norm" in own:
        own["layer_norm"] = ost.functional.LayerNormWeights(*own["layer_norm"])
    own.pop("peephole", None)
    return {**dict(zip(names, weights)), **own}


def _layer_call(d: Draw) -> tuple[str, Arguments, list[Any], tuple[int, int, int, int], Any]:
    cell, dtype = d.pick(CELLS), np.dtype(d.pick((np.float32, np.float64)))
    steps, batch, inputs, hidden = _sizes(d)
    weights = _weights_of(d, cell, inputs, hidden, dtype)
    size, two = output_size(cell, hidden), cell.startswith("lstm")
    arguments = {"x": d.array((steps, batch, inputs), dtype), **_named(cell, weights)}
    arguments["h0"] = d.maybe(d.array((batch, size), dtype))
    restart = d.maybe(d.array((size,), dtype), 0.3)
    if two:
        arguments["c0"] = d.maybe(d.array((batch, hidden), dtype))
        restart = None if restart is None else (restart, d.array((hidden,), dtype))
    arguments |= {**_times(d, steps, batch), "reset_state": restart, "reverse": d.chance(0.4)}
    arguments["masked"] = d.pick(("repeat", "zero"))
    return cell, arguments, weights, (steps, batch, inputs, hidden), dtype


def _reference(cell: str, a: Arguments) -> Any:
    """Run the reference on the arguments of `functional`."""
    order = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    arrays = [a[n] for n in order]
    norm, ih = a.get("layer_norm"), a["weight_ih"]
    arrays[2:] = [np.zeros(len(ih), ih.dtype) if b is None else b for b in arrays[2:]]
    if norm is not None:
        arrays += list(norm)
    else:
        arrays += [a.get("weight_peephole"), *([a["weight_hr"]] if "weight_hr" in a else [])]
    restart = a["reset_state"]
    if restart is not None:
        pair = restart if isinstance(restart, tuple) else (restart, np.zeros(0))
        restart = tuple(s.astype(np.float64) for s in pair)
        if not isinstance(a["reset_state"], tuple):
            restart = (restart[0], np.zeros(ih.shape[0] // GATES[cell]))
    return reference.forward(
        cell,
        a["x"].astype(np.float64),
        widened(cell, arrays),
        a["h0"],
        a.get("c0"),
        lengths=a["lengths"],
        reverse=a["reverse"],
        resets=a["resets"],
        mask=a["mask"],
        repeat=a["masked"] == "repeat",
        restart=restart,
    )


def functional(d: Draw) -> Target:
    """One layer for inference."""
    cell, arguments, _, (steps, batch, _, hidden), dtype = _layer_call(d)
    arguments["out"] = d.maybe(d.array((steps, batch, output_size(cell, hidden)), dtype), 0.4)

    def expected(**a: Any) -> Any:
        run = _reference(cell, a)
        return run.y, run.h_n

    def run(**a: Any) -> Any:
        y, state = FUNCTIONS[cell.partition("_")[0]](**a)
        return y, *(state if isinstance(state, tuple) else (state,))

    return run, arguments, ("out",), expected


def functional_training(d: Draw) -> Target:
    """One layer for training, and its pullback."""
    cell, arguments, _, (steps, batch, _, hidden), dtype = _layer_call(d)
    size, two = output_size(cell, hidden), cell.startswith("lstm")
    back = {
        "dy": d.maybe(d.array((steps, batch, size), dtype), 0.8),
        "dh_n": d.maybe(d.array((batch, size), dtype)),
        "dc_n": d.maybe(d.array((batch, hidden), dtype)) if two else None,
        "dcells": d.maybe(d.array((steps, batch, hidden), dtype), 0.3) if two else None,
        "clip_step_value": d.maybe(0.3, 0.2),
        "clip_step_norm": d.maybe(0.3, 0.2),
        "cuts": d.maybe(d.flags((steps, batch), 0.1), 0.2),
    }
    arguments["memory_limit"] = d.pick((None, None, None, "states", "least", 2))

    def run(**a: Any) -> Any:
        later = {n: a.pop(n) for n in back}
        (y, state), pullback = TRAINING[cell.partition("_")[0]](**a)
        dy = later.pop("dy")
        first, weight, *others = pullback(dy, **later)
        return y, first, weight, state, tuple(others)

    def expected(**a: Any) -> Any:
        forward = _reference(cell, a)
        names = {"clip_step_value": "clip_value", "clip_step_norm": "clip_norm"}
        given = {names.get(n, n): a[n] for n in back}
        given |= {n: given[n] or 0.0 for n in names.values()}
        g = reference.backward(forward, **given)
        return forward.y, g.x, g.weights.weight_ih

    return run, arguments | back, (), expected


def ragged(d: Draw) -> Target:
    """Sequences of different lengths, as a list or as flat rows."""
    cell, arguments, _, (steps, batch, inputs, _), dtype = _layer_call(d)
    lengths = [d.size(0, steps) for _ in range(batch)]
    rows = d.array((sum(lengths), inputs), dtype)
    arguments |= _times(d, steps, batch, len(rows))
    arguments["x"] = list(np.split(rows, np.cumsum(lengths)[:-1])) if lengths else [rows]
    if not lengths:
        for name in ("h0", "c0"):
            arguments.pop(name, None)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    if lengths and d.chance(0.5):
        del arguments["x"]
        arguments |= {"rows": rows, "offsets": offsets}

    def run(**a: Any) -> Any:
        if "rows" in a:
            a["x"] = ost.Ragged(a.pop("rows"), a.pop("offsets"))
        (y, state), pullback = TRAINING[cell.partition("_")[0]](**a)
        return y, state, tuple(pullback(y))

    return run, arguments, (), None


STACKS: tuple[Arguments, ...] = (
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.3},
    {"learned_state": True, "batch_first": True},
    {"num_layers": 10},
    {"precision": "bfloat16", "num_layers": 2},
    {"precision": "int8"},
    {"dtype": np.float64},
)


@functools.lru_cache(maxsize=512)
def _layer(cell: str, stack: int, inputs: int, hidden: int) -> Any:
    kind, own = FACES[cell]
    options = {**own, **STACKS[stack]}
    if cell == "lstm_projected":
        options["proj_size"] = output_size(cell, hidden)
    if scalars_of(cell):
        options.pop("precision", None)
    return kind(inputs, hidden, rng=0, **options)


def _stack_call(d: Draw) -> tuple[Any, Arguments, tuple[int, int]]:
    steps, batch, inputs, hidden = _sizes(d)
    layer = _layer(d.pick(CELLS), d.size(0, len(STACKS) - 1), inputs % 2 + 2, min(hidden, 17))
    shape = (batch, steps) if layer.batch_first else (steps, batch)
    parts = layer.num_layers * (1 + layer.bidirectional)
    h = d.array((parts, batch, layer.parameters()["weight_hh_l0"].shape[1]), layer.dtype)
    state: Any = h
    if type(layer) is ost.nn.LSTM:
        state = (h, d.array((parts, batch, layer.hidden_size), layer.dtype))
    times = _times(d, *shape[:: -1 if layer.batch_first else 1])
    for name in ("resets", "mask"):
        if layer.batch_first and times[name] is not None:
            times[name] = np.ascontiguousarray(times[name].T)
    x = d.array((*shape, layer.input_size), layer.dtype)
    arguments = {"x": x, "state": d.maybe(state, 0.4), **times, "masked": "repeat"}
    return layer, arguments, shape


def stack(d: Draw) -> Target:
    """A stack of layers for inference."""
    layer, arguments, _ = _stack_call(d)
    arguments["outputs"] = d.pick(("all", "all", "last", "last_step"))
    return lambda **a: layer(**a), arguments, (), None


def stack_training(d: Draw) -> Target:
    """A stack of layers for training, and its pullback."""
    layer, arguments, shape = _stack_call(d)
    width = layer.parameters()["weight_hh_l0"].shape[1] * (1 + layer.bidirectional)
    arguments |= {
        "outputs": d.pick(("all", "all", "all", "last", "none")),
        "memory_limit": d.pick((None, None, None, "states", "least", 2)),
        "clip_step_value": d.maybe(0.3, 0.2),
        "cuts": d.maybe(d.flags(shape, 0.1), 0.2),
    }
    dy_shape = {"all": (*shape, width), "last": (shape[1 - layer.batch_first], width)}
    dy = dy_shape.get(arguments["outputs"])
    arguments["dy"] = None if dy is None else d.array(dy, layer.dtype)
    arguments["need_dx"] = d.chance(0.8)

    def run(**a: Any) -> Any:
        dy, need = a.pop("dy"), a.pop("need_dx")
        (y, state), pullback = layer.vjp(**a, rng=0)
        grads = layer.new_grads()
        return y, state, pullback(dy, grads=grads, need_dx=need), grads.flat

    return run, arguments, (), None


def native(d: Draw) -> Target:
    """The binding of a pass, with what only the package itself passes to it."""
    cell, dtype = d.pick(CELLS), np.dtype(d.pick((np.float32, np.float64)))
    steps, batch, inputs, hidden = _sizes(d)
    flat, size, two = d.chance(0.3), output_size(cell, hidden), cell.startswith("lstm")
    lengths = d.whole(0, steps, (batch,))
    rows, shape = int(lengths.sum()), (steps, batch)
    lead = (rows,) if flat else shape
    flags = lambda p: d.maybe((d.flags(lead, 0.2)).view(np.uint8), p)
    each = lambda p: d.maybe(d.flags((batch,), 0.2).view(np.uint8), p)
    arguments: Arguments = {
        "x": d.array((*lead, inputs), dtype),
        "h0": d.maybe(d.array((1, batch, size), dtype)),
        "c0": d.maybe(d.array((1, batch, hidden), dtype)) if two else None,
        "lengths": lengths if flat else d.maybe(lengths, 0.3),
        "out": None,
        "batch_first": False,
        "train": True,
        "dropout": 0.0,
        "key": 7,
        "resets": flags(0.3),
        "mask": flags(0.3),
        "repeat": d.chance(0.5),
        "restart_h": d.maybe(d.array((1, size), dtype), 0.3),
        "restart_c": d.maybe(d.array((1, hidden), dtype), 0.3) if two else None,
        "first_step": 0,
        "held": each(0.2),
        "resets_after": each(0.2),
        "restarted": each(0.2),
        "order": None,
        "starts": np.cumsum(lengths) - lengths if flat else None,
        "span": steps if flat else 0,
        "states_only": d.chance(0.2),
        "table": None,
    }
    if d.chance(0.15):
        arguments["x"] = d.whole(0, 4, (*lead, 1))
        arguments["table"] = d.array((5, inputs), dtype)
    weights = _weights_of(d, cell, inputs, hidden, dtype)
    back = {
        "dy": d.maybe(d.array((*lead, size), dtype)),
        "dh_n": d.maybe(d.array((1, batch, size), dtype)),
        "dc_n": None,
        "need_dx": arguments["table"] is None,
        "clip_value": 0.0,
        "clip_norm": 0.0,
        "cuts": flags(0.2),
        "dcells": None,
        "flow": d.chance(0.2),
        "dx_add": d.chance(0.2),
        "dx": d.maybe(
            d.array((*lead, inputs), dtype), 0.0 if arguments["table"] is not None else 0.3
        ),
        "resume": False,
        "more": False,
        "drestart": None,
    }
    columns = 5 if arguments["table"] is not None else inputs
    reverse, with_sums = d.chance(0.3), d.chance(0.2)
    packed = _native.backend_for(weights[0]).Packed(
        cell,
        inputs,
        hidden,
        1,
        False,
        [weights],
        True,
        reverse,
        numbered=False,
        proj_size=size if cell == "lstm_projected" else 0,
        scalars=scalars_of(cell),
    )

    def run(**a: Any) -> Any:
        later = {n: a.pop(n) for n in back}
        y, h, c, tape = packed.forward(**a)
        out: list[Any] = [y, h, c]
        if tape is None:
            return out
        out += [tape.hidden(), tape.active()] + ([tape.cells()] if two else [])
        grads = [None if w is None else np.zeros_like(w) for w in weights]
        grads[0] = np.zeros((len(weights[0]), columns), dtype)
        sums = packed.sums(batch) if with_sums else None
        return [*out, tape.backward(**later, grads=[grads], sums=sums), grads]

    return run, arguments | back, ("out", "dx"), None


def native_pack(d: Draw) -> Target:
    """The binding that packs weights."""
    cell, dtype = d.pick(CELLS), np.dtype(d.pick((np.float32, np.float64)))
    _, _, inputs, hidden = _sizes(d)
    names = ("w_ih", "w_hh", "b_ih", "b_hh", "own", "own2", "own3", "own4", "own5")
    named = dict(zip(names, _weights_of(d, cell, inputs, hidden, dtype)))
    arguments = {
        "cell": cell,
        "input_size": inputs,
        "hidden_size": hidden,
        "num_layers": 1,
        "bidirectional": False,
        "backward": d.chance(0.5),
        "reverse": False,
        "precision": d.pick(("exact", "exact", "bfloat16", "int8")),
        "numbered": d.chance(0.5),
        "proj_size": output_size(cell, hidden) if cell == "lstm_projected" else 0,
        "scalars": scalars_of(cell),
    }
    kind = _native.NATIVE[dtype.name].Packed

    def run(**a: Any) -> Any:
        weights = [a.pop(n) for n in named]
        packed = kind(weights=[weights], **a)
        x = np.ones((2, 2, inputs), dtype)
        return packed.cell, packed.forward(x, None, None)[:3]

    return run, arguments | named, (), None


def native_training(d: Draw) -> Target:
    """One of the bindings of a training step outside the recurrences."""
    dtype = np.dtype(d.pick((np.float32, np.float64)))
    n, v = d.pick((0, 1, 3, 17)), d.size(1, 20)
    k = _native.NATIVE[dtype.name]
    vector = lambda: d.array((n,), dtype)
    kind = d.size(0, 6)
    if kind == 0:
        y, target = d.array((n, v), dtype), d.whole(-1, v - 1, (n,))
        return (
            k.softmax_cross_entropy,
            {
                "y": y,
                "target": target,
                "smoothing": 0.1,
                "weight": 0.5,
                "need_gradient": d.chance(0.7),
            },
            (),
            None,
        )
    if kind == 1:
        ids, table = d.whole(0, v - 1, (n,)), d.array((v, 3), dtype)
        return k.embedding_gather, {"x": ids, "weight": table}, (), None
    if kind == 2:
        names = {"x": d.whole(0, v - 1, (n,)), "dy": d.array((n, 3), dtype)}
        table = d.array((v, 3), dtype)
        run = lambda **a: (k.embedding_scatter_(**a), np.array(a["dweight"]))
        return run, {**names, "dweight": table}, ("dweight",), None
    if kind == 3:
        return k.square_sum, {"x": vector()}, (), None
    if kind == 4:
        arguments = {"p": vector(), "g": vector(), "m": vector(), "v": np.abs(vector())}
        half = len(arguments["p"]) // 2
        arguments |= {"runs": [(0, half, 0.1, 0.1, 0.1, 0.1), (half, 2 * half, 0.2, 0.0, 0.1, 0.1)]}
        arguments |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "decoupled": d.chance(0.5)}
        run = lambda **a: (k.adam_runs_(**a), *(np.array(a[name]) for name in "pmv"))
        return run, arguments, ("p", "m", "v"), None
    if kind == 5:
        return k.dropout, {"x": vector(), "rate": 0.3, "key": 5}, (), None
    return k.elementwise, {"name": d.pick(("tanh", "sigmoid", "exp")), "x": vector()}, (), None


def linear(d: Draw) -> Target:
    """The binding of a Linear layer."""
    dtype = np.dtype(d.pick((np.float32, np.float64)))
    n, i, o = d.pick((0, 1, 3, 40)), d.size(1, 20), d.size(1, 20)
    arguments = {
        "weight": d.array((o, i), dtype),
        "bias": d.maybe(d.array((o,), dtype)),
        "backward": True,
        "x": d.array((n, i), dtype),
        "dy": d.array((n, o), dtype),
        "dweight": d.maybe(d.array((o, i), dtype), 0.8),
        "dbias": d.maybe(d.array((o,), dtype)),
        "need_dx": d.chance(0.7),
    }
    kind = _native.NATIVE[dtype.name].PackedLinear

    def run(**a: Any) -> Any:
        packed = kind(a.pop("weight"), a.pop("bias"), a.pop("backward"))
        y = packed.forward(a["x"])
        dx = packed.run_backward(**a)
        return [y, dx, *(None if a[n] is None else np.array(a[n]) for n in ("dweight", "dbias"))]

    return run, arguments, ("dweight", "dbias"), None


def ctc(d: Draw) -> Target:
    """The binding of the CTC loss."""
    dtype = np.dtype(d.pick((np.float32, np.float64)))
    batch, classes = d.size(0, 4), d.size(1, 7)
    steps = [d.size(0, 9) for _ in range(batch)]
    counts = [d.size(0, 4) for _ in range(batch)]
    offsets = lambda sizes: np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    n = sum(steps) + d.size(0, 2)
    order = list(range(n))
    d.r.shuffle(order)
    arguments = {
        "y": d.array((n, classes), dtype, 3.0),
        "rows": np.array(order[: sum(steps)], np.int64),
        "row_offsets": offsets(steps),
        "labels": d.whole(0, classes - 1, (sum(counts),)),
        "label_offsets": offsets(counts),
        "scales": np.abs(d.array((batch,), np.float64)),
        "blank": d.size(0, classes - 1),
        "zero_infinite": d.chance(0.5),
        "need_gradient": d.chance(0.7),
    }
    return _native.NATIVE[dtype.name].ctc, arguments, (), None


@functools.cache
def _model(kind: int) -> Any:
    nn = ost.nn
    return (
        lambda: nn.LSTM(3, 5, 2, rng=0),
        lambda: nn.Sequential(nn.GRU(3, 8, rng=0), nn.LSTM(8, 5, rng=0), nn.Linear(5, 2, rng=0)),
        lambda: nn.Sequential(
            nn.Embedding(6, 3, rng=0), nn.RNN(3, 4, rng=0), nn.Activation("tanh")
        ),
        lambda: nn.Sequential(nn.Linear(3, 4, rng=0), nn.LayerNorm(4), nn.GRU(4, 4, rng=0)),
        lambda: nn.Sequential(
            nn.LSTM(3, 40, rng=0, dtype=np.float64), nn.Activation("gelu", dtype=np.float64)
        ),
    )[kind]()


def stream(d: Draw) -> Target:
    """A model that runs one step a call: the arrays that it is given, and its slots."""
    kind, batch = d.size(0, 4), d.size(1, 4)
    model = _model(kind)
    lead = d.size(0, batch)
    rows = lambda n: d.whole(0, 5, (n,)) if kind == 2 else d.array((n, 3), model.dtype)
    arguments = {"batch": batch, "x": rows(batch), "few": rows(lead), "more": rows(batch)}
    arguments["slots"] = np.array(d.r.sample(range(batch), lead), np.int64)
    arguments["reset"] = d.maybe(np.array(d.r.sample(range(batch), lead), np.int64))

    def run(batch: Any, x: Any, few: Any, more: Any, slots: Any, reset: Any) -> Any:
        if type(batch) is int and 64 < batch < 1 << 40:
            batch = 64  # a size that memory may hold, which would take long
        s = model.stream(batch)
        out = [s.step(x).copy(), s.step(few, slots).copy()]
        s.reset(reset)
        return [*out, s.step(more).copy(), s.state]

    return run, arguments, (), None


def model(d: Draw) -> Target:
    """A model for training, a loss and an optimiser."""
    kind = d.size(0, 4)
    net = _model(kind)
    steps, batch, *_ = _sizes(d)
    x = d.whole(0, 5, (steps, batch)) if kind == 2 else d.array((steps, batch, 3), net.dtype)
    width = net(np.zeros_like(x))[0].shape[-1]
    loss = d.pick((ost.losses.MSE, ost.losses.CrossEntropy, ost.losses.Huber))
    target = d.array((steps, batch, width), net.dtype)
    if loss is ost.losses.CrossEntropy:
        target = d.whole(0, width - 1, (steps, batch))
    lengths = d.maybe(d.whole(0, steps, (batch,)), 0.3)

    def run(x: Any, target: Any, lengths: Any) -> Any:
        (y, state), pullback = net.vjp(x, lengths=lengths)
        value, dy = loss()(y, target, lengths)
        grads = net.new_grads()
        return y, state, value, pullback(dy, grads=grads), grads.flat

    return run, {"x": x, "target": target, "lengths": lengths}, (), None


def numbers(d: Draw) -> Target:
    """One of the bindings that take numbers alone, or a constructor."""
    small = lambda: d.pick((0, 1, 2, 5, 17, 64, 300, -1, -7))
    cell = d.pick((*CELLS, "lstm", "none", ""))
    kinds: tuple[tuple[Callable[..., Any], Arguments], ...] = (
        (
            _core.plan,
            {
                "itemsize": d.pick((4, 8, 0, 5)),
                "cell": cell,
                "input": small(),
                "hidden": small(),
                "layers": d.size(-1, 12),
                "bidirectional": d.chance(0.5),
                "precision": "exact",
                "steps": small(),
                "batch": small(),
                "dropout": False,
                "train": d.chance(0.5),
                "backward": d.chance(0.5),
                "proj_size": d.pick((0, 0, 3, -2)),
            },
        ),
        (_core.gradient_parts, {"steps": small(), "batch": small()}),
        (
            _core.philox_word,
            {"key": small(), "layer_direction": 1, "t": small(), "b": 2, "unit": small()},
        ),
        (_core.balance_rows, {"lengths": d.whole(-3, 20, (d.size(0, 30),))}),
        (
            _core.times_table,
            {
                "steps": 4,
                "batch": 3,
                "lengths": d.maybe(d.whole(0, 4, (3,))),
                "resets": d.maybe(d.flags((4, 3), 0.2).view(np.uint8)),
                "mask": d.maybe(d.flags((4, 3), 0.8).view(np.uint8)),
                "repeat": True,
                "reverse": d.chance(0.5),
            },
        ),
        (_core.fma_lanes, {"itemsize": small()}),
        (
            _core.xla_sizes,
            {
                "itemsize": 4,
                "cell": cell,
                "input": small(),
                "hidden": small(),
                "output": small(),
                "precision": "exact",
            },
        ),
        (
            _core.matrix_shapes,
            {"cell": d.size(-1, 12), "input": small(), "hidden": small(), "output": small()},
        ),
        (
            lambda **a: repr(ost.nn.LSTM(**a)),
            {
                "input_size": 3,
                "hidden_size": 4,
                "dropout": 0.0,
                "bidirectional": True,
            },
        ),
        (
            lambda **a: repr(ost.nn.GRU(**a)),
            {
                "input_size": 3,
                "hidden_size": 4,
                "rng": 0,
                "bias": True,
                "batch_first": False,
                "clip": None,
            },
        ),
        (lambda **a: repr(ost.nn.Linear(**a)), {"in_features": 3, "out_features": 4, "rng": 0}),
        (lambda **a: ost.optim.Adam(**a).lr, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8}),
        (lambda n: ost.set_num_threads(n), {"n": d.pick((1, 2, 3))}),
        (lambda n: ost.use_kernels(n), {"n": d.pick(_core.supported_kernels())}),
        (_core.find_openmp, {}),
    )
    run, arguments = d.pick(kinds)
    if arguments and d.chance(0.5):
        arguments[d.pick(list(arguments))] = d.pick(EVIL_SCALARS)
    return run, arguments, (), None


TARGETS: tuple[Callable[[Draw], Target], ...] = (
    functional,
    functional,
    functional_training,
    functional_training,
    ragged,
    stack,
    stack,
    stack_training,
    stack_training,
    native,
    native,
    native,
    native_pack,
    native_training,
    native_training,
    linear,
    ctc,
    stream,
    model,
    numbers,
)
