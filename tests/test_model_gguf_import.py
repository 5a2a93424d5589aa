"""Import of GGUF files: exact weights and token ids, and one line for damaged, hostile or foreign files."""

import dataclasses
import json
import struct

import gguf
import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.model.checkpoint_io.gguf import export_gguf, import_gguf
from diversity_jax.model.checkpoint_io.gguf_file import DTYPES, read_gguf
from diversity_jax.model.convert import main, read_model
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests.test_model_gguf import TEXTS, VARIANTS, files, model, train_byte_level, train_sentencepiece


def own_tokenizer(kind, folder):
    """A tokenizer of each kind, with the id of its end of text where the file does not say."""
    if kind == "bytes":
        return "bytes", None
    if kind == "sentencepiece":
        return train_sentencepiece(folder / "tokenizer.model"), None
    return train_byte_level(folder / "tokenizer.json"), 0


def write(folder, kind="bytes", dtype="float32", **fields):
    config, params = model(**(VARIANTS[kind] | fields))
    name, end = own_tokenizer(kind, folder)
    return config, params, export_gguf(config, params, folder / "m.gguf", tokenizer=files(name, end), dtype=dtype)


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", VARIANTS)
def test_what_is_written_is_read_bit_for_bit(tmp_path, kind, dtype):
    """By us, and by the gguf package; a second trip changes nothing more, whatever the first one rounded."""
    config, params, path = write(tmp_path, kind, dtype)
    back, restored, file = import_gguf(path, compute_dtype="float32", initializer_range=config.initializer_range)
    assert back == dataclasses.replace(config, num_kv_heads=config.kv_heads)
    theirs = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in gguf.GGUFReader(path).tensors}
    assert set(theirs) == set(file.tensors)
    for name, values in theirs.items():
        np.testing.assert_array_equal(file.tensors[name].values(), values.reshape(file.tensors[name].shape))
    if dtype == "float32":
        assert_same(restored, params)
    name, end = own_tokenizer(kind, tmp_path)
    again = export_gguf(back, restored, tmp_path / "again.gguf", tokenizer=files(name, end), dtype=dtype)
    assert_same(import_gguf(again)[1], restored)


@pytest.mark.parametrize("kind", VARIANTS)
def test_an_import_brings_its_tokenizer_and_leaves_again_the_same(tmp_path, kind):
    _, params, path = write(tmp_path, kind)
    main(["import", str(path), str(tmp_path / "ours")])
    assert_same(read_model(tmp_path / "ours")[1], params)
    ours, theirs = (
        load_tokenizer(str(tmp_path / "ours" / "tokenizer")),
        load_tokenizer(str(own_tokenizer(kind, tmp_path)[0])),
    )
    for text in TEXTS:
        assert ours.encode_batch([text])[0].tolist() == theirs.encode_batch([text])[0].tolist()
    assert ours.end_of_text_id == theirs.end_of_text_id
    main(["gguf", str(tmp_path / "ours"), str(tmp_path / "again.gguf")])
    first, second = read_gguf(path).entries, read_gguf(tmp_path / "again.gguf").entries
    assert set(first) == set(second)
    for key in set(first) - {"general.name"}:
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)
    main(["export", str(tmp_path / "ours"), str(tmp_path / "hf")])
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["eos_token_id"] == theirs.end_of_text_id
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text())["eos_token_id"] == theirs.end_of_text_id


QUANTISED = [
    kind
    for kind in gguf.GGMLQuantizationType
    if kind.name.startswith(("Q", "IQ", "TQ", "MXFP")) and kind.name not in ("Q8_K", "Q8_1", "Q1_0")
]


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: kind.name)
def test_quantised_tensors_are_those_of_the_gguf_package(tmp_path, kind):
    """Random blocks of every type that it dequantises."""
    size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(0).integers(0, 256, (4, 2 * size[1]), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "q.gguf", "llama")
    writer.add_tensor("t", blocks, raw_dtype=kind)
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    tensor = read_gguf(tmp_path / "q.gguf").tensors["t"]
    assert tensor.shape == (4, 2 * size[0])
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(tensor.values(), gguf.dequantize(blocks, kind))


def edited(path, edit):
    data = bytearray(path.read_bytes())
    path.write_bytes(edit(data))
    return path


def replaced(old, new):
    return lambda data: data.replace(old, new, 1)


def count(key, value):
    """Sets the number of elements that a list claims to have."""

    def edit(data):
        at = data.index(key.encode()) + len(key) + 8
        data[at : at + 8] = struct.pack("<Q", value)
        return data

    return edit


