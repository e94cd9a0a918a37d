"""Make layers of the RNN, LSTM and GRU nodes of ONNX, from their constant inputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from .. import nn
from .._check import Array
from .._functions import Function
from ._imported import compare, require
from ._layers import Reversed

QUANTIZED = "DynamicQuantizeLSTM"  # of ONNX Runtime
_SCALES = ("W_scale", "W_zero_point", "R_scale", "R_zero_point")
KINDS = {"RNN": 1, "LSTM": 4, "GRU": 3}  # by the number of gates
# Our gate blocks at each of ONNX': i o f c; z r h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_BACK = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # and ONNX' at each of ours
# The functions of each kind, by our options in ONNX' order, with what they are where none are said.
FUNCTIONS = {
    "RNN": {"nonlinearity": "Tanh"},
    "GRU": {"recurrent_activation": "Sigmoid", "activation": "Tanh"},
    "LSTM": {"recurrent_activation": "Sigmoid", "activation": "Tanh", "output_activation": "Tanh"},
}
# ONNX' names by ours, with the values of alpha and beta where none are said: those of the operator
# of the same name. Affine and ScaledTanh are none.
FUNCTION_NAMES: dict[str, tuple[str, tuple[float | None, ...]]] = {
    "tanh": ("Tanh", ()),
    "sigmoid": ("Sigmoid", ()),
    "relu": ("Relu", ()),
    "softsign": ("Softsign", ()),
    "softplus": ("Softplus", ()),
    "affine": ("Affine", (None, None)),
    "leaky_relu": ("LeakyRelu", (0.01,)),
    "thresholded_relu": ("ThresholdedRelu", (1.0,)),
    "scaled_tanh": ("ScaledTanh", (None, None)),
    "hard_sigmoid": ("HardSigmoid", (0.2, 0.5)),
    "elu": ("Elu", (1.0,)),
}
_BY_THEIRS = {theirs.lower(): (n, usual) for n, (theirs, usual) in FUNCTION_NAMES.items()}
_NO_CLIP = float(np.finfo(np.float32).max)  # which some files say in place of nothing
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


def attributes(onnx: Any, node: Any) -> dict[str, Any]:
    """Return the attributes of a node, text as text; graphs are left out."""
    out = {}
    for a in node.attribute:
        if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            continue
        value = onnx.helper.get_attribute_value(a)
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        elif isinstance(value, (list, tuple)):
            value = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]
        out[a.name] = value
    return out


def reordered(kind: str, a: Array, *, back: bool = False) -> Array:
    """Return the gate blocks along the first axis in our order, or in ONNX' again."""
    order = (_BACK if back else _ORDER)[kind]
    parts = np.split(a, len(order))
    return np.ascontiguousarray(np.concatenate([parts[k] for k in order]))


class Made(NamedTuple):
    """A layer of a node."""

    layer: nn.Layer
    inputs: dict[str, str]  # the names of the node's inputs by what they are
    arrays: dict[str, Array]
    said: str  # what there is to say of it


