"""PyTorch's files, state dicts and modules: read without it, compared where it is installed."""

from __future__ import annotations

import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ostinato as ost
from conftest import assert_close
from ostinato import nn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        import torch
    except ImportError:
        torch = None  # type: ignore[assignment]

needs_torch = pytest.mark.skipif(
    torch is None, reason="torch is not installed: pip install 'ostinato[bench]'"
)
FORMS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])


# -- files written by hand -------------------------------------------------------------------------


class Storage:
    """Pickled as a persistent id."""

    def __init__(self, kind: str, key: str, data: bytes, count: int) -> None:
        self.kind, self.key, self.data, self.count = kind, key, data, count


class Named:
    """Pickled as a global of torch."""

    def __init__(self, name: str) -> None:
        self.name = name


def text_of(s: str) -> bytes:
    b = s.encode()
    return b"X" + struct.pack("<I", len(b)) + b


def plain(value: Any) -> bytes:
    """Opcodes of a plain value."""
    return pickle.dumps(value, 2)[2:-1]


def storage_of(s: Storage) -> bytes:
    parts = [text_of("storage"), b"ctorch\n" + s.kind.encode() + b"\n", text_of(s.key)]
    return b"(" + b"".join(parts) + text_of("cpu") + plain(s.count) + b"tQ"


def tensor_of(s: Storage, offset: int, size: Any, stride: Any) -> bytes:
    args = storage_of(s) + plain(offset) + plain(tuple(size)) + plain(tuple(stride))
    ordered = b"ccollections\nOrderedDict\n)R"
    head = b"ctorch._utils\n_rebuild_tensor_v2\n"
    return head + b"(" + args + b"\x89" + ordered + b"tR"


def dictionary(items: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text_of(n) + v for n, v in items.items()) + b"u"


