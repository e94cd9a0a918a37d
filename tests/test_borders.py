"""Bad input: a clear error that names the argument, what was expected and what came."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import ostinato as ost

F = np.float32
X = np.zeros((5, 2, 3), F)
Y = np.zeros((4, 2), F)


def weights(gates: int = 4, inputs: int = 3, hidden: int = 4, dtype: Any = F) -> list[Any]:
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=s).astype(dtype)
        for s in (
            (gates * hidden, inputs),
            (gates * hidden, hidden),
            (gates * hidden,),
            (gates * hidden,),
        )
    ]


def misaligned(shape: tuple[int, ...]) -> Any:
    raw = np.zeros(int(np.prod(shape)) * 4 + 1, np.uint8)
    return raw[1:].view(F).reshape(shape)


def call(x: Any = X, w: Any = None, **options: Any) -> Any:
    return ost.functional.lstm(x, *(weights() if w is None else w), **options)


def layer(**options: Any) -> ost.nn.LSTM:
    return ost.nn.LSTM(3, 4, rng=0, **options)


def trainer(**options: Any) -> ost.Trainer:
    return ost.Trainer(ost.nn.Linear(2, 1, rng=0), ost.losses.MSE(), **options)


def out_of(x: Any) -> Any:
    big = np.zeros((5, 2, 7), F)
    return {"x": big[:, :, :3], "out": big[:, :, 2:6]}


CASES: dict[str, tuple[Any, type[Exception], str]] = {
    # what is no number, or too large a size
    "no dropout": (
        lambda: layer(num_layers=2, dropout=None),
        TypeError,
        "dropout: expected a number in [0, 1), got None",
    ),
    "dropout text": (
        lambda: ost.nn.Dropout("0.5"),
        TypeError,
        "rate: expected a number in [0, 1), got '0.5'",
    ),
    "clipping": (
        lambda: layer().vjp(X, clip_step_value="a"),
        TypeError,
        "clip_step_value: expected a number above 0, got 'a'",
    ),
    "no dtype": (
        lambda: layer(dtype="foo"),
        TypeError,
        "dtype: expected float32 or float64, got 'foo'",
    ),
    "huge sizes": (
        lambda: ost.nn.LSTM(1, 2**62),
        ValueError,
        "weight_ih_l0: expected sizes whose product",
    ),
    "sizes of Linear": (
        lambda: ost.nn.Linear(2**40, 2**40),
        ValueError,
        "weight: expected sizes whose product",
    ),
    "an array for a name": (
        lambda: layer().vjp(X, outputs=np.zeros(3)),
        ValueError,
        "outputs: expected one of 'all', 'last', 'last_step', 'none', got array",
    ),
    "a broadcast state": (
        lambda: layer()(X, (np.broadcast_to(F(0), (1, 2**40, 4)),) * 2),
        ValueError,
        "state: expected shape (L*D, B, H) = (1, 2, 4), got (1, 1099511627776, 4)",
    ),
    # what is not an array, or of another dtype or byte order
    "list": (lambda: call([[[1.0]]]), TypeError, "x: expected a numpy.ndarray, got list"),
    "float64 x": (
        lambda: call(X.astype(np.float64)),
        TypeError,
        "x: expected dtype float32, got float64; use x.astype(np.float32)",
    ),
    "integer x": (
        lambda: call(X.astype(np.int64)),
        TypeError,
        "x: expected dtype float32, got int64",
    ),
    "float16 weights": (
        lambda: call(w=weights(dtype=np.float16)),
        TypeError,
        "weight_ih: expected dtype float32 or float64, got float16",
    ),
    "big-endian x": (
        lambda: call(X.astype(">f4")),
        TypeError,
        "x: expected native byte order, got dtype >f4; use x.astype(np.float32)",
    ),
    "mixed weights": (
        lambda: call(w=[*weights()[:1], weights(dtype=np.float64)[1]]),
        TypeError,
        "weight_hh: expected dtype float32, got float64",
    ),
    "object x": (
        lambda: call(X.astype(object)),
        TypeError,
        "x: expected dtype float32, got object",
    ),
    # rank and extent
    "rank": (lambda: call(np.zeros((5, 3), F)), ValueError, "x: expected 3 axes, got shape (5, 3)"),
    "inputs": (
        lambda: call(np.zeros((5, 2, 7), F)),
        ValueError,
        "x: expected shape (T, B, I) = (*, *, 3), got (5, 2, 7)",
    ),
    "weight_ih": (
        lambda: call(w=[np.zeros((15, 3), F), *weights()[1:]]),
        ValueError,
        "weight_ih: expected shape (4*H, I) = (16, 3), got (15, 3)",
    ),
    "weight_hh": (
        lambda: call(w=[weights()[0], np.zeros((16, 5), F)]),
        ValueError,
        "weight_hh: expected shape (4*H, H), got (16, 5)",
    ),
    "bias": (
        lambda: call(w=[*weights()[:2], np.zeros(4, F)]),
        ValueError,
        "bias_ih: expected shape (4*H,) = (16,), got (4,)",
    ),
    "peephole": (
        lambda: call(weight_peephole=np.zeros((4, 3), F)),
        ValueError,
        "weight_peephole: expected shape (gates, H) = (3, 4), got (4, 3)",
    ),
    "no finite weights": (
        lambda: ost.functional.pack(
            "lstm", weights()[0], np.full((16, 4), np.nan, F), precision="int8"
        ),
        ValueError,
        "weight_hh: expected finite weights for int8, got nan in row 0",
    ),
    "h0": (
        lambda: call(h0=np.zeros((3, 4), F)),
        ValueError,
        "h0: expected shape (B, H) = (2, 4), got (3, 4)",
    ),
    "no inputs": (
        lambda: call(np.zeros((5, 2, 0), F), w=weights(inputs=0)),
        ValueError,
        "weight_ih: expected at least one input",
    ),
    "no units": (
        lambda: call(w=weights(hidden=0)),
        ValueError,
        "weight_hh: expected shape (4*H, H), got (0, 0)",
    ),
    # memory
    "misaligned": (
        lambda: call(misaligned((5, 2, 3))),
        ValueError,
        "x: expected memory and strides aligned to the item size of 4 bytes",
    ),
    "last axis": (
        lambda: call(np.zeros((5, 3, 2), F).transpose(0, 2, 1)),
        ValueError,
        "x: expected unit stride on the last axis, got strides (24, 4, 8) bytes; use "
        "np.ascontiguousarray(x)",
    ),
    "weight strides": (
        lambda: call(w=[np.zeros((3, 16), F).T, *weights()[1:]]),
        ValueError,
        "weight_ih: expected a C-contiguous array",
    ),
    "out overlaps": (
        lambda: call(**out_of(X)),
        ValueError,
        "out: expected memory of its own, got an array whose memory range overlaps that of x",
    ),
    "out self": (
        lambda: call(out=np.lib.stride_tricks.as_strided(np.zeros(99, F), (5, 2, 4), (16, 4, 4))),
        ValueError,
        "out: expected rows of its own for every (t, b), got strides by which they overlap",
    ),
    "out read-only": (
        lambda: call(out=np.broadcast_to(np.zeros(4, F), (5, 2, 4))),
        ValueError,
        "out: expected a writable array, got a read-only one",
    ),
    "out shape": (
        lambda: call(out=np.zeros((5, 2, 5), F)),
        ValueError,
        "out: expected shape (T, B, D*H) = (5, 2, 4), got (5, 2, 5)",
    ),
    "out dtype": (
        lambda: call(out=np.zeros((5, 2, 4))),
        TypeError,
        "out: expected dtype float32, got float64",
    ),
    # lengths
    "lengths NaN": (
        lambda: call(lengths=[1.0, np.nan]),
        ValueError,
        "lengths: expected whole numbers, got NaN",
    ),
    "lengths float": (
        lambda: call(lengths=[1.0, 2.0]),
        TypeError,
        "lengths: expected an integer dtype, got float64",
    ),
    "lengths long": (
        lambda: call(lengths=[5, 6]),
        ValueError,
        "lengths: expected values from 0 to T = 5, got 6 at b = 1",
    ),
    "lengths negative": (
        lambda: call(lengths=[-1, 5]),
        ValueError,
        "lengths: expected values from 0 to T = 5, got -1 at b = 0",
    ),
    "lengths shape": (
        lambda: call(lengths=[5]),
        ValueError,
        "lengths: expected shape (B,) = (2,), got (1,)",
    ),
    # packed weights
    "packed and more": (
        lambda: call(w=[ost.functional.pack("lstm", *weights()), weights()[1]]),
        TypeError,
        "weight_ih: expected no further weights beside packed ones",
    ),
    "packed for another": (
        lambda: ost.functional.gru(X, ost.functional.pack("lstm", *weights())),
        ValueError,
        "weight_ih: expected weights packed for gru, got lstm",
    ),
    "family": (
        lambda: ost.functional.pack("cnn", *weights()),
        ValueError,
        "family: expected one of 'rnn', 'lstm', 'gru', got 'cnn'",
    ),
    # layers
    "sizes": (
        lambda: ost.nn.LSTM(0, 4),
        ValueError,
        "input_size: expected a whole number of at least 1, got 0",
    ),
    "size type": (
        lambda: ost.nn.LSTM(3.5, 4),
        TypeError,
        "input_size: expected a whole number, got 3.5",
    ),  # type: ignore[arg-type]
    "size bool": (
        lambda: ost.nn.LSTM(3, True),
        ValueError,
        "hidden_size: expected a whole number of at least 1, got True",
    ),
    "layers": (
        lambda: ost.nn.GRU(3, 4, 0),
        ValueError,
        "num_layers: expected a whole number of at least 1, got 0",
    ),
    "dropout": (
        lambda: ost.nn.GRU(3, 4, dropout=1.0),
        ValueError,
        "dropout: expected a number in [0, 1), got 1.0",
    ),
    "dtype": (
        lambda: ost.nn.RNN(3, 4, dtype=np.int32),
        TypeError,
        "dtype: expected float32 or float64, got int32",
    ),
    "rng": (
        lambda: ost.nn.RNN(3, 4, rng="x"),
        TypeError,
        "rng: expected a seed (a whole number of at least 0) or a numpy.random.Generator, got 'x'",
    ),  # type: ignore[arg-type]
    "nonlinearity": (
        lambda: ost.nn.RNN(3, 4, nonlinearity="sin"),
        ValueError,
        "nonlinearity: expected one of 'tanh', 'sigmoid', 'relu', 'linear', 'affine',",
    ),
    "layer x": (
        lambda: layer()(np.zeros((5, 2, 9), F)),
        ValueError,
        "x: expected shape (T, B, I) = (*, *, 3), got (5, 2, 9)",
    ),
    "layer x batch first": (
        lambda: layer(batch_first=True)(np.zeros((5, 2, 9), F)),
        ValueError,
        "x: expected shape (B, T, I) = (*, *, 3), got (5, 2, 9)",
    ),
    "layer x rank": (
        lambda: layer()(np.zeros(3, F)),
        ValueError,
        "x: expected 2 or 3 axes, got shape (3,)",
    ),
    "layer dtype": (
        lambda: layer()(X.astype(np.float64)),
        TypeError,
        "x: expected dtype float32, got float64",
    ),
    "state one": (
        lambda: layer()(X, np.zeros((1, 2, 4), F)),
        TypeError,
        "state: expected a pair (h, c), got ndarray",
    ),
    "state pair": (
        lambda: ost.nn.GRU(3, 4)(X, (X, X)),
        TypeError,
        "state: expected one array h, got a tuple",
    ),
    "state shape": (
        lambda: layer()(X, (np.zeros((1, 3, 4), F),) * 2),
        ValueError,
        "state: expected shape (L*D, B, H) = (1, 2, 4), got (1, 3, 4)",
    ),
    "state of one sequence": (
        lambda: ost.nn.GRU(3, 4)(X[:, 0], np.zeros((1, 5), F)),
        ValueError,
        "state: expected shape (L*D, H) = (1, 4), got (1, 5)",
    ),
    "state layers": (
        lambda: layer(num_layers=2)(X, (np.zeros((1, 2, 4), F),) * 2),
        ValueError,
        "state: expected shape (L*D, B, H) = (2, 2, 4), got (1, 2, 4)",
    ),
    "state dtype": (
        lambda: layer()(X, (np.zeros((1, 2, 4)),) * 2),
        TypeError,
        "state: expected dtype float32, got float64; use state.astype(np.float32)",
    ),
    "dy shape": (
        lambda: layer().vjp(X)[1](np.zeros((5, 2, 5), F)),
        ValueError,
        "dy: expected shape (T, B, D*H) = (5, 2, 4), got (5, 2, 5)",
    ),
    "dstate shape": (
        lambda: layer().vjp(X)[1](None, (np.zeros((1, 2, 5), F), None)),
        ValueError,
        "dstate: expected shape (L*D, B, H) = (1, 2, 4), got (1, 2, 5)",
    ),
    "forget bias": (
        lambda: ost.nn.GRU(3, 4).initialize(forget_bias=1.0),
        ValueError,
        "forget_bias: expected an LSTM, got GRU",
    ),
    "init name": (
        lambda: layer().initialize("he"),
        ValueError,
        "input: expected one of 'glorot', 'identity', 'orthogonal', 'uniform', 'zeros', got 'he'",
    ),
    "freeze": (
        lambda: layer().freeze("nothing*"),
        KeyError,
        "pattern: expected to match a parameter among",
    ),
    "linear x": (
        lambda: ost.nn.Linear(3, 4)(np.zeros((2, 5), F)),
        ValueError,
        "x: expected shape (..., 3), got (2, 5)",
    ),
    "linear dtype": (
        lambda: ost.nn.Linear(3, 4)(np.zeros((2, 3))),
        TypeError,
        "x: expected dtype float32, got float64; use x.astype(np.float32)",
    ),
    "embedding range": (
        lambda: ost.nn.Embedding(3, 4)(np.array([0, 3])),
        ValueError,
        "x: expected indices from 0 to 2, got 3 at position 1",
    ),
    "embedding dtype": (
        lambda: ost.nn.Embedding(3, 4)(np.array([0.5])),
        TypeError,
        "x: expected an integer dtype, got float64",
    ),
    "activation": (
        lambda: ost.nn.Activation("swish"),
        ValueError,
        "name: expected one of 'tanh', 'sigmoid', 'relu', 'gelu', 'gelu_tanh', got 'swish'",
    ),
    "dropout rate": (
        lambda: ost.nn.Dropout(-0.1),
        ValueError,
        "rate: expected a number in [0, 1), got -0.1",
    ),
    "sequential empty": (
        lambda: ost.nn.Sequential(),
        ValueError,
        "layers: expected at least one, got none",
    ),
    "sequential type": (
        lambda: ost.nn.Sequential(3),
        TypeError,
        "layers: expected layers, got int",
    ),  # type: ignore[arg-type]
    "sequential dtype": (
        lambda: ost.nn.Sequential(ost.nn.Linear(1, 1), ost.nn.Linear(1, 1, dtype=np.float64)),
        TypeError,
        "layers: expected one dtype, got float32 and float64",
    ),
    "sequential state": (
        lambda: ost.nn.Sequential(layer())(X, ()),
        TypeError,
        "state: expected a tuple with one entry for each of 1 layers, got 0 entries",
    ),
    "sequential state entry": (
        lambda: ost.nn.Sequential(ost.nn.Linear(3, 1))(X, (X,)),
        TypeError,
        "state[0]: expected None, since Linear has no state",
    ),
    "linear dstate": (
        lambda: ost.nn.Linear(3, 4).vjp(X)[1](np.zeros((5, 2, 4), F), 1),
        TypeError,
        "dstate: expected None, since Linear has no state",
    ),
    "linear no dy": (
        lambda: ost.nn.Linear(3, 4).vjp(X)[1](),
        TypeError,
        "dy: expected an array, got None",
    ),
    # losses and optimisers
    "target shape": (
        lambda: ost.losses.MSE()(X, X[:1]),
        ValueError,
        "target: expected the shape of y (5, 2, 3), got (1, 2, 3)",
    ),
    "class range": (
        lambda: ost.losses.CrossEntropy()(X, np.full((5, 2), 3)),
        ValueError,
        "target: expected class numbers from 0 to 2, got 3",
    ),
    "class shape": (
        lambda: ost.losses.CrossEntropy()(X, np.zeros((5, 3), int)),
        ValueError,
        "target: expected shape (5, 2), that of y without its last axis, got (5, 3)",
    ),
    "class dtype": (
        lambda: ost.losses.CrossEntropy()(X, np.zeros((5, 2))),
        TypeError,
        "target: expected an integer dtype, got float64",
    ),
    "loss lengths": (
        lambda: ost.losses.MSE()(X, X, [9, 1]),
        ValueError,
        "lengths: expected values from 0 to T = 5, got 9 at b = 0",
    ),
    "huber": (
        lambda: ost.losses.Huber(0),
        ValueError,
        "delta: expected a finite number above 0, got 0",
    ),
    "a flag": (
        lambda: layer(bidirectional="no"),
        TypeError,
        "bidirectional: expected True or False, got 'no'",
    ),
    "a flag of many": (
        lambda: ost.nn.Linear(2, 2, bias=np.ones(2)),
        TypeError,
        "bias: expected True or False, got array([1., 1.])",
    ),
    "a flag without axes that is a number": (
        lambda: ost.nn.Linear(2, 2, bias=np.array(1.5)),  # type: ignore[arg-type]
        TypeError,
        "bias: expected True or False, got array(1.5)",
    ),
    "a size beyond 64 bits": (
        lambda: layer(num_layers=10**20),
        ValueError,
        f"num_layers: expected a whole number below 2**63, got {10**20}",
    ),
    "precision": (
        lambda: layer(precision=np.ones(2)),
        ValueError,
        "precision: expected one of 'float32', 'bfloat16', 'int8', 'exact', got array([1., 1.])",
    ),
    "no delta": (
        lambda: ost.losses.Huber(None),  # type: ignore[arg-type]
        TypeError,
        "delta: expected a finite number above 0, got None",
    ),
    "ignore_index": (
        lambda: ost.losses.CrossEntropy(ignore_index="x"),  # type: ignore[arg-type]
        TypeError,
        "ignore_index: expected a whole number, got 'x'",
    ),
    "class_weights": (
        lambda: ost.losses.CrossEntropy(class_weights="x"),  # type: ignore[arg-type]
        TypeError,
        "class_weights: expected [V] finite numbers of at least 0, some above 0, got 'x'",
    ),
    "no model": (
        lambda: ost.optim.clip_by_norm(None, 1.0),  # type: ignore[arg-type]
        TypeError,
        "model: expected a Layer, got NoneType",
    ),
    "no texts": (
        lambda: ost.metrics.cer(None, ["a"]),  # type: ignore[arg-type]
        TypeError,
        "references: expected a text or a sequence, got NoneType",
    ),
    "hop": (
        lambda: ost.audio.log_mel(np.ones(800), 8000, hop=None),  # type: ignore[arg-type]
        TypeError,
        "hop: expected a finite number of at least 0, got None",
    ),
    "no shape": (
        lambda: ost.explain(layer(), None),
        TypeError,
        "shape: expected (T, B, I) or (T, I), got None",
    ),
    "no kernels": (
        lambda: ost.use_kernels(None),  # type: ignore[arg-type]
        TypeError,
        "name: expected the name of a kernel set, got None",
    ),
    "flow of nothing": (
        lambda: ost.diagnostics.gradient_flow(None, X),  # type: ignore[arg-type]
        TypeError,
        "model: expected recurrent layers, got None",
    ),
    "smoothing": (
        lambda: ost.losses.CrossEntropy(label_smoothing=1),
        ValueError,
        "label_smoothing: expected a number in [0, 1), got 1",
    ),
    "rate": (
        lambda: ost.optim.Adam(-1),
        ValueError,
        "lr: expected a finite number of at least 0, got -1",
    ),
    "betas": (
        lambda: ost.optim.Adam(betas=(0.9, 1.0)),
        ValueError,
        "betas[1]: expected a number in [0, 1), got 1.0",
    ),
    "nesterov": (
        lambda: ost.optim.SGD(0.1, nesterov=True),
        ValueError,
        "nesterov: expected momentum above 0 with it, got 0",
    ),
    "clip": (
        lambda: ost.optim.clip_by_norm(layer(), 0),
        ValueError,
        "max_norm: expected a number above 0, got 0",
    ),
    "stream": (
        lambda: ost.data.StreamLoader(np.array([1, 2]), 4, 3),
        ValueError,
        "text: expected more than batch_size = 4 elements, got 2",
    ),
    "loader target": (
        lambda: ost.data.ArrayLoader(X, X[:, :1]),
        ValueError,
        "target: expected a shape that begins with (5, 2), got (5, 1, 3)",
    ),
    "threads": (
        lambda: ost.set_num_threads(0),
        ValueError,
        "n: expected a whole number from 1 to 1024, got 0",
    ),
    "kernels": (
        lambda: ost.use_kernels("mmx"),
        ValueError,
        "name: expected one of the kernel sets",
    ),
    # a text where a list is expected, and what is no flag
    "skip of a text": (
        lambda: ost.from_torch({"out.weight": np.ones((2, 2), F)}, skip="out.*"),
        TypeError,
        "skip: expected a list of patterns, got 'out.*'; use ['out.*']",
    ),
    "skip of numbers": (
        lambda: ost.from_torch({"out.weight": np.ones((2, 2), F)}, skip=[3]),
        TypeError,
        "skip[...]: expected a pattern of names, got 3",
    ),
    "an open file for a path": (lambda: ost.load(5), TypeError, "path: expected a path"),
    "an open file for a file of torch": (
        lambda: ost.load_torch(5),
        TypeError,
        "path: expected a path",
    ),
    "skip of Keras": (
        lambda: ost.from_keras("none.h5", skip="out*"),
        TypeError,
        "skip: expected a list of patterns, got 'out*'",
    ),
    "reset_after": (
        lambda: ost.functional.gru(X, *weights(3), reset_after="no"),
        TypeError,
        "reset_after: expected True or False, got 'no'",
    ),
    "batch_first of a state dict": (
        lambda: ost.from_torch({"a.weight": np.ones((2, 2), F)}, batch_first="no"),
        TypeError,
        "batch_first: expected True or False, got 'no'",
    ),
    "decay": (
        lambda: ost.nn.Parameter(np.ones(2, F), decay="no"),
        TypeError,
        "decay: expected True or False, got 'no'",
    ),
    "set_decay": (
        lambda: layer().set_decay("*", "no"),
        TypeError,
        "decay: expected True or False, got 'no'",
    ),
    "trainable_only": (
        lambda: layer().count_parameters(trainable_only="no"),
        TypeError,
        "trainable_only: expected True or False, got 'no'",
    ),
    "approximate": (
        lambda: ost.nn.gelu(X, approximate="no"),
        TypeError,
        "approximate: expected True or False, got 'no'",
    ),
    "threads as a flag": (
        lambda: ost.set_num_threads(True),
        TypeError,
        "n: expected a whole number, got True",
    ),
    "freeze of a number": (
        lambda: layer().freeze(3),
        TypeError,
        "pattern: expected a pattern of names, got 3",
    ),
    # state dicts
    "a path for a state dict": (
        lambda: layer().load_state_dict("model.safetensors"),
        TypeError,
        "mapping: expected a mapping of names to arrays, got str; a file is read by load(path)",
    ),
    "no state dict": (
        lambda: layer().load_state_dict(None),
        TypeError,
        "mapping: expected a mapping of names to arrays, got NoneType",
    ),
    "nested lists": (
        lambda: ost.nn.Linear(2, 1, bias=False).load_state_dict({"weight": [[1], [2, 3]]}),
        TypeError,
        "weight: expected an array of numbers, got nested lists of different lengths",
    ),
    "no state of an optimiser": (
        lambda: ost.optim.Adam().load_state_dict(None),
        TypeError,
        "state: expected what state_dict returned, got NoneType",
    ),
    "an empty state of an optimiser": (
        lambda: ost.optim.Adam().load_state_dict({}),
        KeyError,
        "state: expected what state_dict returned, got no 'steps'",
    ),
    "groups of an optimiser": (
        lambda: ost.optim.Adam(groups={0: 0.1}),
        TypeError,
        "groups: expected a pattern of names as key, got 0",
    ),
    "an optimiser without an update": (
        lambda: ost.optim.Optimizer(0.1).step(ost.nn.Linear(1, 1)),
        TypeError,
        "Optimizer does not define _update",
    ),
    # targets
    "target of texts": (
        lambda: ost.losses.MSE()(np.zeros(2), np.array(["1", "2"])),
        TypeError,
        "target: expected real numbers, got dtype <U1",
    ),
    "complex target": (
        lambda: ost.losses.MAE()(np.zeros(2), np.zeros(2, complex)),
        TypeError,
        "target: expected real numbers, got dtype complex128",
    ),
    "no probability": (
        lambda: ost.losses.BinaryCrossEntropy()(np.zeros(2), np.array([1.0, -1.0])),
        ValueError,
        "target: expected values in [0, 1], got -1",
    ),
    "no probability of focal": (
        lambda: ost.losses.BinaryFocal()(np.zeros(2), np.array([1.0, 5.0])),
        ValueError,
        "target: expected values in [0, 1], got 5",
    ),
    # states by the names and axes that the caller knows
    "state of an RNN's dtype": (
        lambda: ost.nn.GRU(3, 4)(X, np.zeros((1, 2, 4))),
        TypeError,
        "state: expected dtype float32, got float64",
    ),
    "c0": (
        lambda: call(c0=np.zeros((2, 5), F)),
        ValueError,
        "c0: expected shape (B, H) = (2, 4), got (2, 5)",
    ),
    "dc_n": (
        lambda: ost.functional.lstm_vjp(X, *weights())[1](dc_n=np.zeros((2, 5), F)),
        ValueError,
        "dc_n: expected shape (B, H) = (2, 4), got (2, 5)",
    ),
    "a cell": (
        lambda: ost.functional.Packed("bogus", weights(), False),
        ValueError,
        "cell: expected one of ",
    ),
    "a function": (
        lambda: ost.vjp(5, X),
        TypeError,
        "function: expected a model or a function, got int",
    ),
    # initial values
    "forget bias of text": (
        lambda: layer().initialize(forget_bias="x"),
        TypeError,
        "forget_bias: expected a finite number, got 'x'",
    ),
    "forget bias of NaN": (
        lambda: layer().initialize(forget_bias=float("nan")),
        ValueError,
        "forget_bias: expected a finite number, got nan",
    ),
    "a bias that is not there": (
        lambda: layer(bias=False).initialize(bias="zeros"),
        ValueError,
        "bias: expected None for a layer with bias=False, got 'zeros'",
    ),
    # training
    "callbacks of a number": (
        lambda: trainer(callbacks=[5]),
        TypeError,
        "callbacks[0]: expected a Callback, got int",
    ),
    "callbacks of one": (
        lambda: trainer(callbacks=ost.train.WeightAverage()),
        TypeError,
        "callbacks: expected a list of callbacks, got WeightAverage",
    ),
    **{
        name: (
            lambda name=name: trainer().fit(Y, Y, **{name: "no"}),
            TypeError,
            f"{name}: expected True or False, got 'no'",
        )
        for name in ("overwrite", "resume", "restore_best", "progress")
    },
    "stop": (
        lambda: trainer().stop(""),
        ValueError,
        "reason: expected a text that is not empty, got ''",
    ),
    "every of TensorBoard": (
        lambda: ost.train.TensorBoard("runs", every=0),
        ValueError,
        "every: expected a whole number of at least 1, got 0",
    ),
    "threshold of a log": (
        lambda: ost.diagnostics.FlowLog(X, threshold=5),
        ValueError,
        "threshold: expected a number between 0 and 1, got 5",
    ),
    "echo of a log": (
        lambda: ost.diagnostics.FlowLog(X, echo="x"),
        TypeError,
        "echo: expected a function, got str",
    ),
    "groups of unfreezing": (
        lambda: ost.train.GradualUnfreezing(5, [5]),
        TypeError,
        "groups[0]: expected a list of patterns, got int",
    ),
    "a search without validation": (
        lambda: ost.search(trainer, {"a": [1]}, (Y, Y), validation=None),
        ValueError,
        "validation: expected data on which trials are compared, got None",
    ),
    "a search without an end": (
        lambda: ost.search(trainer, {"a": (1e-3, float("inf"))}, (Y, Y), validation=(Y, Y)),
        ValueError,
        "space['a']: expected low < high, both finite, got (0.001, inf)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str) -> None:
    run, kind, message = CASES[name]
    with pytest.raises(kind) as caught:
        run()
    text = caught.value.args[0]
    assert text.startswith(message), f"got: {text}"


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        ost.nn.LSTM(3, 4, proj=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        call(length=[1, 2])


def test_parameters_are_read_only() -> None:
    one = layer()
    for view in (
        one.parameters()["weight_ih_l0"],
        one.grads["bias_hh_l0"],
        one.flat,
        one.flat_grads,
        one.vjp(X)[0][0],
    ):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    with pytest.raises(KeyError, match="nothing"):
        one.parameters()["nothing"]


def test_a_refused_gradient_leaves_the_pullback_usable() -> None:
    one = layer()
    (y, _), pullback = one.vjp(X)
    with pytest.raises(ValueError, match=re.escape("dy: expected shape")):
        pullback(np.zeros((1, 1, 1), F))
    assert (one.flat_grads == 0).all()
    dx, _ = pullback(np.ones_like(y))
    assert dx.shape == X.shape
    assert (one.flat_grads != 0).any()


def test_right_answers_at_the_edges() -> None:
    y, (h, c) = layer()(np.zeros((0, 2, 3), F))
    assert (y.shape, h.shape, float(abs(h).max()), float(abs(c).max())) == (
        (0, 2, 4),
        (1, 2, 4),
        0.0,
        0.0,
    )
    y, _ = layer()(np.zeros((5, 0, 3), F))
    assert y.shape == (5, 0, 4)
    y, h = ost.nn.GRU(1, 1, rng=0)(np.ones((3, 1, 1), F))
    assert y.shape == (3, 1, 1)
    assert call(lengths=np.array([5, 2], np.uint8))[0].shape == (5, 2, 4)
    assert call(lengths=np.array([5, 2], ">i4"))[0].shape == (5, 2, 4)


def test_the_native_classes_check_their_sizes() -> None:
    from ostinato import _core

    w = [weights()]
    for sizes in ((-1, 4, 1), (3, 0, 1), (3, 4, 0)):
        with pytest.raises(ValueError, match="expected a size from 1"):
            _core.PackedFloat32("lstm", *sizes, False, [[*w[0], None]], False)
    with pytest.raises(ValueError, match="weight: expected shape"):
        _core.PackedLinearFloat32(np.zeros((2, 0), F), None, False)


def test_a_flag_may_be_an_array_without_axes() -> None:
    assert ost.nn.Linear(2, 2, bias=np.array(False)).parameters().keys() == {"weight"}
    assert ost.nn.Linear(2, 2, bias=np.array([True]).all()).parameters().keys() == {
        "weight",
        "bias",
    }


def test_what_cannot_be_drawn_leaves_the_layer_as_it_was() -> None:
    lstm = layer()
    before = lstm.flat.copy()
    for wrong in ({"forget_bias": "x"}, {"bias": "bogus"}, {"recurrent": "bogus"}):
        with pytest.raises((TypeError, ValueError)):
            lstm.initialize("zeros", **{"recurrent": "zeros", **wrong})
        assert np.array_equal(lstm.flat, before)


def test_a_state_of_another_schedule_leaves_the_optimiser_as_it_was() -> None:
    model, adam = ost.nn.Linear(2, 1, rng=0), ost.optim.Adam(0.1)
    adam.step(model)
    other = ost.optim.Adam(ost.optim.ReduceOnPlateau(0.1))
    with pytest.raises(KeyError, match="expected that of a ReduceOnPlateau, got no 'scale'"):
        other.load_state_dict(adam.state_dict())
    with pytest.raises(ValueError, match=r"state\['buffers'\]\['mean'\]: expected an array"):
        other.load_state_dict(
            {**other.state_dict(), "steps": 1, "buffers": {"mean": "abc", "square": np.zeros(3, F)}}
        )
    assert (other.steps, other.state) == (0, {})


def test_an_error_on_the_way_out_hides_none() -> None:
    class Fails(ost.train.Callback):
        def on_start(self, trainer: ost.Trainer) -> None:
            raise RuntimeError("first")

        def on_end(self, trainer: ost.Trainer) -> None:
            raise RuntimeError("second")

    class Ends(ost.train.Callback):
        def on_end(self, trainer: ost.Trainer) -> None:
            raise RuntimeError("second")

    for callback, message in ((Fails(), "first"), (Ends(), "second")):
        with pytest.raises(RuntimeError, match=message):
            trainer(callbacks=[callback]).fit(Y, Y[:, :1], progress=False)


def test_padding_of_a_target_may_hold_anything() -> None:
    y, target = np.zeros((2, 1, 1)), np.array([[[1.0]], [[-9.0]]])
    for loss in (ost.losses.BinaryCrossEntropy(), ost.losses.BinaryFocal()):
        assert np.isfinite(loss(y, target, [1])[0])


def test_a_stream_needs_a_width() -> None:
    for one in (ost.nn.Activation("tanh"), ost.nn.Activation("gelu"), ost.nn.Softmax()):
        with pytest.raises(TypeError, match="stream: expected a layer first that knows the length"):
            ost.nn.Sequential(one, ost.nn.Linear(3, 2)).stream()
