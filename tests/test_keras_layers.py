"""Layers for Keras 3, held against those of keras.layers: outputs, gradients, training, files.

What Keras computes with is chosen once for each process, so that this file runs itself again for
the other backends: in a process that has KERAS_BACKEND set, it tests that backend.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

INNER = "OSTINATO_TEST_KERAS" in os.environ  # whether another process runs this file for a backend
NAMES = ("LSTM", "GRU", "SimpleRNN")
BACKENDS = ("torch", "jax", "tensorflow", "numpy")


def missing(backend: str) -> bool:
    return importlib.util.find_spec(backend) is None


if not INNER:
    if importlib.util.find_spec("keras") is None:
        pytest.skip("Keras 3 is not installed: pip install keras", allow_module_level=True)

    @pytest.mark.parametrize("backend", BACKENDS)
    def test_backend(backend: str, tmp_path: Path) -> None:
        if missing(backend):
            pytest.skip(f"{backend} is not installed")
        own = {
            "OSTINATO_TEST_KERAS": "1",
            "KERAS_BACKEND": backend,
            "KERAS_TORCH_DEVICE": "cpu",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "KERAS_HOME": str(tmp_path),
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        # A warning of TensorFlow's or JAX's own is not ours to mend.
        done = subprocess.run(
            [*command, "-W", "default"], env=os.environ | own, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

else:
    import keras
    from keras import ops

    from ostinato.interop import keras as ok

    BACKEND = keras.config.backend()
    # Whether implementation=1 drops other inputs for each gate, as it does since Keras 3.8.
    MASKS_OF_GATES = tuple(map(int, keras.__version__.split(".")[:2])) >= (3, 8)
    needs_gradients = pytest.mark.skipif(BACKEND == "numpy", reason="NumPy has no gradients")
    only = {b: pytest.mark.skipif(b != BACKEND, reason=f"of Keras on {b}") for b in BACKENDS}

    def numbers(value: Any) -> list[np.ndarray]:
        return [np.asarray(ops.convert_to_numpy(v)) for v in keras.tree.flatten(value)]

    def assert_close(ours: Any, theirs: Any, limit: float = 1e-5) -> None:
        ours, theirs = numbers(ours), numbers(theirs)
        assert [a.shape for a in ours] == [a.shape for a in theirs]
        for a, b in zip(ours, theirs):
            np.testing.assert_allclose(a, b, rtol=limit, atol=limit)

    def pair(name: str, bias: float = 0.0, **options: Any) -> tuple[Any, Any]:
        """Return our layer and that of Keras, with the same weights and a mean of the biases."""
        theirs = getattr(keras.layers, name)(5, **options)
        ours = getattr(ok, name)(5, **options)
        for layer in (ours, theirs):
            layer.build((4, 7, 3))
        rng = np.random.default_rng(0)
        means = [0.0, 0.0, bias][: len(theirs.weights)]
        theirs.set_weights([rng.normal(m, 0.5, w.shape) for m, w in zip(means, theirs.weights)])
        ours.set_weights(theirs.get_weights())
        return ours, theirs

    def data(batch: int = 4, steps: int = 7, size: int = 3, kind: str = "float32") -> np.ndarray:
        return np.random.default_rng(1).normal(size=(batch, steps, size)).astype(kind)

    def masks(batch: int = 4, steps: int = 7) -> dict[str, np.ndarray]:
        """Right padding, and gaps; one row of each has no step at all."""
        lengths = np.array([steps, 3, 0, 5])[:batch]
        gaps = np.random.default_rng(2).random((batch, steps)) > 0.5
        gaps[1] = False
        return {"padded": np.arange(steps) < lengths[:, None], "gaps": gaps}

    def gradients(layer: Any, x: np.ndarray, states: Any, mask: Any, grads: Any) -> Any:
        """Return the gradients of x, the states and the weights of a sum of all outputs."""
        inputs = [x, *states]

        def loss(given: Any) -> Any:
            call = {"initial_state": list(given[1:])} if states else {}
            out = layer(given[0], mask=mask, **call)
            out = list(out) if isinstance(out, (list, tuple)) else [out]
            return sum(ops.sum(o * ops.convert_to_tensor(g)) for o, g in zip(out, grads))

        weights = layer.trainable_variables
        if BACKEND == "torch":
            import torch

            given = [torch.tensor(a, requires_grad=True) for a in inputs]
            for w in weights:
                w.value.grad = None
            loss(given).backward()
            return [t.grad for t in given] + [w.value.grad for w in weights]
        if BACKEND == "tensorflow":
            import tensorflow as tf

            tensors = [tf.constant(a) for a in inputs]
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                value = loss(tensors)
            return tape.gradient(value, [*tensors, *(w.value for w in weights)])
        import jax

        def of(given: Any, values: Any) -> Any:
            with keras.StatelessScope(list(zip(weights, values))):
                return loss(given)

        both = jax.grad(of, argnums=(0, 1))(inputs, [w.value for w in weights])
        return [*both[0], *both[1]]

    def compare(name: str, mask: Any, limit: float = 1e-5, **options: Any) -> None:
        """Hold outputs, last states and all gradients against Keras."""
        kind = options.get("dtype", "float32")
        ours, theirs = pair(name, return_sequences=True, return_state=True, **options)
        rng, x = np.random.default_rng(3), data(kind=kind)
        states = [rng.normal(size=(4, 5)).astype(kind) for _ in range(2 if name == "LSTM" else 1)]
        assert_close(ours(x, mask=mask), theirs(x, mask=mask), limit)
        results = [layer(x, initial_state=states, mask=mask) for layer in (ours, theirs)]
        assert_close(*results, limit)
        if BACKEND != "numpy":
            grads = [rng.normal(size=a.shape).astype(kind) for a in numbers(results[1])]
            found = [gradients(layer, x, states, mask, grads) for layer in (ours, theirs)]
            assert_close(*found, limit)

    # -- outputs and gradients ---------------------------------------------------------------------

    @pytest.mark.parametrize("masked", ["", "padded", "gaps"])
    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_outputs_and_gradients(name: str, backwards: bool, masked: str) -> None:
        compare(name, masks().get(masked), go_backwards=backwards)

    @pytest.mark.parametrize("zero", [False, True])
    @pytest.mark.parametrize("sequences", [False, True])
    @pytest.mark.parametrize("backwards", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_the_output_of_masked_steps(
        name: str, backwards: bool, sequences: bool, zero: bool
    ) -> None:
        options = {"go_backwards": backwards, "return_sequences": sequences}
        ours, theirs = pair(name, zero_output_for_mask=zero, **options)
        states = [np.ones((4, 5), "float32")] * (2 if name == "LSTM" else 1)
        for mask in masks().values():
            assert_close(
                ours(data(), mask=mask, initial_state=states),
                theirs(data(), mask=mask, initial_state=states),
            )

    @pytest.mark.parametrize(
        ("name", "options"),
        [
            ("LSTM", {"unit_forget_bias": False}),
            ("LSTM", {"use_bias": False}),
            ("LSTM", {"unroll": True}),
            ("LSTM", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}),
            ("GRU", {"reset_after": False}),
            ("GRU", {"reset_after": False, "use_bias": False}),
            ("GRU", {"use_bias": False}),
            ("GRU", {"reset_after": False, "recurrent_activation": "hard_sigmoid"}),
            ("GRU", {"activation": "softsign"}),
            ("SimpleRNN", {"use_bias": False}),
            ("SimpleRNN", {"activation": "relu"}),
            ("SimpleRNN", {"activation": None}),
        ],
        ids=lambda v: v if isinstance(v, str) else "-".join(f"{k}={w}" for k, w in v.items()),
    )
    def test_options(name: str, options: dict[str, Any]) -> None:
        compare(name, masks()["gaps"], **options)

    @pytest.mark.parametrize(
        "activation",
        ["elu", "exponential", "hard_sigmoid", "leaky_relu", "linear", "relu", "sigmoid"]
        + ["softplus", "softsign", "tanh"],
    )
    def test_activations(activation: str) -> None:
        compare("SimpleRNN", None, activation=activation, bias=-3.0)

    @pytest.mark.parametrize("name", NAMES)
    def test_float64(name: str) -> None:
        """All digits of float64 are there; Keras' own loops are as exact on TensorFlow alone."""
        context: Any = contextlib.nullcontext()
        if BACKEND == "jax":
            import jax

            context = jax.enable_x64(True)
        with context:
            compare(
                name, masks()["gaps"], 1e-10 if BACKEND == "tensorflow" else 1e-6, dtype="float64"
            )
            layer, _ = pair("SimpleRNN", dtype="float64")
            kernel, recurrent, bias = numbers([w.value for w in layer.weights])
            assert kernel.dtype == np.float64 or BACKEND == "numpy"
            x, h = data(kind="float64"), np.zeros((4, 5))
            for t in range(7):
                h = np.tanh(x[:, t] @ kernel + bias + h @ recurrent)
            np.testing.assert_allclose(numbers(layer(x))[0], h, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
    @pytest.mark.parametrize("name", NAMES)
    def test_mixed_precision(name: str, policy: str) -> None:
        """Outputs have the dtype of the policy, and are near those of float32."""
        exact, _ = pair(name, return_sequences=True)
        ours = getattr(ok, name)(5, return_sequences=True, dtype=policy)
        ours.build((4, 7, 3))
        ours.set_weights(exact.get_weights())
        y = ours(data())
        assert keras.backend.standardize_dtype(y.dtype) == policy.removeprefix("mixed_")
        assert all(w.dtype == "float32" for w in ours.weights)
        assert_close(ops.cast(y, "float32"), exact(data()), 0.03)

    # -- the numbers of Keras' own tests -----------------------------------------------------------

    def constants(name: str, units: int, **options: Any) -> Any:
        values = zip(("kernel", "recurrent", "bias"), (0.01, 0.02, 0.03))
        made = {f"{n}_initializer": keras.initializers.Constant(v) for n, v in values}
        return getattr(ok, name)(units, **made, **options)

    SIX = np.arange(72).reshape(3, 6, 4).astype("float32")
    THREE = np.arange(24).reshape(2, 3, 4).astype("float32")
    FOUR = np.arange(24).reshape(2, 4, 3).astype("float32")
    PADDED = np.array([[True, True, True, False], [True, True, False, False]])
    GAPS = np.array([[True, True, False, True], [True, False, False, True]])

    @pytest.mark.parametrize(
        ("name", "options", "expected"),
        [
            ("LSTM", {}, [0.6288687, 0.86899155, 0.9460773]),
            ("LSTM", {"go_backwards": True}, [0.35622165, 0.74789524, 0.8872726]),
            ("LSTM", {"unroll": True}, [0.6288687, 0.86899155, 0.9460773]),
            ("LSTM", {"unit_forget_bias": False}, [0.57019705, 0.8661914, 0.9459622]),
            ("LSTM", {"use_bias": False}, [0.54986924, 0.86226785, 0.9443936]),
            ("GRU", {}, [0.5217289, 0.6371659, 0.39384964]),
            ("GRU", {"go_backwards": True}, [0.24406259, 0.611516, 0.3928808]),
            ("GRU", {"reset_after": False}, [0.51447755, 0.6426879, 0.40208298]),
            ("GRU", {"use_bias": False}, [0.49988455, 0.64701194, 0.4103359]),
        ],
        ids=lambda v: "-".join(map(str, v)) if isinstance(v, (dict, list)) else v,
    )
    def test_known_numbers(name: str, options: dict[str, Any], expected: list[float]) -> None:
        got = numbers(constants(name, 3, **options)(SIX))[0]
        np.testing.assert_allclose(got, np.repeat(np.array(expected)[:, None], 3, 1), atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("LSTM", [0.3124785, 0.6863672]),
            ("GRU", [0.29542392, 0.5885018]),
            ("SimpleRNN", [0.40559256, 0.7361247]),
        ],
        ids=NAMES,
    )
    def test_known_numbers_of_a_stateful_layer(name: str, expected: list[float]) -> None:
        layer = constants(name, 4, stateful=True)
        for _ in range(2):
            layer(THREE)
            got = numbers(layer(THREE))[0]
            np.testing.assert_allclose(got, np.repeat(np.array(expected)[:, None], 4, 1), atol=1e-5)
            layer.reset_state()

    @pytest.mark.parametrize(
        ("name", "backwards", "expected"),
        [
            ("LSTM", False, [[0.20574439, 0.3558822], [0.64930826, 0.66276]]),
            ("LSTM", True, [[0.13281618, 0.2790356], [0.5839337, 0.5992567]]),
            ("GRU", False, [[0.23774096, 0.33508456], [0.83659905, 1.0227708]]),
            ("GRU", True, [[0.13486053, 0.23261218], [0.78257304, 0.9691353]]),
        ],
        ids=["LSTM", "LSTM-backwards", "GRU", "GRU-backwards"],
    )
    def test_known_numbers_with_an_initial_state(
        name: str, backwards: bool, expected: list[list[float]]
    ) -> None:
        state = np.arange(4).reshape(2, 2).astype("float32")
        states = [state, state] if name == "LSTM" else [state]
        layer = constants(name, 2, go_backwards=backwards, return_state=True)
        y, h, *_ = layer(FOUR, initial_state=states)
        np.testing.assert_allclose(numbers(y)[0], expected, atol=1e-5)
        np.testing.assert_array_equal(numbers(y)[0], numbers(h)[0])

    @pytest.mark.parametrize(
        ("name", "units", "options", "mask", "expected"),
        [
            ("LSTM", 2, {}, PADDED, [0.11755939, 0.28556206]),
            ("GRU", 2, {}, GAPS, [0.19393763, 0.30818558]),
            ("GRU", 2, {"go_backwards": True}, GAPS, [0.11669192, 0.28380975]),
            ("SimpleRNN", 4, {}, GAPS, [0.32951632, 0.61799484]),
            ("SimpleRNN", 4, {"go_backwards": True}, GAPS, [0.07376196, 0.43645123]),
        ],
        ids=["LSTM", "GRU", "GRU-backwards", "SimpleRNN", "SimpleRNN-backwards"],
    )
    def test_known_numbers_with_a_mask(
        name: str, units: int, options: Any, mask: np.ndarray, expected: list[float]
    ) -> None:
        got = numbers(constants(name, units, **options)(FOUR, mask=mask))[0]
        np.testing.assert_allclose(got, np.repeat(np.array(expected)[:, None], units, 1), atol=1e-5)

    def held(got: Any, expected: Any) -> None:
        """Compare with a number for each row (or row and step), the same in all units."""
        got = numbers(got)[0]
        want = np.array(expected)[..., None]
        np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("options", "stated", "plain"),
        [
            ({}, [0.33621645, 0.6262637], [0.405432, 0.73605347]),
            ({"go_backwards": True}, [0.07344437, 0.43043602], [0.11144729, 0.5528889]),
        ],
        ids=["forward", "backward"],
    )
    def test_known_numbers_of_a_simple_layer(options: Any, stated: Any, plain: Any) -> None:
        layer = constants("SimpleRNN", 4, **options)
        held(layer(FOUR, initial_state=np.arange(8).reshape(2, 4).astype("float32")), stated)
        held(constants("SimpleRNN", 4, **options)(THREE), plain)

    @pytest.mark.parametrize(
        ("name", "zero", "expected"),
        [
            ("SimpleRNN", False, [0.0599281, 0.15122814, 0.15122814, 0.32394567]),
            ("SimpleRNN", True, [0.0599281, 0.15122814, 0.0, 0.32394567]),
            ("GRU", False, [0.03606692, 0.09497581, 0.09497581, 0.19393763]),
        ],
        ids=["SimpleRNN", "SimpleRNN-zero", "GRU"],
    )
    def test_known_numbers_of_masked_steps(name: str, zero: bool, expected: list[float]) -> None:
        options = {"return_sequences": True, "zero_output_for_mask": zero}
        held(constants(name, 2, **options)(FOUR, mask=GAPS)[0], expected)

    def both_ways(name: str, merge: str | None = "concat", **options: Any) -> Any:
        return keras.layers.Bidirectional(constants(name, 2, **options), merge_mode=merge)

    def test_known_numbers_of_two_directions() -> None:
        forward, backward = [0.39687276, 0.7237238], [0.10004295, 0.53391594]
        y = numbers(both_ways("SimpleRNN")(THREE))[0]
        held(y[:, :2], forward)
        held(y[:, 2:], backward)
        held(both_ways("SimpleRNN", "ave")(THREE), [0.24845785, 0.6288199])
        summed = both_ways("GRU", "sum", return_sequences=True)(THREE)
        steps = [[0.20937867, 0.34462988, 0.40290534], [0.59829646, 0.6734641, 0.6479671]]
        held(summed, steps)
        masked = numbers(both_ways("GRU")(FOUR, mask=GAPS))[0]
        held(masked[:, :2], [0.19393763, 0.30818558])
        held(masked[:, 2:], [0.11669192, 0.28380975])

    def test_known_numbers_of_the_states_of_two_directions() -> None:
        layer = both_ways("LSTM", stateful=True)
        for _ in range(2):
            layer(FOUR)
            y = numbers(layer(FOUR))[0]
            held(y[:, :2], [0.26234663, 0.6137073])
            held(y[:, 2:], [0.16959146, 0.5381646])
            layer.reset_state()
        states = [np.arange(4).reshape(2, 2).astype("float32") * k for k in (1, 2, 3, 4)]
        y = numbers(both_ways("LSTM")(FOUR, initial_state=states))[0]
        want = [
            [0.20794602, 0.4577124, 0.14046375, 0.48191673],
            [0.6682636, 0.6711909, 0.60943645, 0.60950446],
        ]
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
        _, *states = both_ways("LSTM", return_state=True)(FOUR)
        for got, expected in zip(
            states,
            (
                [0.1990008, 0.52335435],
                [0.35567185, 1.0492687],
                [0.12659755, 0.44717982],
                [0.2501858, 0.941473],
            ),
        ):
            held(got, expected)

    # -- training ----------------------------------------------------------------------------------

    def model_of(kind: Any, layer: str, **options: Any) -> Any:
        """Return a model of masks, a wrapper and two recurrent layers, of Keras or of ours."""
        make = getattr(kind, layer)
        return keras.Sequential(
            [
                keras.Input((9,), dtype="int32"),
                keras.layers.Embedding(7, 4, mask_zero=True, name="embedding"),
                keras.layers.Bidirectional(make(5, return_sequences=True, **options)),
                make(6, dropout=0.3, seed=3, **options),
                keras.layers.Dense(2, name="dense"),
            ]
        )

    def words() -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        x = rng.integers(1, 7, (16, 9))
        x[np.arange(9) >= rng.integers(1, 10, 16)[:, None]] = 0
        return x, rng.normal(size=(16, 2)).astype("float32")

    def fitted(model: Any, **options: Any) -> list[float]:
        model.compile(keras.optimizers.Adam(0.01), "mse", **options)
        x, y = words()
        keras.utils.set_random_seed(1)
        done = model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0)
        return list(done.history["loss"])

    @needs_gradients
    @pytest.mark.parametrize("name", NAMES)
    def test_fit(name: str) -> None:
        """Losses, dropout included, and predictions follow those of Keras."""
        theirs, ours = model_of(keras.layers, name), model_of(ok, name)
        inner = ours.layers[1]
        assert type(inner.forward_layer) is type(inner.backward_layer) is getattr(ok, name)
        ours.set_weights(theirs.get_weights())
        losses = [fitted(model) for model in (ours, theirs)]
        np.testing.assert_allclose(*losses, rtol=1e-4)
        assert losses[0][-1] < losses[0][0]
        x, _ = words()
        assert_close(ours.predict(x, verbose=0), theirs.predict(x, verbose=0), 1e-3)
        if BACKEND == "tensorflow":
            from ostinato.interop._keras_on_tensorflow import kept

            assert len(kept) == 0

    @only["torch"]
    def test_fit_compiled_by_torch() -> None:
        theirs, ours = model_of(keras.layers, "GRU"), model_of(ok, "GRU")
        ours.set_weights(theirs.get_weights())
        run = fitted(ours, jit_compile=True), fitted(theirs)
        np.testing.assert_allclose(*run, rtol=1e-4)

    @only["torch"]
    @pytest.mark.parametrize("name", NAMES)
    def test_operators(name: str) -> None:
        """Fake kernels, schemas and gradients are what PyTorch's own checks expect."""
        import torch

        from ostinato.interop import _keras_on_torch as bridge

        rng = np.random.default_rng(0)

        def tensor(*shape: int) -> Any:
            return torch.tensor(rng.normal(size=shape), requires_grad=True)

        cell = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn_tanh"}[name]
        rows = 4 * {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}[name]
        c0 = tensor(2, 4) if name == "LSTM" else None
        mask = torch.tensor([[True, False, True], [True, True, False]])
        given = (tensor(2, 3, 5), tensor(2, 4), c0, tensor(rows, 5), tensor(rows, 4))
        bias = tensor(rows)
        args = (*given, bias, None, mask, cell, [], True, "exact", False)
        torch.library.opcheck(
            bridge._forward_op,
            (*args, False),
            test_utils=("test_schema", "test_faketensor"),
        )

        def run(x: Any, h0: Any, w_ih: Any, w_hh: Any) -> Any:
            out = bridge._forward_op(x, h0, c0, w_ih, w_hh, *args[5:], True)
            return out[0], out[1]

        assert torch.autograd.gradcheck(run, (given[0], given[1], given[3], given[4]))

    @only["torch"]
    def test_a_compiled_graph() -> None:
        import torch

        layer, _ = pair("LSTM", return_sequences=True)
        x = torch.tensor(data())
        run = torch.compile(lambda a: layer(a).sum(), backend="aot_eager")
        value = run(x)
        value.backward()
        found = [w.value.grad.clone() for w in layer.trainable_variables]
        for w in layer.trainable_variables:
            w.value.grad = None
        layer(x).sum().backward()
        assert_close(found, [w.value.grad for w in layer.trainable_variables])

    @only["torch"]
    def test_second_derivatives_are_refused() -> None:
        import torch

        layer, _ = pair("GRU")
        x = torch.tensor(data(), requires_grad=True)
        (dx,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="first derivatives alone"):
            dx.sum().backward()

    @only["jax"]
    def test_transformations_of_jax() -> None:
        """jit, vmap, checkpoint, and a forward pass whose pullback never runs."""
        import jax

        layer, theirs = pair("LSTM")
        x = np.stack([data(), 2 * data()])

        def loss(kind: Any) -> Any:
            return lambda a: ops.sum(kind(a) ** 2)

        for change in (jax.jit, jax.checkpoint):
            found = [jax.grad(change(loss(kind)))(x[0]) for kind in (layer, theirs)]
            assert_close(*found)
        assert_close(*(jax.vmap(jax.grad(loss(kind)))(x) for kind in (layer, theirs)))
        assert_close(jax.vjp(loss(layer), x[0])[0], loss(theirs)(x[0]))

    @only["tensorflow"]
    def test_functions_of_tensorflow() -> None:
        """A gradient outside of training runs the pass again; shapes may be unknown."""
        import tensorflow as tf

        from ostinato.interop._keras_on_tensorflow import kept

        layer, theirs = pair("GRU", return_sequences=True)
        spec = tf.TensorSpec((None, None, 3), tf.float32)

        def slope(kind: Any) -> Any:
            @tf.function(input_signature=[spec])
            def run(x: Any) -> Any:
                with tf.GradientTape() as tape:
                    tape.watch(x)
                    y = kind(x)
                    value = tf.reduce_sum(y**2)
                assert y.shape.as_list() == [None, None, 5]
                return tape.gradient(value, x)

            return run

        assert_close(slope(layer)(data()), slope(theirs)(data()))
        assert len(kept) == 0
        model = keras.Sequential([keras.Input((7, 3)), ok.SimpleRNN(4)])
        with pytest.warns(UserWarning, match="jit_compile"):
            model.compile("sgd", "mse", jit_compile=True)
        assert model.jit_compile is False

    @only["tensorflow"]
    def test_tapes_are_dropped_and_made_again() -> None:
        """Gradients are the same bits whether a tape is found or not; tapes do not pile up."""
        from ostinato.interop import _keras_on_tensorflow as bridge

        rng = np.random.default_rng(0)
        arrays = [rng.normal(size=s).astype("float32") for s in ((2, 3, 5), (2, 4), (4, 5), (4, 4))]
        inputs = bridge.Inputs(arrays[0], arrays[1], None, *arrays[2:], None, None, None)
        options = bridge.Options("rnn_tanh", (), True, "exact", False)
        made = [bridge._forward_kept(options, True, inputs) for _ in range(bridge.MOST_KEPT + 3)]
        assert len(bridge.kept) == bridge.MOST_KEPT
        grads = bridge.Result(np.ones((2, 3, 4), "float32"), None, None)
        runs = [bridge._backward_kept(options, inputs, grads, m[-1]) for m in (made[0], made[-1])]
        for lost, found in zip(*runs):
            np.testing.assert_array_equal(lost, found)
        for m in made:
            bridge.kept.take(m[-1])
        assert len(bridge.kept) == 0

    @needs_gradients
    @pytest.mark.parametrize("name", NAMES)
    def test_stateful_training(name: str) -> None:
        # Keras' own faster loops change the state that their gradient reads, which PyTorch refuses.
        plain = {} if name == "SimpleRNN" else {"use_cudnn": False}
        made = []
        for kind in (ok, keras.layers):
            model = keras.Sequential(
                [keras.Input(batch_shape=(4, 7, 3)), getattr(kind, name)(5, stateful=True, **plain)]
            )
            model.compile("sgd", "mse")
            made.append(model)
        made[0].set_weights(made[1].get_weights())
        for model in made:
            model.fit(data(8), np.ones((8, 5)), batch_size=4, epochs=3, shuffle=False, verbose=0)
        assert_close(made[0].get_weights(), made[1].get_weights())
        assert_close(made[0].layers[0].states, made[1].layers[0].states)

    @pytest.mark.parametrize("version", ["2.15.0", "3.2.1"])
    def test_versions_that_are_too_old(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(keras, "__version__", version)
        with pytest.raises(ImportError, match=f"expected Keras 3.3 or later, got {version}"):
            importlib.reload(ok)

    # -- what is refused ---------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("LSTM", {"activation": "gelu"}, "activation: expected one of elu"),
            ("LSTM", {"recurrent_activation": "silu"}, "recurrent_activation: expected one of"),
            ("SimpleRNN", {"activation": keras.layers.LeakyReLU(0.1)}, "got LeakyReLU"),
            ("GRU", {"dropout": 1.0}, r"dropout: expected a number in \[0, 1\)"),
            ("GRU", {"use_cudnn": True}, "use_cudnn: expected 'auto' or False"),
        ],
        ids=["activation", "gates", "layer", "dropout", "cudnn"],
    )
    def test_what_the_kernels_do_not_have(name: str, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            getattr(ok, name)(4, **options)

    @pytest.mark.parametrize("name", NAMES)
    def test_dropout_within_a_step_is_refused_in_training(name: str) -> None:
        ours, theirs = pair(name, recurrent_dropout=0.5)
        assert_close(ours(data()), theirs(data()))
        with pytest.raises(ValueError, match="recurrent_dropout: expected 0 in training"):
            ours(data(), training=True)
        if name != "SimpleRNN" and MASKS_OF_GATES:
            ours, _ = pair(name, dropout=0.5, implementation=1)
            with pytest.raises(ValueError, match="implementation: expected 2 with dropout"):
                ours(data(), training=True)

    # -- files and models --------------------------------------------------------------------------

    @pytest.mark.parametrize("name", NAMES)
    def test_configurations_are_those_of_keras(name: str) -> None:
        ours, theirs = pair(name, dropout=0.2, go_backwards=True)
        config = theirs.get_config()
        assert {**ours.get_config(), "name": theirs.name} == config
        assert type(type(ours).from_config(config)) is type(ours)
        assert type(theirs).from_config({**config}).get_config() == config

    @pytest.mark.parametrize("name", NAMES)
    def test_files(name: str, tmp_path: Path) -> None:
        """Ours opens as itself, and is made Keras' own; weights fit either."""
        x, _ = words()
        ours, path = model_of(ok, name), tmp_path / "m.keras"
        y = ours.predict(x, verbose=0)
        ours.save(path)
        again = keras.saving.load_model(path)
        assert type(again.layers[2]) is getattr(ok, name)
        assert_close(again.predict(x, verbose=0), y)
        plain = keras.saving.load_model(path)
        assert len(ok.restore(plain)) == 3
        assert type(plain.layers[2]) is getattr(keras.layers, name)
        assert type(plain.layers[1].backward_layer) is getattr(keras.layers, name)
        assert_close(plain.predict(x, verbose=0), y)
        for source, target in ((ours, model_of(keras.layers, name)), (plain, model_of(ok, name))):
            source.save_weights(tmp_path / "m.weights.h5")
            target.load_weights(tmp_path / "m.weights.h5")
            assert_close(target.predict(x, verbose=0), y)

    def test_a_file_opens_without_ostinato(tmp_path: Path) -> None:
        model = keras.Sequential([keras.Input((7, 3)), ok.LSTM(5), keras.layers.Dense(2)])
        model.save(tmp_path / "m.keras")
        np.save(tmp_path / "y.npy", model.predict(data(), verbose=0))
        np.save(tmp_path / "x.npy", data())
        code = (
            "import sys, keras, numpy as np\n"
            "names = {'ostinato>LSTM': keras.layers.LSTM}\n"
            "model = keras.saving.load_model('m.keras', custom_objects=names)\n"
            "y = model.predict(np.load('x.npy'), verbose=0)\n"
            "np.testing.assert_allclose(y, np.load('y.npy'), atol=1e-5)\n"
            "assert 'ostinato' not in sys.modules\n"
        )
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]

    @pytest.mark.parametrize("name", NAMES)
    def test_replace_and_restore(name: str, tmp_path: Path) -> None:
        """Replaced in place, trained or not; restored, it is a file of Keras alone."""
        x, target = words()
        model = model_of(keras.layers, name)
        y = model.predict(x, verbose=0)
        layers = list(model.layers)
        done = ok.replace(model)
        assert len(done.replaced) == 3
        assert not done.kept
        assert list(model.layers) == layers
        assert type(layers[2]) is getattr(ok, name)
        assert_close(model.predict(x, verbose=0), y)
        if BACKEND != "numpy":
            model.compile("sgd", "mse")
            model.fit(x, target, verbose=0)
        assert ok.replace(model) == ({}, {})
        assert len(ok.restore(model)) == 3
        y = model.predict(x, verbose=0)
        model.save(tmp_path / "m.keras")
        again = keras.saving.load_model(tmp_path / "m.keras")
        assert type(again.layers[2]) is getattr(keras.layers, name)
        assert_close(again.predict(x, verbose=0), y)

    @needs_gradients
    def test_replace_in_the_middle_of_training() -> None:
        """The optimizer goes on, and what Keras had compiled is compiled again."""
        x, target = words()
        losses = []
        for swap in (False, True):
            keras.utils.set_random_seed(5)
            model = model_of(keras.layers, "GRU")
            model.compile(keras.optimizers.Adam(0.01), "mse")
            model.fit(x, target, epochs=2, shuffle=False, verbose=0)
            if swap:
                assert len(ok.replace(model).replaced) == 3
            done = model.fit(x, target, epochs=2, shuffle=False, verbose=0)
            losses.append(done.history["loss"])
        np.testing.assert_allclose(*losses, rtol=1e-4)

    def test_replace_says_what_it_keeps() -> None:
        class Own(keras.layers.GRU):
            pass

        options: list[Any] = [
            keras.layers.GRU(3, recurrent_dropout=0.2, return_sequences=True, name="a"),
            keras.layers.LSTM(3, activation="gelu", return_sequences=True, name="b"),
            keras.layers.LSTM(3, dropout=0.1, implementation=1, return_sequences=True, name="c"),
            Own(3, return_sequences=True, name="d"),
            keras.layers.LSTM(3, return_sequences=True, name="e"),
            keras.layers.GRU(3, use_cudnn=True, name="f"),
        ]
        done = ok.replace(keras.Sequential([keras.Input((7, 3)), *options]))
        wide = [] if MASKS_OF_GATES else ["c"]
        assert list(done.replaced) == [*wide, "e"]
        assert list(done.kept) == [n for n in "abcdf" if n not in wide]
        assert str(done).splitlines()[len(wide) :][:2] == [
            "e: LSTM",
            "a: kept, recurrent_dropout=0.2, which the kernels do not have",
        ]
        assert "class of its own" in done.kept["d"]
        assert str(ok.replace(keras.layers.Dense(3))) == "no recurrent layers"
        with pytest.raises(TypeError, match=r"model: expected a keras\.Model or layer, got int"):
            ok.replace(3)

    def test_loops_over_cells_are_kept() -> None:
        cells = [keras.layers.GRUCell(3), keras.layers.GRUCell(3)]
        layers = [
            keras.layers.RNN(keras.layers.LSTMCell(4), return_sequences=True, name="one"),
            keras.layers.Bidirectional(
                keras.layers.RNN(cells[:1], return_sequences=True, name="two"), name="both"
            ),
            keras.layers.LSTM(3, return_sequences=True, name="lstm"),
            keras.layers.RNN(keras.layers.StackedRNNCells(cells), name="three"),
        ]
        done = ok.replace(keras.Sequential([keras.Input((7, 3)), *layers]))
        assert list(done.replaced) == ["lstm"]
        assert set(done.kept) == {"one", "forward_two", "backward_two", "three"}
        assert done.kept["one"].startswith("a loop over LSTMCell; the kernels have LSTM, ")
        assert "StackedRNNCells" in done.kept["three"]

    def test_a_model_of_ones_own_class_is_replaced() -> None:
        class Net(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.rnn = keras.layers.LSTM(4)
                self.steps = keras.layers.TimeDistributed(keras.layers.Dense(3))

            def call(self, x: Any) -> Any:
                return self.rnn(self.steps(x))

        model = Net()
        y = model(data())
        assert list(ok.replace(model).replaced) == [model.rnn.name]
        assert_close(model(data()), y)