def write_zip(path: Path, body: bytes, storages: list[Storage]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        data = {f"a/data/{s.key}": s.data for s in storages}
        head = {"a/data.pkl": b"\x80\x02" + body + b".", "a/byteorder": b"little"}
        for name, words in (head | data).items():
            z.writestr(zipfile.ZipInfo(name), words)  # which has the same date in every run
    return path


def write_stream(path: Path, body: bytes, storages: list[Storage]) -> Path:
    words = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    words += pickle.dumps({"little_endian": True}, 2) + b"\x80\x02" + body + b"."
    words += pickle.dumps([s.key for s in storages], 2)
    for s in storages:
        words += struct.pack("<q", s.count) + s.data
    path.write_bytes(words)
    return path


def write(path: Path, body: bytes, storages: list[Storage], zipped: bool) -> Path:
    return (write_zip if zipped else write_stream)(path, body, storages)


NUMBERS = np.arange(24, dtype=np.float32)
WHOLE = Storage("FloatStorage", "0", NUMBERS.tobytes(), 24)


@FORMS
def test_views_with_offset_and_stride(tmp_path: Path, zipped: bool) -> None:
    items = {
        "a": tensor_of(WHOLE, 0, (4, 6), (6, 1)),
        "turned": tensor_of(WHOLE, 0, (6, 4), (1, 6)),
        "part": tensor_of(WHOLE, 7, (2, 3), (12, 2)),
        "number": tensor_of(WHOLE, 5, (), ()),
        "none": tensor_of(WHOLE, 24, (0, 3), (3, 1)),
    }
    got = ost.load_torch(write(tmp_path / "a.pt", dictionary(items), [WHOLE], zipped))
    a = NUMBERS.reshape(4, 6)
    assert np.array_equal(got["a"], a)
    assert np.array_equal(got["turned"], a.T)
    assert got["part"].tolist() == [[7, 9, 11], [19, 21, 23]]
    assert got["number"].shape == ()
    assert got["number"] == 5
    assert got["none"].shape == (0, 3)
    assert np.shares_memory(got["a"], got["turned"])


@FORMS
def test_half_and_bfloat16(tmp_path: Path, zipped: bool) -> None:
    half = Storage("HalfStorage", "0", np.array([1.5, -2, 65504], "<f2").tobytes(), 3)
    bits = np.array([1.5, -3.140625, np.inf], np.float32).view(np.uint32) >> 16
    brain = Storage("BFloat16Storage", "1", bits.astype("<u2").tobytes(), 3)
    items = {"h": tensor_of(half, 0, (3,), (1,)), "b": tensor_of(brain, 0, (3,), (1,))}
    got = ost.load_torch(write(tmp_path / "a.pt", dictionary(items), [half, brain], zipped))
    assert got["h"].dtype == np.float16
    assert got["h"].tolist() == [1.5, -2, 65504]
    assert got["b"].dtype == np.float32
    assert got["b"].tolist() == [1.5, -3.140625, np.inf]


def test_a_nested_dictionary_and_its_keys(tmp_path: Path) -> None:
    inner = dictionary({"w": tensor_of(WHOLE, 0, (2,), (1,)), "n": plain(7)})
    path = write_zip(tmp_path / "a.pt", dictionary({"model": dictionary({"x": inner})}), [WHOLE])
    assert ost.load_torch(path)["model"]["x"]["n"] == 7
    assert ost.load_torch(path, key=("model", "x"))["w"].tolist() == [0, 1]
    with pytest.raises(KeyError, match=r"expected one of \['model'\], got 'state'"):
        ost.load_torch(path, key="state")
    for key in (3, b"ab", [["a"]], {"model"}):
        with pytest.raises(TypeError, match=r"key: expected a name or a list of names, got "):
            ost.load_torch(path, key=key)  # type: ignore[arg-type]
    many = dictionary({f"{k:05}" + "x" * 5000: plain(0) for k in range(12)})
    with pytest.raises(KeyError, match=r"'00000x+', .* and 4 more, got 'state'") as caught:
        ost.load_torch(write_zip(path, many, []), key="state")
    assert len(str(caught.value)) < 1000


def test_big_endian_storages(tmp_path: Path) -> None:
    s = Storage("FloatStorage", "0", np.array([1, 2], ">f4").tobytes(), 2)
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a/data.pkl", b"\x80\x02" + tensor_of(s, 0, (2,), (1,)) + b".")
        z.writestr("a/byteorder", b"big")
        z.writestr("a/data/0", s.data)
    assert ost.load_torch(path).tolist() == [1, 2]


# -- hostile and damaged files ---------------------------------------------------------------------

CALLS = {
    "a function": (b"cos\nsystem\n" + text_of("touch pwned") + b"\x85R", "to call os.system"),
    "eval": (b"cbuiltins\neval\n" + text_of("1") + b"\x85R", "to call builtins.eval"),
    "stack global": (
        b"\x8c\x02os\x8c\x06system\x93" + text_of("touch pwned") + b"\x85R",
        "to call os.system",
    ),
    "inst": (b"(" + text_of("touch pwned") + b"ios\nsystem\n", "the opcode INST"),
    "obj": (b"(cos\nsystem\n" + text_of("x") + b"o", "the opcode OBJ, to make a os.system"),
    "newobj": (b"c__main__\nNet\n)\x81", "the opcode NEWOBJ, to make a __main__.Net"),
    "build": (b"]" + plain({"a": 1}) + b"b", "to set attributes of a list"),
    "a class of torch": (
        b"ctorch._utils\n_rebuild_qtensor\n)R",
        "to call torch._utils._rebuild_qtensor",
    ),
    "an extension": (b"\x82\x01", "the opcode EXT1"),
}


@FORMS
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_executed(
    tmp_path: Path, zipped: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    body, message = CALLS[name]
    path = write(tmp_path / "a.pt", body, [], zipped)
    with pytest.raises(ValueError, match=message):
        ost.load_torch(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pt"]


BAD = {
    "past the end": tensor_of(WHOLE, 20, (5,), (1,)),
    "negative offset": tensor_of(WHOLE, -1, (2,), (1,)),
    "negative stride": tensor_of(WHOLE, 5, (2,), (-1,)),
    "expanded beyond the file": tensor_of(WHOLE, 0, (2**40,), (0,)),
    "a product that overflows": tensor_of(WHOLE, 0, (2**40, 2**40, 0, 2**61), (1, 1, 1, 1)),
    "axes": tensor_of(WHOLE, 0, (1,) * 60, (1,) * 60),
    "sizes without strides": tensor_of(WHOLE, 0, (2, 2), (1,)),
    "text as a size": b"ctorch._utils\n_rebuild_tensor_v2\n("
    + storage_of(WHOLE)
    + b"K\x00"
    + text_of("ab")
    + plain((1,))
    + b"\x89}tR",
    "memo": b"h\x05",
    "a stack that is empty": b"a",
    "no mark": b"t",
    "a list as a key": b"}]K\x01s",
    "a long string": b"\x8d" + struct.pack("<Q", 2**62),
    "a long int": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a float8": tensor_of(Storage("Float8_e4m3fnStorage", "0", b"abcd", 4), 0, (4,), (1,)),
    "itself": b"]q\x00h\x00a",
}


@FORMS
@pytest.mark.parametrize("name", BAD)
def test_damaged_pickles(tmp_path: Path, zipped: bool, name: str) -> None:
    path = write(tmp_path / "a.pt", BAD[name], [WHOLE], zipped)
    with pytest.raises(ValueError, match=r"a.pt: expected a file of torch.save, got "):
        ost.load_torch(path)


def test_a_deep_pickle(tmp_path: Path) -> None:
    body = b"]" * 5000 + b"a" * 4999
    with pytest.raises(ValueError, match=r"lie too deep"):
        ost.load_torch(write_zip(tmp_path / "a.pt", body, []))


@FORMS
def test_values_that_are_shared_very_often(tmp_path: Path, zipped: bool) -> None:
    # Each of 60 tuples holds the one before twice: 2**60 lists, were each made by itself.
    path = write(tmp_path / "a.pt", b"]" + b"2\x86" * 60, [], zipped)
    made = ost.load_torch(path)
    assert made[0] is made[1]
    for _ in range(60):
        made = made[0]
    assert made == []


LAUGHS = b"]" + b"2\x86" * 60  # whose text would fill all memory
COPIED = {
    "a device": (b"ctorch\ndevice\n" + LAUGHS + b"\x85R", "a device that is no text"),
    "a size": (b"ctorch\nSize\n]\x85R", "a size that is no tuple"),
    "the size of a tensor": (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage_of(WHOLE)
        + b"K\x00"
        + (LAUGHS + b"\x85") * 2
        + b"\x89}tR",
        "whose size and strides are no numbers",
    ),
    "strides that are a list": (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage_of(WHOLE)
        + b"K\x00K\x01\x85]K\x01a\x89}tR",
        "a tensor without a size and strides",
    ),
    "a dictionary of many": (
        b"(ccollections\nOrderedDict\nq\x00("
        + b"".join(b"M" + struct.pack("<H", k) + b"N\x86" for k in range(300))
        + b"l\x85q\x01R"
        + b"h\x00h\x01R" * 100
        + b"t",
        "gives collections.OrderedDict more than the file holds",
    ),
}


@FORMS
@pytest.mark.parametrize("name", COPIED)
def test_small_files_that_ask_for_much(tmp_path: Path, zipped: bool, name: str) -> None:
    body, message = COPIED[name]
    path = write(tmp_path / "a.pt", body, [WHOLE], zipped)
    with pytest.raises(ValueError, match=message):
        ost.load_torch(path)


def test_compressed_and_foreign_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a/data.pkl", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"compressed"):
        ost.load_torch(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a/b", b"")
    with pytest.raises(ValueError, match=r"without one data.pkl"):
        ost.load_torch(path)
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("a/data.pkl", b"N.")
        z.writestr("a/code/__torch__.py", b"")
    with pytest.raises(ValueError, match=r"TorchScript"):
        ost.load_torch(path)
    write_zip(path, tensor_of(WHOLE, 0, (2,), (1,)), [])
    with pytest.raises(ValueError, match=r"no entry 'a/data/0'"):
        ost.load_torch(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    for words in (b"", b"abc", b"PK\x03\x04", bytes(100), pickle.dumps({"a": 1})):
        path.write_bytes(words)
        with pytest.raises(ValueError, match=r"expected a file of torch.save"):
            ost.load_torch(path)
    with pytest.raises(FileNotFoundError):
        ost.load_torch(tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        ost.load_torch(tmp_path)


def outcome(path: Path) -> str:
    try:
        ost.load_torch(path)
    except ValueError as e:
        return "refused" if "expected a file of torch.save, got " in str(e) else repr(e)
    return "read"


@FORMS
def test_mutations_are_errors_or_values(tmp_path: Path, zipped: bool) -> None:
    items = {"w": tensor_of(WHOLE, 1, (2, 3), (3, 1)), "l": plain([1, (2.5, "é"), None])}
    path = write(tmp_path / "a.pt", dictionary(items), [WHOLE], zipped)
    words, rng = path.read_bytes(), np.random.default_rng(0)
    outcomes = {outcome(path): 1, "refused": 0}
    tracemalloc.start()
    for k in range(2000):
        b = bytearray(words)
        if k % 4 == 0:
            b = b[: int(rng.integers(len(b)))]
        for _ in range(int(rng.integers(1, 4))):
            if b:
                b[int(rng.integers(len(b)))] = int(rng.integers(256))
        path.write_bytes(b)
        outcomes[outcome(path)] += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert min(outcomes.values()) > 0
    assert peak < 1_000_000  # of files below 1 kB, with Python's own


# -- state dicts -----------------------------------------------------------------------------------


def state_of(**layers: nn.Layer) -> dict[str, Any]:
    return {f"{n}.{k}": a for n, m in layers.items() for k, a in m.state_dict().items()}


def test_layers_by_names_and_shapes() -> None:
    made = {
        "lstm": nn.LSTM(3, 5, num_layers=2, bidirectional=True, rng=0),
        "projected": nn.LSTM(3, 5, proj_size=2, rng=1),
        "gru": nn.GRU(4, 6, bias=False, rng=2),
        "rnn": nn.RNN(4, 6, dtype=np.float64, rng=3),
        "fc": nn.Linear(7, 2, rng=4),
        "char_embedding": nn.Embedding(9, 4, rng=5),
        "norm": nn.LayerNorm(4),
        "conv": nn.Conv1d(3, 4, 5, padding="valid", rng=6),
    }
    got = ost.from_torch(state_of(**made))
    assert list(got) == list(made)
    for name, layer in made.items():
        assert repr(got[name]) == repr(layer)
        assert got[name].dtype == layer.dtype
        for n, a in layer.state_dict().items():
            assert np.array_equal(got[name].parameters()[n], a)
    text = got.describe()
    assert "PyTorch: 8 layers" in text
    assert "weight_ih_l0 [20,3]" in text


def test_a_cell_is_a_layer() -> None:
    gru = nn.GRU(3, 5, rng=0)
    cell = {n.removesuffix("_l0"): a for n, a in gru.state_dict().items()}
    got = ost.from_torch(cell).layer
    assert repr(got) == "GRU(3, 5)"
    assert np.array_equal(got.parameters()["weight_hh_l0"], cell["weight_hh"])


def test_renaming_skipping_options_and_kinds() -> None:
    state = state_of(rnn=nn.RNN(3, 4, rng=0), out=nn.Linear(4, 2, bias=False, rng=1))
    state = {f"module.net.{n.replace('weight_', 'w-')}": a for n, a in state.items()}
    state["module.steps"] = np.ones(1, np.float32)
    got = ost.from_torch(
        state,
        rename={r"^module\.(net\.)?": "", "w-": "weight_"},
        skip=["*.steps"],
        kinds={"out": "Linear"},
        options={"rnn": {"nonlinearity": "relu"}},
        batch_first=True,
    )
    assert repr(got["rnn"]) == "RNN(3, 4, batch_first=True, nonlinearity='relu')"
    assert repr(got["out"]) == "Linear(4, 2, bias=False)"
    model = nn.Sequential(**got)
    assert model(np.zeros((2, 7, 3), np.float32))[0].shape == (2, 7, 2)


def test_what_is_refused_of_a_state_dict() -> None:
    linear = {"fc.weight": np.ones((2, 3))}
    with pytest.raises(ValueError, match=r"fc: expected parameters .* got weight \[2,3\]"):
        ost.from_torch(linear)  # a Linear or an Embedding: nobody knows
    with pytest.raises(ValueError, match=r"running_mean"):
        ost.from_torch({"bn.weight": np.ones(2), "bn.running_mean": np.ones(2)})
    with pytest.raises(ValueError, match=r"rename: .* got 'abc'"):
        ost.from_torch(linear, rename={"abc": ""})
    with pytest.raises(ValueError, match=r"rename: .*different names"):
        ost.from_torch({"a": np.ones(2), "b": np.ones(2)}, rename={"[ab]": "c"})
    with pytest.raises(TypeError, match=r"fc.weight: expected real numbers"):
        ost.from_torch({"fc.weight": np.ones((2, 3), int)})
    with pytest.raises(TypeError, match=r"source: expected a state dict or a module, got a list"):
        ost.from_torch([])
    with pytest.raises(KeyError, match=r"options: .*'fd'"):
        ost.from_torch(linear | {"fc.bias": np.ones(2)}, options={"fd": {}})
    damaged = nn.LSTM(3, 4, num_layers=2, rng=0).state_dict()
    del damaged["bias_hh_l1"]
    with pytest.raises(KeyError, match=r"missing \['bias_hh_l1'\]"):
        ost.from_torch(damaged)
    damaged["bias_hh_l1"] = np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"bias_hh_l1: expected shape \(16,\), got \(3,\)"):
        ost.from_torch(damaged)


ONE = {"weight": np.ones((2, 3)), "bias": np.ones(2)}
GRU = {"weight_ih_l0": np.ones((12, 3)), "weight_hh_l0": np.ones((12, 4))}
WRONG: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, {}, ValueError, "source: expected at least one layer, got none"),
    "all skipped": (ONE, {"skip": ["*"]}, ValueError, "source: expected at least one layer, got n"),
    "a class": (nn.LSTM, {}, TypeError, "source: expected a state dict or a module, got the class"),
    "nested": ({"model": ONE}, {}, TypeError, "model: expected real numbers, got a dict"),
    "ragged": ({"a": [[1.0], [1.0, 2.0]]}, {}, TypeError, "a: expected real numbers, got [[1.0]"),
    "verify": (ONE, {"verify": "no"}, TypeError, "verify: expected True or False"),
    "kinds": (ONE, {"kinds": "GRU"}, TypeError, "kinds: expected a mapping of names"),
    "a kind": (ONE, {"kinds": {"": "Conv2d"}}, ValueError, "kinds['']: expected one of 'LSTM', "),
    "a GRU": (
        ONE,
        {"kinds": {"": "GRU"}},
        ValueError,
        "source: expected weight_ih_l0, weight_hh_l0 and their like of GRU, got weight, bias",
    ),
    "a cell": (GRU, {"kinds": {"": "GRUCell"}}, ValueError, "source: expected weight_ih, weight_"),
    "a Linear": (
        GRU,
        {"kinds": {"": "Linear"}},
        ValueError,
        "source: expected weight and bias of Linear, got weight_ih_l0, weight_hh_l0; kinds= says",
    ),
    "a Tanh": (ONE, {"kinds": {"": "Tanh"}}, ValueError, "source: expected no parameters of Tanh"),
    "axes": (
        ONE,
        {"kinds": {"": "Conv1d"}},
        ValueError,
        "source: expected a weight of 3 axes for Conv1d, got weight [2,3], bias [2]",
    ),
    "an LSTM": (GRU, {"kinds": {"": "LSTM"}}, ValueError, "weight_hh_l0: expected shape (12, 3)"),
    "rename": (ONE, {"rename": "abc"}, TypeError, "rename: expected a mapping of regular"),
    "a rule": (ONE, {"rename": {"(": "a"}}, ValueError, "rename: expected regular expressions, "),
    "a number": (ONE, {"rename": {3: "a"}}, TypeError, "rename: expected regular expressions, "),
    "a group": (
        ONE,
        {"rename": {"weight": "\\3"}},
        ValueError,
        "rename['weight']: expected a text whose groups the expression has, got",
    ),
    "a named group": (ONE, {"rename": {"weight": r"\g<a>"}}, ValueError, "rename['weight']: "),
    "no text": (ONE, {"rename": {"weight": None}}, TypeError, "rename['weight']: expected a text"),
    "options": (ONE, {"options": [1]}, TypeError, "options: expected a mapping of names of lay"),
    "own options": (ONE, {"options": {"": 3}}, TypeError, "options['']: expected a mapping of "),
    "an option": (
        ONE,
        {"options": {"": {"foo": 1}}},
        TypeError,
        "options['']: expected arguments of Linear among bias, dtype, rng, got 'foo'",
    ),
    "a size": (GRU, {"options": {"": {"hidden_size": 4}}}, TypeError, "options['']: expected arg"),
    "a bias": (ONE, {"options": {"": {"bias": False}}}, KeyError, "unknown ['bias']"),
    "a rate": (GRU, {"options": {"": {"dropout": 1}}}, ValueError, "source: dropout: expected"),
}


@pytest.mark.parametrize("name", WRONG)
def test_arguments_that_are_wrong(name: str) -> None:
    source, options, kind, message = WRONG[name]
    with pytest.raises(kind, match=re.escape(message)):
        ost.from_torch(source, **options)


def test_a_small_state_dict_makes_no_large_layer() -> None:
    one = {"weight_ih_l0": np.ones((4, 1)), "weight_hh_l0": np.ones((4, 1))}
    tracemalloc.start()
    with pytest.raises(KeyError, match=r"layers 0 to 999999999, got none of layer 1"):
        ost.from_torch(one | {"weight_ih_l999999999": np.ones((4, 1))})
    with pytest.raises(ValueError, match=r"expected parameters of one of"):
        ost.from_torch(one | {"weight_ih_l" + "9" * 5000: np.ones((4, 1))})
    with pytest.raises(ValueError, match=r"weight_hh_l0: expected shape \(40000, 10000\)"):
        ost.from_torch(one | {"weight_ih_l0": np.ones((40000, 1))})
    with pytest.raises(KeyError, match=r"missing \['weight_hh_l1'\]"):
        ost.from_torch(one | {"weight_ih_l1": np.ones((4, 1))})
    with pytest.raises(ValueError, match=r"weight_ih_l1: expected shape \(4, 1\), got \(1,\)"):
        ost.from_torch(one | {f"weight_{n}_l1": np.ones(1) for n in ("ih", "hh")})
    assert tracemalloc.get_traced_memory()[1] < 4_000_000
    tracemalloc.stop()


def test_layer_norm_and_compiled_rules_of_a_state_dict() -> None:
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True, layer_norm=True, rng=0)
    state = {f"a.{n}": v for n, v in layer.state_dict().items()}
    got = ost.from_torch(state, rename={re.compile("^a"): "b"})  # type: ignore[dict-item]
    assert repr(got["b"]) == repr(layer)
    x = np.ones((5, 2, 3), np.float32)
    assert np.array_equal(got["b"](x)[0], layer(x)[0])


@needs_torch
def test_a_gru_that_torch_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected LSTM without activation='softsign', clip=1\.0"):
        ost.to_torch(ost.nn.LSTM(3, 4, activation="softsign", clip=1.0))
    with pytest.raises(ValueError, match=r"without reset_after=False"):
        ost.to_torch(nn.GRU(3, 4, reset_after=False))


def test_the_whole_model_and_one_layer() -> None:
    got = ost.from_torch(state_of(a=nn.Linear(3, 4), b=nn.Linear(4, 2)))
    with pytest.raises(ValueError, match=r"layer: expected one layer, got 2: a, b"):
        _ = got.layer
    with pytest.raises(ValueError, match=r"in which order"):
        got.model()
    with pytest.raises(KeyError, match=r"expected one of a, b, got 'c'"):
        got["c"]
    one = ost.from_torch(nn.Linear(3, 4, rng=0).state_dict())
    assert one.model() is one.layer
    with pytest.raises(ValueError, match=r"verify"):
        one.model(verify=True)


def test_an_import_does_not_import_torch() -> None:
    code = (
        "import sys, ostinato as ost, numpy as np;"
        "assert not any(m.startswith('ostinato.interop') for m in sys.modules);"
        "ost.from_torch({'weight': np.ones((2, 3)), 'bias': np.ones(2)});"
        "assert not {'torch', 'onnx', 'h5py', 'keras'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MISSING = {
    "torch": ("torch", lambda: ost.to_torch(nn.Linear(1, 2))),
    "onnx": ("onnx", lambda: ost.to_onnx(nn.Linear(1, 2))),
    "h5py": ("keras", lambda: ost.to_keras(nn.Linear(1, 2), "a.weights.h5")),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    extra, call = MISSING[name]
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"needs {name}: pip install 'ostinato\[{extra}\]'"):
        call()


# -- against PyTorch -------------------------------------------------------------------------------


@needs_torch
@FORMS
def test_files_that_torch_writes(tmp_path: Path, zipped: bool) -> None:
    torch.manual_seed(0)
    tensors = OrderedDict(
        a=torch.randn(3, 4),
        turned=torch.randn(5, 6).T,
        part=torch.arange(10)[3:7],
        brain=torch.randn(4).bfloat16(),
        half=torch.randn(3).half(),
        flag=torch.tensor(True),
        none=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
        complex=torch.randn(2, dtype=torch.complex64),
        unsigned=torch.ones(3, dtype=torch.uint16),
        expanded=torch.ones(1).expand(5),
    )
    plain_values = {"lr": 0.1, "l": [1, (2, None)], "n": "é", "big": 10**30}
    made = {"model": tensors, "opt": plain_values, "state": torch.nn.LSTM(3, 4).state_dict()}
    path = tmp_path / "a.pt"
    torch.save(made, path, _use_new_zipfile_serialization=zipped)
    got = ost.load_torch(path)
    assert got["opt"] == plain_values
    for name, t in tensors.items():
        want = (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
        assert got["model"][name].dtype == want.dtype
        assert np.array_equal(got["model"][name], want), name
    assert repr(ost.from_torch(got["state"], verify=True).layer) == "LSTM(3, 4)"
    torch.save(torch.nn.Linear(2, 3), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.linear\.Linear"):
        ost.load_torch(path)


def module_of_all() -> Any:
    torch.manual_seed(0)
    parts = OrderedDict(
        lstm=torch.nn.LSTM(3, 5, 2, bidirectional=True, batch_first=True),
        projected=torch.nn.LSTM(3, 5, proj_size=2),
        gru=torch.nn.GRU(4, 6, bias=False),
        rnn=torch.nn.RNN(4, 6, nonlinearity="relu"),
        cell=torch.nn.LSTMCell(3, 4),
        gru_cell=torch.nn.GRUCell(3, 4),
        rnn_cell=torch.nn.RNNCell(3, 4, nonlinearity="relu"),
        fc=torch.nn.Linear(7, 2, bias=False),
        table=torch.nn.Embedding(9, 4, padding_idx=2),
        norm=torch.nn.LayerNorm(4, eps=0.1),
        conv=torch.nn.Conv1d(3, 4, 4, padding="same", dilation=2),
        drop=torch.nn.Dropout(0.3),
        relu=torch.nn.ReLU(),
        gelu=torch.nn.GELU(),
        gelu_tanh=torch.nn.GELU(approximate="tanh"),
        softmax=torch.nn.Softmax(-1),
        log=torch.nn.LogSoftmax(-1),
        nothing=torch.nn.Identity(),
    )
    return torch.nn.ModuleDict(parts)


@needs_torch
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_modules_agree_with_torch(dtype: str) -> None:
    module = module_of_all().to(getattr(torch, dtype))
    got = ost.from_torch(module, verify=True)
    assert list(got) == [n for n in module if n != "nothing"]
    assert {m.dtype.name for m in got.values()} == {dtype}
    assert module.training
    assert got["table"].padding_index == 2  # type: ignore[attr-defined]


@needs_torch
def test_verify_finds_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    gru = torch.nn.GRU(3, 4)
    original = nn.GRU.load_state_dict

    def swapped(self: Any, mapping: Any) -> None:
        new = dict(mapping)
        new["weight_ih_l0"] = np.roll(np.asarray(new["weight_ih_l0"]), 4, 0)
        original(self, new)

    monkeypatch.setattr(nn.GRU, "load_state_dict", swapped)
    with pytest.raises(ValueError, match=r"verify: expected the outputs of PyTorch's GRU within"):
        ost.from_torch(gru, verify=True)
    with pytest.raises(ValueError, match=r"verify: expected the outputs of PyTorch's GRU within"):
        ost.from_torch(gru.state_dict(), verify=True)


@needs_torch
def test_a_sequential_is_a_model() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    ours = ost.from_torch(theirs).model()
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    assert_close(ours(x)[0], theirs(torch.from_numpy(x)).detach().numpy())
    assert list(ours.state_dict()) == list(theirs.state_dict())


def inputs() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(5, 2, 4)).astype(np.float32)


def assert_whole(theirs: Any, **options: Any) -> ost.interop.Imported:
    """Assert that the model of a module gives what the module gives."""
    got = ost.from_torch(theirs, verify=True, **options)
    y, want = got.model()(inputs()), theirs.eval()(torch.from_numpy(inputs()))
    y, want = (v[0] if isinstance(v, tuple) else v for v in (y, want))
    assert_close(y, want.detach().numpy())
    return got


def no_chains() -> dict[str, tuple[Any, dict[str, Any], str]]:
    """Return modules that are no chain of layers, with options, and what the error says."""
    t = torch.nn

    class Residual(t.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.l = t.Linear(4, 4)

        def forward(self, x: Any) -> Any:
            return x + self.l(x)

    class Twice(t.Sequential):  # type: ignore[misc]
        def forward(self, x: Any) -> Any:
            return super().forward(x) * 2

    def hooked(module: Any, name: str) -> Any:
        (module[0] if name.endswith("of a layer") else module).register_forward_hook(
            lambda m, i, o: o * 2
        )
        return module

    def before(module: Any) -> Any:
        module.register_forward_pre_hook(lambda m, i: (i[0] * 2,))
        return module

    def replaced(module: Any) -> Any:
        module.forward = lambda x: x
        return module

    def chain(*more: Any) -> Any:
        return t.Sequential(t.Linear(4, 4), *more)

    shared = t.Linear(4, 4)
    convolution = t.Conv1d(4, 4, 1)
    return {
        "a module": (Residual(), {}, "the module is a Residual, whose code alone says in which"),
        "within": (t.Sequential(Residual()), {}, "0 is a Residual, whose code"),
        "deeper": (chain(t.Sequential(Residual())), {}, "1.0 is a Residual, whose code"),
        "a class": (Twice(t.Linear(4, 4)), {}, "the module is a Twice, whose code"),
        "within another": (chain(Twice(t.Tanh())), {}, "1 is a Twice, whose code"),
        "a hook": (hooked(chain(t.Tanh()), ""), {}, "the module has hooks"),
        "a hook of a layer": (hooked(chain(), "of a layer"), {}, "0 has hooks"),
        "a hook before": (before(chain()), {}, "the module has hooks"),
        "a hook of all": (before(t.Linear(4, 4)), {}, "the module has hooks"),
        "a forward": (replaced(chain()), {}, "the module has a forward of its own"),
        "a forward within": (chain(replaced(t.Tanh())), {}, "1 has a forward of its own"),
        "skipped": (chain(t.Tanh()), {"skip": ["1"]}, "1 is left out by skip"),
        "skipped tensor": (chain(), {"skip": ["*.bias"]}, "0.bias is left out by skip"),
        "skipped all": (chain(t.Linear(4, 4)), {"skip": ["1.*"]}, "1.weight is left out by skip"),
        "skipped other": (chain(t.LeakyReLU()), {"skip": ["1"]}, "1 is left out by skip"),
        "a dictionary": (
            t.ModuleDict({"a": t.Linear(4, 4), "b": t.Tanh()}),
            {},
            "the module is a ModuleDict, which does not say in which order",
        ),
        "shared weights": (t.Sequential(shared, t.Tanh(), shared), {}, "2 is 0 again, whose weig"),
        "other axes": (t.Sequential(convolution, t.Softmax(-1)), {}, "0 is a Conv1d, which takes"),
        "nothing": (t.Sequential(t.Identity()), {}, "there is no layer"),
    }


@needs_torch
def test_what_is_no_chain_has_no_model() -> None:
    for name, (module, options, message) in no_chains().items():
        got = ost.from_torch(module, **options)
        with pytest.raises(ValueError, match=re.escape(f"got one where {message}")):
            got.model()
        assert list(got) or name == "nothing"


@needs_torch
def test_what_is_a_chain_has_a_model() -> None:
    t = torch.nn
    torch.manual_seed(0)
    tanh, pair = t.Tanh(), t.Sequential(t.Tanh(), t.Sigmoid())
    first, second = t.Linear(4, 4), t.Linear(4, 4)

    class Named(t.Sequential):  # type: ignore[misc]
        pass

    assert list(assert_whole(t.Sequential(first, tanh, second, tanh))) == ["0", "1", "2", "3"]
    got = assert_whole(t.Sequential(pair, first, pair))
    assert list(got) == ["0.0", "0.1", "1", "2.0", "2.1"]
    assert_whole(Named(first, t.Sequential(), t.Identity(), tanh))
    assert_whole(t.DataParallel(t.Sequential(first, tanh)))
    assert len(ost.from_torch(t.DataParallel(t.Conv1d(3, 4, 5))).model().parameters()) == 2
    assert_whole(t.Sequential(first, t.Dropout(1.0)), skip=["1"])
    assert_whole(t.ModuleDict({"a": first})["a"])
    assert repr(ost.from_torch(t.ModuleDict({"a": first})).model()) == "Linear(4, 4)"
    second.weight = first.weight
    tied = assert_whole(t.Sequential(first, second))
    assert tied.notes == ("1.weight is 0.weight in PyTorch; here each has values of its own",)
    again = ost.from_torch(t.Sequential(first, tanh, first))
    assert_close(
        nn.Sequential(**again)(inputs())[0],
        t.Sequential(first, tanh, first)(torch.from_numpy(inputs())).detach().numpy(),
    )
    ours = nn.Sequential(a=nn.GRU(4, 3, rng=0), b=nn.Linear(3, 4, rng=1))
    assert_close(ost.from_torch(ost.to_torch(ours)).model()(inputs())[0], ours(inputs())[0])
    conv = ost.to_torch(nn.Sequential(nn.Conv1d(4, 4, 3)))
    with pytest.raises(ValueError, match=r"the layout of its convolutions"):
        ost.from_torch(conv).model()


@needs_torch
def test_layers_of_ours_within_torch() -> None:
    from ostinato.interop import torch as ot

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GRU(4, 5))
    ot.replace(model)
    assert_whole(model)
    assert_whole(ot.RNN(4, 5, nonlinearity="relu"))
    got = assert_whole(ot.LSTM(4, 5, 2, layer_norm=True))
    assert repr(got.layer) == "LSTM(4, 5, num_layers=2, layer_norm=True)"


@needs_torch
def test_verify_computes_in_the_dtype_of_the_layer() -> None:
    gru = torch.nn.GRU(3, 4)
    got = ost.from_torch(gru, options={"": {"dtype": "float64"}}, verify=True)
    assert got.layer.dtype == np.float64
    assert gru.weight_ih_l0.dtype == torch.float32
    assert ost.from_torch(torch.nn.Linear(3, 4).bfloat16(), verify=True).layer.dtype == np.float32


def pruned(module: Any, name: str) -> Any:
    from torch.nn.utils import prune

    return prune.l1_unstructured(module, name, 0.5)  # type: ignore[no-untyped-call]


@needs_torch
@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_parameters_of_another_form() -> None:
    t, u = torch.nn, torch.nn.utils
    extra = t.Linear(4, 4)
    extra.register_buffer("zz", torch.zeros(3))
    others = {
        "weight and bias of Linear, got bias, weight_g, weight_v": u.weight_norm(t.Linear(4, 4)),
        "weight and bias of Linear, got bias, weight_orig": u.spectral_norm(t.Linear(4, 4)),
        "weight and bias of Linear, got bias, weight_orig, ": pruned(t.Linear(4, 4), "weight"),
        "weight and bias of Linear, got weight, bias, zz": extra,
        "weight_ih_l0, weight_hh_l0 and their like of GRU, got": pruned(
            t.GRU(3, 4), "weight_hh_l0"
        ),
    }
    for message, module in others.items():
        with pytest.raises(ValueError, match=f"1: expected {message}.*prune.remove"):
            ost.from_torch(t.Sequential(t.Tanh(), module))
    assert_whole(t.Sequential(t.Tanh(), extra), skip=["1.zz"])
    eye = torch.eye(3)
    tensors = {
        "a dense tensor, got torch.sparse_coo": eye.to_sparse(),
        "real numbers, got torch.qint8": torch.quantize_per_tensor(eye, 0.1, 0, torch.qint8),
        "real numbers, got torch.float8_e4m3fn": eye.to(torch.float8_e4m3fn),
        "real numbers, got dtype complex64": eye * 1j,
    }
    for message, tensor in tensors.items():
        with pytest.raises(TypeError, match=f"a.weight: expected {message}"):
            ost.from_torch({"a.weight": tensor})
    with pytest.raises(ValueError, match=r"0.weight: expected a tensor with values, got one on"):
        ost.from_torch(t.Sequential(t.Linear(2, 3, device="meta")))


@needs_torch
def test_what_is_refused_of_a_module() -> None:
    with pytest.raises(TypeError, match=r"source: expected .*, got the class LSTM; give a module"):
        ost.from_torch(torch.nn.LSTM)
    with pytest.raises(ValueError, match=r"batch_first: expected False for a module"):
        ost.from_torch(torch.nn.GRU(3, 4), batch_first=True)
    with pytest.raises(ValueError, match=r"1: rate: expected a number in \[0, 1\), got 1\.0"):
        ost.from_torch(torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Dropout(1.0)))
    within = torch.nn.Sequential(torch.nn.Tanh())
    within.append(within)
    with pytest.raises(ValueError, match=r"1: expected a module that is not within itself"):
        ost.from_torch(within)
    with pytest.raises(ValueError, match=r"0: expected modules .* a Conv2d with weight"):
        ost.from_torch(torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3)))
    kept = ost.from_torch(
        torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(2, 3)), skip=["0"]
    )
    assert list(kept) == ["1"]
    with pytest.raises(ValueError, match=r"over the last axis"):
        ost.from_torch(torch.nn.Softmax(0))
    with pytest.raises(ValueError, match=r"without groups"):
        ost.from_torch(torch.nn.Conv1d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match=r"rename, kinds: expected none for a module"):
        ost.from_torch(torch.nn.Linear(1, 2), kinds={"": "Linear"})