DAMAGE = {
    "empty": (lambda data: b"", "GGUF file"),
    "no magic": (lambda data: b"JUNK" + data[4:], "is no GGUF file"),
    "version": (lambda data: data[:4] + struct.pack("<I", 9) + data[8:], "version 9"),
    "big-endian": (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
    "cut header": (lambda data: data[:900], "within its header"),
    "cut tensor": (lambda data: data[:-200], "before"),
    "many entries": (lambda data: data[:16] + struct.pack("<Q", 2**62) + data[24:], "is damaged"),
    "many tensors": (lambda data: data[:8] + struct.pack("<Q", 2**62) + data[16:], "is damaged"),
    "many types": (count("tokenizer.ggml.token_type", 2**61), "within its header"),
    "many tokens": (count("tokenizer.ggml.tokens", 2**61), "is damaged"),
    "long text": (lambda data: data[:24] + struct.pack("<Q", 2**63) + data[32:], "within its header"),
    "no UTF-8": (replaced(b"general.name", b"general.\xff\xff\xff\xff"), "no UTF-8"),
    "another family": (
        replaced(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"),
        "general.architecture is 'gemma'",
    ),
    "unknown part": (replaced(b"llama.block_count", b"llama.expert_coun"), "llama.expert_coun is 2"),
    "a missing size": (replaced(b"llama.block_count", b"other.block_count"), "has no num_hidden_layers"),
    "no length": (replaced(b"llama.context_length", b"other.context_length"), "has no llama.context_length"),
    "no epsilon": (replaced(b"llama.attention.layer_norm_r", b"other.attention.layer_norm_r"), "_rms_epsilon; fetch"),
    "fewer layers": (replaced(b"block_count\x04\0\0\0\x02", b"block_count\x04\0\0\0\x01"), "holds blk.1.attn_norm"),
    "more layers": (replaced(b"block_count\x04\0\0\0\x02", b"block_count\x04\0\0\0\x03"), "lacks blk.2.attn_norm"),
    "another width": (
        replaced(b"feed_forward_length\x04\0\0\0\x60", b"feed_forward_length\x04\0\0\0\x61"),
        "expected [97, 64]",
    ),
    "a long name": (
        replaced(b"\x14\0\0\0\0\0\0\0llama.context_length", struct.pack("<Q", 600) + b"llama.context_length" * 30),
        "a name of 600 characters",
    ),
    "a renamed tensor": (replaced(b"output_norm.weight", b"outputtnorm.weight"), "lacks output_norm.weight"),
    "tensor type": (lambda data: _first_type(data, 77), "of type 77"),
    "tensor of integers": (lambda data: _first_type(data, 26), "of type I32"),
    "end of text": (
        replaced(b"eos_token_id\x04\0\0\0\x01\0", b"eos_token_id\x04\0\0\0\x01\x09"),
        "eos_token_id is 2305",
    ),
}


def _first_type(data, number):
    at = data.index(b"token_embd.weight") + len(b"token_embd.weight") + 4 + 16
    data[at : at + 4] = struct.pack("<I", number)
    return data


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"llama.attention.causal": False}, "attention.causal is False; only true"),
        ({"llama.rope.scaling.attn_factor": 1.7}, "attn_factor is 1.7; only yarn's"),
    ],
    ids=str,
)
def test_entries_that_llama_cpp_obeys_in_any_model_are_not_overlooked(tmp_path, monkeypatch, entry, message):
    file = read_gguf(write(tmp_path)[2])
    changed = dataclasses.replace(file, entries={**file.entries, **entry})
    monkeypatch.setattr("diversity_jax.model.checkpoint_io.gguf.read_gguf", lambda path: changed)
    with pytest.raises(InputError, match=message):
        import_gguf(file.path)


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_or_foreign_is_one_line(tmp_path, capsys, name):
    edit, message = DAMAGE[name]
    path = edited(write(tmp_path)[2], edit)
    with pytest.raises(SystemExit) as error:
        main(["import", str(path), str(tmp_path / "ours")])
    shown = capsys.readouterr().err
    assert error.value.code == 2
    assert message in shown
    assert shown.count("\n") == 1
    assert not (tmp_path / "ours" / "model.json").exists()
    assert not (tmp_path / "ours" / "tokenizer").exists()


def test_every_cut_and_flipped_byte_is_one_line_or_read(tmp_path):
    """Nothing but InputError leaves the reader, wherever a file ends and whichever byte of its header is wrong."""
    path = write(tmp_path, num_layers=1, hidden_size=16, num_heads=2)[2]
    data, rng = path.read_bytes(), np.random.default_rng(0)
    header = len(data) - sum(int(np.prod(t.shape)) * 4 for t in read_gguf(path).tensors.values())
    for at in rng.integers(0, header, 40):
        flipped = bytearray(data)
        flipped[at] ^= int(rng.integers(1, 256))
        for changed in (data[:at], bytes(flipped)):
            path.write_bytes(changed)
            try:
                import_gguf(path)
            except InputError as error:
                assert "\n" not in str(error)  # noqa: PT017 - most changes are errors, some are not


def test_a_model_in_parts_is_read_from_its_first(tmp_path):
    _, params, path = write(tmp_path, num_layers=1)
    reader = gguf.GGUFReader(path)
    count = len(reader.tensors)
    for number, tensors in enumerate((reader.tensors[:4], reader.tensors[4:])):
        part = tmp_path / f"m-{number + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(part, "llama")
        for key, field in reader.fields.items() if number == 0 else ():
            if not key.startswith("GGUF.") and key != "general.architecture":
                writer.add_key_value(key, field.contents(), field.types[0], field.types[-1])
        writer.add_uint16("split.count", 2)
        writer.add_uint16("split.no", number)
        writer.add_int32("split.tensors.count", count)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
            write_part()
        writer.close()
    assert_same(import_gguf(tmp_path / "m-00001-of-00002.gguf")[1], params)
    with pytest.raises(InputError, match="give the one named"):
        import_gguf(tmp_path / "m-00002-of-00002.gguf")
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(InputError, match="no such file; check the name, and that all parts"):
        import_gguf(tmp_path / "m-00001-of-00002.gguf")
