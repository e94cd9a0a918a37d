"""All operators that a `Graph` has beside its layers, and the attributes that they read."""

from __future__ import annotations

from ._graph_ops import MODES as PAD_MODES
from ._graph_ops import PLAIN, Operator
from ._graph_windows import (
    COORDINATES,
    MODES,
    NEAREST,
    average_pool,
    conv,
    max_pool,
    resize,
    upsample,
)

OPERATORS: dict[str, Operator] = {
    **PLAIN,
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "Resize": resize,
    "Upsample": upsample,
}

# The attributes that these functions read; a node with another one is refused.
_WINDOWS = ("kernel_shape", "strides", "dilations", "pads", "auto_pad")
_OF_REDUCTIONS = {"axes", "keepdims", "noop_with_empty_axes"}
ATTRIBUTES: dict[str, set[str]] = {
    "Clip": {"min", "max"},
    "LeakyRelu": {"alpha"},
    "Elu": {"alpha"},
    "Selu": {"alpha", "gamma"},
    "Celu": {"alpha"},
    "ThresholdedRelu": {"alpha"},
    "Mod": {"fmod"},
    "OneHot": {"axis"},
    "Einsum": {"equation"},
    "InstanceNormalization": {"epsilon"},
    "HardSigmoid": {"alpha", "beta"},
    "Gelu": {"approximate"},
    "Cast": {"dtype", "to", "saturate", "round_mode"},
    "Concat": {"axis"},
    "Split": {"axis", "split", "num_outputs"},
    "Slice": {"starts", "ends", "axes"},
    "Gather": {"axis"},
    "GatherElements": {"axis"},
    "Reshape": {"allowzero"},
    "Flatten": {"axis"},
    "Squeeze": {"axes"},
    "Unsqueeze": {"axes"},
    "Transpose": {"perm"},
    "Shape": {"start", "end"},
    "ConstantOfShape": {"value", "dtype"},
    "Pad": {"pads", "mode", "value"},
    "ReverseSequence": {"time_axis", "batch_axis"},
    "ArgMax": {"axis", "keepdims", "select_last_index"},
    "ArgMin": {"axis", "keepdims", "select_last_index"},
    "CumSum": {"exclusive", "reverse"},
    "Softmax": {"axis", "flat"},
    "LogSoftmax": {"axis", "flat"},
    "Gemm": {"transA", "transB", "alpha", "beta"},
    "Conv": {"group", *_WINDOWS},
    "MaxPool": {"ceil_mode", "storage_order", *_WINDOWS},
    "AveragePool": {"ceil_mode", "count_include_pad", *_WINDOWS},
    "Resize": {
        *("mode", "coordinate_transformation_mode", "nearest_mode", "axes", "antialias"),
        *("keep_aspect_ratio_policy", "exclude_outside", "cubic_coeff_a", "extrapolation_value"),
    },
    "Upsample": {"mode", "scales"},
    "LayerNormalization": {"axis", "epsilon", "stash_type"},
    **{n: _OF_REDUCTIONS for n in OPERATORS if n.startswith("Reduce")},
}

# The values of an attribute that the functions have, where they have not all.
VALUES: dict[str, dict[str, tuple[object, ...]]] = {
    "Pad": {"mode": ("constant", *PAD_MODES)},
    "CumSum": {"exclusive": (0,), "reverse": (0,)},
    "Upsample": {"mode": MODES},
    "Resize": {
        "mode": MODES,
        "coordinate_transformation_mode": COORDINATES,
        "nearest_mode": tuple(NEAREST),
        "antialias": (0,),
        "keep_aspect_ratio_policy": ("stretch",),
    },
}
