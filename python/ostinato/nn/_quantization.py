"""Add the scales of the inputs of int8 layers, which are set or chosen from data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .. import _check, _native
from .._annotations import readable
from .._check import Array, Lengths
from ._layer import Layer
from ._scales import LARGEST_SCALE, SMALLEST_SCALE, balanced_scales, ranges_of, refuse_float64

if TYPE_CHECKING:
    from .. import nn


class ScaledInputs(Layer):
    """Add the scales of the inputs of an int8 layer, and measurements of its error."""

    input_size: int
    batch_first: bool
    precision: Any  # the property is that of Recurrent
    _scalars: tuple[float, ...]  # likewise
    _input_scale: Array | None = None
    _scales_set: int = 0  # how often, which tells packed weights of old scales

    @property
    def input_scale(self) -> Array | None:
        """Scales ``[I]`` of the input features for ``precision="int8"``, or None; read-only.

        int8 has one scale for all features of a step, so a feature of small range is lost beside
        one that is 100 times larger. With scales s the layer computes ``(W_ih * s) (x / s)``, which
        is the same but for rounding. Other precisions ignore the scales. They may be set to
        positive numbers, or chosen by `calibrate`; powers of two divide exactly.

        The scales are pickled and copied with the layer. They are no parameters: `state_dict` and
        `save` have PyTorch's names alone, and after `load` the scales must be set or calibrated
        again.

        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(2, 5, precision="int8", rng=0)
        >>> layer.input_scale = [1, 128]
        >>> layer.input_scale.tolist()
        [1.0, 128.0]
        """
        return None if self._input_scale is None else _check.read_only(self._input_scale.view())

    @input_scale.setter
    def input_scale(self, value: npt.ArrayLike | None) -> None:
        scale = None
        if value is not None:
            refuse_float64(self)
            given = _check.plain("input_scale", value, "numbers or None")
            if given.dtype.kind not in "fiu":
                raise TypeError(
                    f"input_scale: expected numbers or None, got {_check.quoted(value)}"
                )
            if given.shape != (self.input_size,):
                raise ValueError(
                    f"input_scale: expected shape (I,) = ({self.input_size},), got {given.shape}"
                )
            exact = given.astype(np.float64)  # float16 does not hold the ends
            bad = np.flatnonzero(~((exact >= SMALLEST_SCALE) & (exact <= LARGEST_SCALE)))
            if bad.size:
                raise ValueError(
                    f"input_scale: expected positive numbers from {SMALLEST_SCALE:g} to "
                    f"{LARGEST_SCALE:g}, "
                    f"got {given[bad[0]]} for feature {bad[0]}"
                )
            scale = np.array(given, np.float32)
        self._input_scale = scale
        self._scales_set += 1
        self._block.changes += 1
        self._cache = None

    def calibrate(self, x: Any, *, lengths: Lengths = None, mask: Array | None = None) -> Any:
        """Choose `input_scale` from data, for ``precision="int8"``; return the layer.

        A feature's scale is ``sqrt(max |x| / max |W|)``, with its largest input and the largest of
        its weights ``weight_ih_l0``, as a power of two: the ranges of the inputs and of the weights
        then differ equally little. Calibrate again when the weights have changed much.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> layer = ost.nn.GRU(2, 5, precision="int8", rng=0)
        >>> x = np.array([[[1.0, 1000.0]], [[-2.0, 500.0]]], np.float32)
        >>> scale = layer.calibrate(x).input_scale
        >>> bool(scale[1] > 10 * scale[0])
        True

        Args:
            x: inputs as in a call.
            lengths: as in a call; steps past the end of a row do not count.
            mask: as in a call; masked steps do not count.

        Returns:
            The layer itself.

        Raises:
            TypeError: a layer of float64, which has no int8.
            ValueError: a layer that is not on the CPU; no step at all, or values that are not
                finite. The layer stays as it was.
        """
        self.input_scale = balanced_scales(self, ranges_of(self, x, lengths, mask))
        return self

    def quantization_report(self, x: Any, state: Any = None, **times: Any) -> nn.QuantizationReport:
        """Measure what int8 and bfloat16 cost in accuracy on this data; the layer stays as it is.

        >>> import numpy as np
        >>> import ostinato as ost
        >>> layer = ost.nn.LSTM(3, 16, rng=0)
        >>> x = np.random.default_rng(0).normal(size=(20, 4, 3)).astype(np.float32)
        >>> report = layer.quantization_report(x)
        >>> report.errors["int8"] < 0.03
        True
        >>> print(report)  # doctest: +ELLIPSIS
        LSTM(3, 16) on this data, against float32
          precision        error of y   worst feature of y
          bfloat16 ...

        Args:
            x: inputs as in a call.
            state: state as in a call.
            **times: options of a call, such as ``lengths`` and ``mask``.

        Returns:
            The errors of the outputs, the ranges of the inputs, and advice.

        Raises:
            TypeError: a layer of float64, which has no int8.
            ValueError: a layer that is not on the CPU, or whose functions, clip or coupled gates
                are its own, which has no int8; no step, or inputs that are not finite.
        """
        from ._quantization_report import layer_report  # here: most programs never need it

        return layer_report(self, [(x, state, times)])

    def _scale_in_use(self) -> Array | None:
        return self._input_scale if self.precision == "int8" else None

    def _scaled(self, x: Array) -> Array:
        """Return inputs divided by their scales, if there are such and x is of the right dtype."""
        scale = self._scale_in_use()
        if scale is None or x.dtype != scale.dtype:  # another dtype is refused by name further on
            return x
        # A masked array would keep what is masked as it was, and the kernels read that, too.
        out: Array = np.asarray(x) * (np.float32(1) / scale)
        return out

    def _scaled_weights(
        self, parts: list[list[Array | None]], directions: int
    ) -> list[list[Array | None]]:
        """Return the parts of a stack with the scales in the weights that read the inputs."""
        scale = self._scale_in_use()
        if scale is None:
            return parts
        return [
            [p[0] * scale, *p[1:]] if k < directions and p[0] is not None else p
            for k, p in enumerate(parts)
        ]

    def _join_scales(self, native: Any) -> None:
        """Divide by the scales in a stream: a diagonal matrix gives the same bits."""
        scale = self._scale_in_use()
        if scale is not None:
            make = _native.backend_for(self._block.values).PackedLinear
            native.add_linear(make(np.diag(np.float32(1) / scale), None, False))


readable(globals())