@needs_torch
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_to_torch_and_back() -> None:
    model = nn.Sequential(
        embed=nn.Embedding(9, 4, rng=0),
        conv=nn.Conv1d(4, 4, 3, batch_first=True, rng=1),
        rnn=nn.LSTM(4, 6, num_layers=2, proj_size=3, batch_first=True, rng=2),
        norm=nn.LayerNorm(3),
        act=nn.Activation("tanh"),
        head=nn.Linear(3, 2, rng=3),
        log=nn.Softmax(log=True),
    )
    theirs = ost.to_torch(model)
    assert list(theirs.state_dict()) == list(model.state_dict())
    ids = np.random.default_rng(0).integers(0, 9, (3, 7))
    y, states = theirs(torch.from_numpy(ids))
    want, state = model(ids)
    assert_close(y.detach().numpy(), want)
    more, _ = theirs(torch.from_numpy(ids), states)
    assert_close(more.detach().numpy(), model(ids, state)[0])
    back = nn.Sequential(**ost.from_torch(theirs, verify=True))
    assert_close(back(ids)[0], want)
    for layer in (nn.LSTM(3, 4, peephole=True), nn.LSTM(3, 4, layer_norm=True)):
        with pytest.raises(ValueError, match=r"torch.nn does not have"):
            ost.to_torch(layer)


