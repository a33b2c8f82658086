"""The safetensors reader, on good files, broken files and noise."""

import json
import math
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.clients.safetensors import MAX_HEADER_BYTES, read_tensors
from gateway.domain.errors import ArtifactRefused
from tests.fixtures.artifacts import adapter_tensors, safetensors_bytes

SMALL = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([-7.5], np.float32)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "adapter_model.safetensors"


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int = 0, end: int = 4, dtype: Any = "F32", shape: Any = (1,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_it_reads_what_the_reference_library_writes(path: Path) -> None:
    safetensors.numpy.save_file(adapter_tensors(), path, {"format": "pt"})
    read = {tensor.name: tensor for tensor in read_tensors(path)}
    for name, value in adapter_tensors().items():
        assert read[name].shape == value.shape
        assert read[name].dtype == "F32"
        assert read[name].peak == np.abs(value).max()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32", "F64"])
@pytest.mark.parametrize(("values", "peak"), [
    ([0.0, -0.0], 0.0), ([1.0, -2.5, 2.0], 2.5), ([math.nan, 1.0], math.nan), ([1.0, -math.inf], math.inf), ([], 0.0)])
def test_the_peak_is_the_largest_magnitude(path: Path, dtype: str, values: list[float], peak: float) -> None:
    path.write_bytes(safetensors_bytes({"x": np.array(values, np.float64)}, dtype=dtype))
    (tensor,) = read_tensors(path)
    assert tensor.dtype == dtype
    assert tensor.peak == peak or (tensor.peak is not None and math.isnan(tensor.peak) and math.isnan(peak))


def test_a_peak_at_the_very_end_of_many_chunks_is_seen(path: Path) -> None:
    values = np.zeros(5_000_001, np.float32)
    values[-1] = math.inf
    path.write_bytes(safetensors_bytes({"x": values}))
    assert read_tensors(path)[0].peak == math.inf


def test_what_are_no_floats_have_no_peak(path: Path) -> None:
    path.write_bytes(safetensors_bytes({"x": np.arange(3, dtype=np.int64)}))
    assert read_tensors(path)[0].peak is None


@pytest.mark.parametrize(("raw", "words"), [
    (b"", "missing or longer than the file"),
    (b"\x01", "missing or longer than the file"),
    (struct.pack("<Q", 2**63) + b"{}", "missing or longer than the file"),
    (struct.pack("<Q", 0), "missing or longer than the file"),
    (with_header(b"{{"), "not JSON"),
    (with_header(b"[" * 100_000), "not JSON"),
    (with_header(b"\xff\xff"), "not JSON"),
    (with_header(b"[]"), "not a JSON object"),
    (with_header(b" {}"), "not a JSON object"),
    (with_header(b'{"a":1,"a":2}'), "twice"),
    (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
    (with_header({"__metadata__": 1}), "__metadata__"),
    (with_header({"x": entry()}), "end at byte"),
    (with_header({"x": entry()}, b"1234567"), "end at byte"),
    (with_header({}, b"1"), "end at byte"),
    (with_header({"x": entry(4, 8)}, b"12345678"), "gap or an overlap"),
    (with_header({"x": entry(0, 4), "y": entry(0, 4)}, b"12345678"), "gap or an overlap"),
    (with_header({"x": entry(0, 4), "y": entry(8, 12)}, b"123456789012"), "gap or an overlap"),
    (with_header({"x": entry(0, 8)}, b"12345678"), "makes no sense"),
    (with_header({"x": entry(4, 0)}, b"1234"), "makes no sense"),
    (with_header({"x": entry(dtype="F33")}, b"1234"), "makes no sense"),
    (with_header({"x": entry(dtype=["F32"])}, b"1234"), "makes no sense"),
    (with_header({"x": entry(shape=(-1,))}, b"1234"), "makes no sense"),
    (with_header({"x": entry(shape=(True,))}, b"1234"), "makes no sense"),
    (with_header({"x": entry(shape="1")}, b"1234"), "makes no sense"),
    (with_header({"x": entry(shape=(2**62, 2**62, 2**62))}, b"1234"), "makes no sense"),
    (with_header({"x": entry(shape=(1,) * 9)}, b"1234"), "makes no sense"),
    (with_header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"1234"), "makes no sense"),
    (with_header({"x": {"dtype": "F32", "shape": [1]}}, b"1234"), "makes no sense"),
    (with_header({"x": 1}, b"1234"), "makes no sense"),
])
def test_a_malformed_file_is_refused_with_the_reason(path: Path, raw: bytes, words: str) -> None:
    path.write_bytes(raw)
    with pytest.raises(ArtifactRefused, match=words):
        read_tensors(path)


def test_an_oversized_header_is_refused_before_it_is_read(path: Path) -> None:
    with path.open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    with pytest.raises(ArtifactRefused, match=f"more than {MAX_HEADER_BYTES}"):
        read_tensors(path)


def reads_like_the_reference(path: Path) -> None:
    """Refused, or read with the names and shapes that the reference library reads, which must not refuse it then."""
    try:
        ours = read_tensors(path)
    except ArtifactRefused:
        return
    with warnings.catch_warnings(), safetensors.safe_open(path, "numpy") as theirs:
        assert {t.name: list(t.shape) for t in ours} == {
            name: theirs.get_slice(name).get_shape() for name in theirs.keys()}  # noqa: SIM118


_in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@_in_one_folder
@given(length=st.integers(0, 200))
def test_any_truncation_is_refused(path: Path, length: int) -> None:
    whole = safetensors_bytes(SMALL)
    path.write_bytes(whole[:min(length, len(whole) - 1)])
    with pytest.raises(ArtifactRefused):
        read_tensors(path)


@_in_one_folder
@given(position=st.integers(0), bit=st.integers(0, 7))
def test_any_flipped_bit_is_refused_or_harmless(path: Path, position: int, bit: int) -> None:
    raw = bytearray(safetensors_bytes(SMALL))
    raw[position % len(raw)] ^= 1 << bit
    path.write_bytes(raw)
    reads_like_the_reference(path)


@_in_one_folder
@given(header=st.dictionaries(
    st.text(max_size=5),
    st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "BF16", "I8", "F4", "?"]), "shape": st.lists(st.integers(-1, 9), max_size=3),
        "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3)}),
    max_size=3), size=st.integers(0, 40))
def test_any_header_is_refused_or_harmless(path: Path, header: dict[str, Any], size: int) -> None:
    path.write_bytes(with_header(header, b"\x00" * size))
    reads_like_the_reference(path)


@_in_one_folder
@given(noise=st.binary(max_size=100))
def test_noise_is_refused_or_harmless(path: Path, noise: bytes) -> None:
    path.write_bytes(with_header(noise))
    reads_like_the_reference(path)
