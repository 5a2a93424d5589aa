"""PyTorch's pickled weights are read without torch, and no other pickle is executed.

The files are put together here as `torch.save` writes them; `scripts/checks/verify_family.py` reads torch's own.
"""

import pickle
import resource
import zipfile

import ml_dtypes
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face, import_hugging_face
from diversity_jax.model.checkpoint_io.tensor_files import read_tensors, read_torch
from tests.small_llama import random_params, small_config

STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "bfloat16": "BFloat16Storage"}


def opcodes(value):
    """The pickle of a value, whose globals are written as bytes `module name`."""
    if isinstance(value, bytes):
        return b"c" + value.replace(b" ", b"\n") + b"\n"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor(key, array, shape=None, strides=None, start=0):
    storage = (b"torch " + STORAGES[array.dtype.name].encode(), key, "cpu", array.size)
    pid = opcodes(("storage", *storage)) + b"Q"
    steps = tuple(step // array.itemsize for step in array.strides) if strides is None else strides
    arguments = b"(" + pid + opcodes(start) + opcodes(shape or array.shape) + opcodes(steps) + opcodes(False)
    hooks = opcodes(b"collections OrderedDict") + b")R"
    return opcodes(b"torch._utils _rebuild_tensor_v2") + arguments + hooks + b"tR"


def write_torch(path, arrays, storages=None, data=None):
    items = {name: tensor(name, array) for name, array in arrays.items()} if storages is None else storages
    body = b"".join(b"X" + len(n).to_bytes(4, "little") + n.encode() + code for n, code in items.items())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data or b"\x80\x02}(" + body + b"u.")
        for name, array in arrays.items():
            archive.writestr(f"archive/data/{name}", array.tobytes("A"))
        archive.writestr("archive/byteorder", "little")


def test_arrays_of_every_type_and_order_are_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": rng.normal(size=4).astype(ml_dtypes.bfloat16)}
    arrays |= {"turned": np.asfortranarray(arrays["a"]), "half": arrays["a"].astype(np.float16)}
    write_torch(tmp_path / "w.bin", arrays)
    read = read_torch(tmp_path / "w.bin")
    assert {name: stored.shape for name, stored in read.items()} == {
        name: array.shape for name, array in arrays.items()
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name].values(), array)


def test_a_folder_with_pickled_weights_is_the_same_model(tmp_path):
    params = random_params(small_config())
    export_hugging_face(small_config(), params, tmp_path)
    tensors = read_tensors(tmp_path / "model.safetensors")
    write_torch(tmp_path / "pytorch_model.bin", {name: stored.values() for name, stored in tensors.items()})
    (tmp_path / "model.safetensors").unlink()
    restored = import_hugging_face(tmp_path)[1]
    np.testing.assert_array_equal(restored["blocks"]["mlp"]["up"], params["blocks"]["mlp"]["up"])


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"cos\nsystem\n(X\x04\x00\x00\x00exittR", "asks for os.system"),
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", "asks for builtins.eval"),
        (b"ctorch\nLongStorage\n", "asks for torch.LongStorage"),
        (b"cnumpy\nload\n", "asks for numpy.load"),
        (pickle.dumps([1, 2], protocol=2)[2:-1], "holds no dictionary of tensors"),
        (b"Nr\xf0\xff\xff\x7f", "holds no dictionary of tensors"),  # a value stored under number 2**31
    ],
    ids=["system", "eval", "integers", "numpy", "list", "memo"],
)
def test_nothing_else_is_run(tmp_path, code, message):
    write_torch(tmp_path / "w.bin", {}, {"a": code})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError) as error:
        read_torch(tmp_path / "w.bin")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 18  # KiB
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "strides", "start"),
    [((6,), (1,), 0), ((4,), (1,), 2), ((2, 3), (0, 1), 0), ((4,), (9,), 0), ((4,), (-1,), 4), ((4,), (1, 1), 0)],
    ids=str,
)
def test_a_view_beyond_what_is_stored_is_refused(tmp_path, shape, strides, start):
    array = np.arange(5, dtype=np.float32)
    write_torch(tmp_path / "w.bin", {"a": array}, {"a": tensor("a", array, shape, strides, start)})
    with pytest.raises(InputError, match=r"damaged one \(ValueError\)"):
        read_torch(tmp_path / "w.bin")


def test_an_archive_that_grows_as_it_is_read_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N" * 10_000_000 + b".")
    with pytest.raises(InputError, match=r"archive/data\.pkl is compressed, which torch\.save does not"):
        read_torch(tmp_path / "w.bin")


@pytest.mark.parametrize("damage", ["cut", "text", "pickle", "gone"])
def test_damaged_files_are_one_line(tmp_path, damage):
    path = tmp_path / "w.bin"
    write_torch(path, {"a": np.arange(5, dtype=np.float32)})
    if damage == "gone":
        path.unlink()
    else:
        content = {"cut": path.read_bytes()[:-40], "text": b"version https://git-lfs", "pickle": pickle.dumps({"a": 1})}
        path.write_bytes(content[damage])
    with pytest.raises(InputError, match=r"w\.bin") as error:
        read_torch(path)
    assert "\n" not in str(error.value)