def test_softmax_as_a_layer() -> None:
    rng = np.random.default_rng(0)
    for log in (False, True):
        layer = nn.Softmax(log=log, dtype=np.float64)
        x, d = rng.normal(size=(3, 2, 5)), rng.normal(size=(3, 2, 5))
        y, pullback = layer.vjp(x)
        assert_close(np.exp(y).sum(-1) if log else y.sum(-1), np.ones((3, 2)))
        dx, eps = pullback(d), 1e-6
        u = rng.normal(size=x.shape)
        slope = ((layer(x + eps * u) - layer(x - eps * u)) * d).sum() / (2 * eps)
        assert abs(slope - (dx * u).sum()) < 1e-8
        model = nn.Sequential(nn.GRU(2, 4, rng=0), nn.Softmax(log=log))
        steps = rng.normal(size=(6, 1, 2)).astype(np.float32)
        stream = model.stream()
        got = np.stack([stream.step(s).copy() for s in steps])
        assert_close(got, model(steps)[0])
    with pytest.raises(ValueError, match=r"at least 1 axis"):
        nn.Softmax()(np.zeros((), np.float32))


@needs_torch
def test_the_checkpoint_of_the_documentation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "interop.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", page, re.S)
    torch.manual_seed(0)
    rnn, head = torch.nn.GRU(3, 5, batch_first=True), torch.nn.Linear(5, 2)
    both = {"rnn": rnn, "head": head}
    state = {f"module.{n}.{k}": v for n, m in both.items() for k, v in m.state_dict().items()}
    state["module.norm.num_batches"] = torch.tensor(7)
    torch.save({"model_state": state, "epoch": 3}, "checkpoint.pt")
    names: dict[str, Any] = {"ost": ost}
    exec(compile(block, "interop.md", "exec"), names)
    x = torch.randn(2, 7, 3)
    with torch.no_grad():
        expected = head(rnn(x)[0]).numpy()
    np.testing.assert_allclose(names["model"](x.numpy())[0], expected, atol=1e-6)