class NodeReader:
    """Make layers of recurrent nodes.

    Args:
        onnx: the module.
        producer: of the model, which knows a wrong form of GRU.
        gru_form: "torch", "onnx" or None.
    """

    def __init__(self, onnx: Any, producer: str, gru_form: str | None) -> None:
        self.onnx, self.producer, self.gru_form = onnx, producer, gru_form

    def make(
        self,
        name: str,
        node: Any,
        constant: Callable[[str], Array | None],
        batch_first: bool | None = None,
    ) -> Made:
        """Return the layer of a node, whose weights must be constants.

        Args:
            name: of the node, in errors.
            node: the node.
            constant: gives the value of a name, None for what is computed.
            batch_first: of the layer; None: as the node's layout is.
        """
        kind, given = node.op_type, attributes(self.onnx, node)
        inputs = {n: v for n, v in zip(_input_names(kind), node.input) if v}
        wanted = ("W", "R", "B", "P") + (_SCALES if kind == QUANTIZED else ())
        arrays = {}
        for n in wanted:
            value = constant(inputs[n]) if n in inputs else None
            if value is not None:
                arrays[n] = value
            elif n in inputs or n not in "BP":
                raise ValueError(f"{name}: expected a constant {n}, got one that is computed")
        if kind == QUANTIZED:
            kind, arrays = "LSTM", _dequantized(name, arrays)
        self._check(name, kind, given, arrays)
        options = self._options(name, kind, given, arrays)
        start = self._start(name, inputs, constant, int(given.get("layout", 0)))
        if start:
            options["learned_state"] = True
        if batch_first is not None:
            options["batch_first"] = batch_first
        w, r = arrays["W"], arrays["R"]
        layer = getattr(nn, kind)(w.shape[2], r.shape[2], **options)
        layer.load_state_dict({**_parameters(kind, layer, arrays), **_initial(layer, start)})
        said = given.get("direction", "forward")
        made = Reversed(layer) if said == "reverse" else layer
        for n in ("sequence_lens", "initial_h", "initial_c"):
            if n in inputs and not (n[8:] in start or self._is_zero(constant(inputs[n]))):
                said += f", {n} from {inputs[n]!r}"
        return Made(made, inputs, arrays, said)

    @staticmethod
    def _is_zero(value: Array | None) -> bool:
        return value is not None and not np.any(value)

    def _check(
        self, name: str, kind: str, given: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> None:
        """Refuse by name what the cells do not have, and shapes that do not fit."""
        if not given.get("clip", 0.0) >= 0:
            raise ValueError(f"{name}: expected a clip above 0, got {given['clip']}")
        if given.get("input_forget", 0) not in (0, 1):
            raise ValueError(f"{name}: expected input_forget 0 or 1, got {given['input_forget']}")
        gates, directions = KINDS[kind], 2 if given.get("direction") == "bidirectional" else 1
        if given.get("direction", "forward") not in ("forward", "reverse", "bidirectional"):
            raise ValueError(f"{name}: expected a direction, got {given['direction']!r:.80}")
        if given.get("layout", 0) not in (0, 1):
            raise ValueError(f"{name}: expected layout 0 or 1, got {given['layout']}")
        w, r = arrays["W"], arrays["R"]
        hidden = r.shape[-1] if r.ndim == 3 else 0
        wanted = {
            "W": (directions, gates * hidden, w.shape[-1] if w.ndim == 3 else 0),
            "R": (directions, gates * hidden, hidden),
            "B": (directions, 2 * gates * hidden),
            "P": (directions, 3 * hidden),
        }
        for n, a in arrays.items():
            if a.shape != wanted[n] or not a.size or a.dtype.kind != "f":
                raise ValueError(
                    f"{name}: expected {n} of shape {wanted[n]}, got {a.shape} of {a.dtype}"
                )
        if given.get("hidden_size", hidden) != hidden:
            raise ValueError(f"{name}: expected hidden_size {hidden}, got {given['hidden_size']}")

    def _options(
        self, name: str, kind: str, given: Mapping[str, Any], arrays: Mapping[str, Array]
    ) -> dict[str, Any]:
        directions = arrays["W"].shape[0]
        options: dict[str, Any] = {
            "bias": "B" in arrays,
            "bidirectional": directions == 2,
            "batch_first": given.get("layout", 0) == 1,
            "dtype": np.float64 if arrays["W"].dtype == np.float64 else np.float32,
        }
        options |= _functions(name, kind, given, directions)
        if 0 < given.get("clip", 0.0) < _NO_CLIP:
            options["clip"] = _decimal(given["clip"])
        if kind == "LSTM" and given.get("input_forget", 0):
            options["coupled_gates"] = True
        if kind == "LSTM" and "P" in arrays and np.any(arrays["P"]):
            options["peephole"] = True
        if kind == "GRU":
            options["reset_after"] = self._reset_after(name, given)
        return options

    def _reset_after(self, name: str, given: Mapping[str, Any]) -> bool:
        after = bool(given.get("linear_before_reset", 0))
        if after or self.producer != "pytorch" or self.gru_form == "onnx":
            return after
        if self.gru_form == "torch":
            return True
        warnings.warn(
            f"{name}: PyTorch, which wrote the file, has no GRU with linear_before_reset=0: an "
            'exporter of it wrote a wrong form. gru_form="torch" reads what was meant, "onnx" '
            "what the file says, without this warning",
            stacklevel=2,
        )
        return False

    def _start(
        self,
        name: str,
        inputs: Mapping[str, str],
        constant: Callable[[str], Array | None],
        layout: int,
    ) -> dict[str, Array]:
        """Return constant initial states ``[D,H]`` that are not zero."""
        out = {}
        for n in ("initial_h", "initial_c"):
            value = constant(inputs[n]) if n in inputs else None
            if value is None or self._is_zero(value):
                continue
            states = value.swapaxes(0, 1) if layout else value
            if states.ndim != 3 or not (states == states[:, :1]).all():
                raise ValueError(f"{name}: expected one {n} for all rows, got {value.shape}")
            out[n[8:]] = states[:, 0]
        if out:
            like = next(iter(out.values()))
            out = {k: out.get(k, np.zeros_like(like)) for k in "hc"}
        return out


def _decimal(value: float) -> float:
    """Return the shortest decimal number that an attribute, a float32, may have been: 0.2."""
    return float(str(np.float32(value)))


def _functions(
    name: str, kind: str, given: Mapping[str, Any], directions: int
) -> dict[str, Function]:
    """Return the functions of a node by our options; alphas and betas belong to those with any."""
    options = FUNCTIONS[kind]
    said = [str(a) for a in given.get("activations", ())] or [*options.values()] * directions
    if len(said) != len(options) * directions:
        count = len(options) * directions
        raise ValueError(f"{name}: expected {count} activations, got {', '.join(said)}")
    for function in said:
        if function.lower() not in _BY_THEIRS:
            known = ", ".join(theirs for theirs, _ in FUNCTION_NAMES.values())
            raise ValueError(f"{name}: expected activations among {known}, got {function!r:.80}")
    needs = [_BY_THEIRS[function.lower()] for function in said]
    parameters: list[Iterator[float | None]] = []
    for k, what in enumerate(("activation_alpha", "activation_beta")):
        usual = [values[k] for _, values in needs if len(values) > k]
        numbers: list[float | None] = [_decimal(v) for v in given.get(what, ())]
        if len(numbers) not in (0, len(usual)) or (None in usual and not numbers):
            wanted = f"{len(usual)} values of {what}{'' if None in usual else ', or none,'}"
            raise ValueError(f"{name}: expected {wanted} for {', '.join(said)}, got {len(numbers)}")
        if not all(np.isfinite(v or 0.0) for v in numbers):
            raise ValueError(f"{name}: expected finite values of {what}, got {numbers}")
        parameters.append(iter(numbers or usual))
    functions: list[Function] = []
    for own, values in needs:
        taken = [float(next(left) or 0) for left, _ in zip(parameters, values)]
        functions.append((own, *taken) if taken else own)
    if functions[: len(options)] * directions != functions:
        raise ValueError(
            f"{name}: expected the same activations in both directions, got {', '.join(said)}"
        )
    return dict(zip(options, functions))


def _input_names(kind: str) -> tuple[str, ...]:
    if kind == QUANTIZED:
        return (*_INPUTS, *_SCALES)
    return _INPUTS if kind == "LSTM" else _INPUTS[:6]


def _dequantized(name: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Return float weights of whole ones, which lie transposed, with a scale for each column."""
    out = {n: arrays[n] for n in ("B", "P") if n in arrays}
    for n in "WR":
        a = arrays[n]
        if a.ndim != 3 or a.dtype not in (np.int8, np.uint8):
            raise ValueError(f"{name}: expected {n} [D,I,4*H] of int8, got {a.shape} of {a.dtype}")
        scale, zero = arrays[n + "_scale"], arrays[n + "_zero_point"]
        shapes = ((a.shape[0],), (a.shape[0], 1), (a.shape[0], a.shape[2]))
        if scale.shape not in shapes or zero.shape != scale.shape or scale.dtype.kind != "f":
            raise ValueError(f"{name}: expected a scale and a zero for each column of {n}")
        parts = [v.reshape(a.shape[0], 1, -1).astype(np.float32) for v in (scale, zero)]
        out[n] = ((a.astype(np.float32) - parts[1]) * parts[0]).swapaxes(1, 2)
    return out


def _ends(layer: Any) -> tuple[str, ...]:
    return ("_l0", "_l0_reverse") if layer.bidirectional else ("_l0",)


def _parameters(kind: str, layer: Any, arrays: Mapping[str, Array]) -> dict[str, Array]:
    out = {}
    for d, end in enumerate(_ends(layer)):
        out["weight_ih" + end] = reordered(kind, arrays["W"][d])
        out["weight_hh" + end] = reordered(kind, arrays["R"][d])
        if "B" in arrays:
            for n, b in zip(("bias_ih", "bias_hh"), np.split(arrays["B"][d], 2)):
                out[n + end] = reordered(kind, b)
        if getattr(layer, "peephole", False):
            i, o, f = np.split(arrays["P"][d], 3)
            out["weight_peephole" + end] = np.stack([i, f, o])
    return out


def _initial(layer: Any, start: Mapping[str, Array]) -> dict[str, Array]:
    kinds = [k for k in start if k == "h" or isinstance(layer, nn.LSTM)]
    return {f"initial_{k}{end}": start[k][d] for k in kinds for d, end in enumerate(_ends(layer))}


def verify_node(onnx: Any, name: str, node: Any, made: Made) -> None:
    """Run a random input through a node by ONNX Runtime and through our layer."""
    runtime = require("onnxruntime", "bench", "verify=True")
    layer: Any = made.layer.layer if isinstance(made.layer, Reversed) else made.layer
    if layer.dtype != np.float32:
        raise ValueError(f"verify: expected float32 in {name}, which ONNX Runtime runs alone")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3, layer.input_size)).astype(np.float32)
    single = onnx.NodeProto()
    single.CopyFrom(node)
    if node.op_type == QUANTIZED:  # by its weights; the activations are not rounded here
        single.op_type, single.domain = "LSTM", ""
    kept = [a for a in node.attribute if a.name not in ("layout", "linear_before_reset")]
    del single.attribute[:], single.input[:], single.output[:]
    single.attribute.extend(kept)
    if isinstance(layer, nn.GRU):
        form = onnx.helper.make_attribute("linear_before_reset", int(layer.reset_after))
        single.attribute.append(form)
    arrays, inputs = dict(made.arrays), ["X", "W", "R", "B", "", "", "", "P"]
    single.input.extend(n if n == "X" or n in arrays else "" for n in inputs[: _count(node)])
    single.output.append("Y")
    state = None
    if layer.learned_state:  # zeros on both sides: a state that is given takes the place of one
        zeros = np.zeros((layer._directions, 3, layer.hidden_size), np.float32)
        state = (zeros, zeros) if isinstance(layer, nn.LSTM) else zeros
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [single],
        "one",
        [value("X", 1, ["T", "B", layer.input_size])],
        [value("Y", 1, None)],
        [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)])
    model.ir_version = 8
    session = runtime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    want = session.run(None, {"X": x})[0].transpose(0, 2, 1, 3).reshape(6, 3, -1)
    got = made.layer(x.swapaxes(0, 1).copy() if layer.batch_first else x, state)[0]
    got = got.swapaxes(0, 1) if layer.batch_first else got
    compare(f"ONNX Runtime for {name}", got, want, 1e-5)


def _count(node: Any) -> int:
    return 8 if node.op_type in ("LSTM", QUANTIZED) else 4
