"""Embedding rows as they are stored, and how values become such rows."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from recengine import _ops
from recengine._arrays import as_numpy, cast_array
from recengine.errors import InputError

RowType = Literal["fp32", "fp16", "bf16", "int8", "int4"]
FusedType = Literal["int8", "int4"]
FusedLayout = Literal["tbe", "rowwise"]

_ROW_TYPES = ("fp32", "fp16", "bf16", "int8", "int4")


class EmbeddingTable:
    """Embedding rows [rows, dim] as they are stored.

    fp32, fp16 and bf16 rows are the values; int8 rows are codes with one scale a row beside them;
    fused rows (`from_fused`) carry scale and bias inline. The arrays are borrowed, not copied; do
    not change them while an operation runs.

    Args:
        data: float32, float16, uint16 (the bits of bfloat16), bfloat16 of ml_dtypes, or int8
            [rows, dim] in C order. Rows that begin at multiples of 64 bytes are read fastest.
        scales: float32 [rows], for int8 only: value = scale * code.
        name: what messages call the table.

    Raises:
        InputError: the dtype, the shape or the presence of scales is not as said above.
    """

    def __init__(
        self, data: npt.ArrayLike, scales: npt.ArrayLike | None = None, *, name: str = "table"
    ) -> None:
        array = np.require(as_numpy("[embedding_table] data", data), requirements=["C", "A"])
        self._native = _ops.EmbeddingTable(
            name,
            array.view(np.uint16) if array.dtype.name == "bfloat16" else array,
            None if scales is None else cast_array("[embedding_table] scales", scales, np.float32),
        )
        self._layout: FusedLayout | None = None

    @classmethod
    def from_fused(
        cls,
        data: npt.ArrayLike,
        dim: int,
        row_type: FusedType,
        layout: FusedLayout = "tbe",
        *,
        name: str = "table",
    ) -> EmbeddingTable:
        """Quantised rows as FBGEMM, TorchRec and torch lay them out, borrowed as they are.

        value = scale * code + bias, codes unsigned; of a byte with two 4-bit codes the first is the
        low half.

        Args:
            data: uint8 [rows, bytes], a row's bytes and, if wanted, padding behind them.
            dim: values in a row.
            row_type: "int8" or "int4".
            layout: "tbe": fp16 scale, fp16 bias, codes (the weights of FBGEMM's
                IntNBitTableBatchedEmbeddingBagsCodegen, which TorchRec's quantised collections
                hold). "rowwise": codes, then scale and bias, fp32 for int8 and fp16 for int4
                (torch.ops.quantized.embedding_bag_byte_prepack and ..._4bit_prepack).
            name: what messages call the table.

        Raises:
            InputError: a row has too few bytes, or a scale or bias is not finite.
        """
        array = cast_array("[embedding_table] data", data, np.uint8)
        expect_one_of("row_type", row_type, ("int8", "int4"))
        expect_one_of("layout", layout, ("tbe", "rowwise"))
        table = cls.__new__(cls)
        table._native = _ops.EmbeddingTable.fused(
            name, array, dim, row_type == "int4", layout == "rowwise"
        )
        table._layout = layout
        _check_finite(f'[embedding_table] "{name}": scale and bias', table._scale_and_bias())
        return table

    @classmethod
    def from_array(
        cls, values: npt.ArrayLike, row_type: RowType = "fp32", *, name: str = "table"
    ) -> EmbeddingTable:
        """Stores float values [rows, dim] as rows of `row_type`; int4 as `fuse_rows` does.

        Raises:
            InputError: a value is not finite, or beyond fp16 or bf16 where these hold it.
        """
        expect_one_of("row_type", row_type, _ROW_TYPES)
        array = cast_array("[embedding_table] values", values, np.float32)
        _check_finite(f'[embedding_table] "{name}"', array)
        if row_type == "int8":
            return cls(*quantize_rows(array), name=name)
        if row_type == "int4":
            return cls.from_fused(fuse_rows(array, "int4"), array.shape[1], "int4", name=name)
        if row_type == "fp16":
            with np.errstate(over="ignore"):
                array = array.astype(np.float16)
        if row_type == "bf16":
            bits = array.view(np.uint32)
            array = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        table = cls(array, name=name)
        _check_finite(f'[embedding_table] "{name}" as {row_type}', table.to_array())
        return table

    @property
    def data(self) -> npt.NDArray[Any]:
        """The stored rows: [rows, dim], or uint8 [rows, bytes] of fused rows."""
        return self._native.data

    @property
    def scales(self) -> npt.NDArray[np.float32] | None:
        """The scales [rows] that lie beside int8 rows, else None."""
        return self._native.scales

    @property
    def name(self) -> str:
        """What messages call the table."""
        return self._native.name

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.data.shape[0])

    @property
    def dim(self) -> int:
        """Values in a row."""
        return self._native.dim

    @property
    def row_type(self) -> RowType:
        """How a row is stored."""
        return cast(RowType, self._native.row_type)

    @property
    def huge_page_bytes(self) -> int:
        """How many bytes of the rows lie in pages of 2 MiB now: 0 where the system gives none."""
        return _ops.huge_page_bytes(self.data)

    def in_huge_pages(self) -> EmbeddingTable:
        """A copy in pages of 2 MiB, where the system gives them; see `huge_page_bytes`.

        Of a table of many megabytes, random rows are read faster from them: a page of 4 KiB, as
        memory-mapped files have, costs a walk through page tables besides.
        """
        if self._layout is not None:
            row_type = cast(FusedType, self.row_type)
            data = _in_huge_pages(self.data)
            return self.from_fused(data, self.dim, row_type, self._layout, name=self.name)
        scales = None if self.scales is None else _in_huge_pages(self.scales)
        return EmbeddingTable(_in_huge_pages(self.data), scales, name=self.name)

    def to_array(self) -> npt.NDArray[np.float32]:
        """The values that the rows stand for, float32 [rows, dim]."""
        if self._layout is not None:
            scale_and_bias = self._scale_and_bias()
            return self._fused_codes() * scale_and_bias[:, :1] + scale_and_bias[:, 1:]
        if self.row_type == "bf16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        values = self.data.astype(np.float32)
        return values if self.scales is None else values * self.scales[:, None]

    def _scale_and_bias(self) -> npt.NDArray[np.float32]:
        """Of every fused row, float32 [rows, 2]."""
        half = self._layout == "tbe" or self.row_type == "int4"
        begin = 0 if self._layout == "tbe" else self._code_bytes()
        stored = self.data[:, begin : begin + (4 if half else 8)]
        dtype = np.float16 if half else np.float32
        return np.ascontiguousarray(stored).view(dtype).astype(np.float32)

    def _fused_codes(self) -> npt.NDArray[np.float32]:
        begin = 4 if self._layout == "tbe" else 0
        stored = self.data[:, begin : begin + self._code_bytes()]
        if self.row_type == "int8":
            return stored.astype(np.float32)
        pairs = np.stack([stored & 15, stored >> 4], axis=2)
        return pairs.reshape(self.rows, 2 * self._code_bytes())[:, : self.dim].astype(np.float32)

    def _code_bytes(self) -> int:
        return self.dim if self.row_type == "int8" else (self.dim + 1) // 2


def _in_huge_pages(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return _ops.copy_to_huge_pages(array).view(array.dtype).reshape(array.shape)


def quantize_rows(
    values: npt.ArrayLike,
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Symmetric int8 codes with one scale a row: scale = max|x| / 127, code = round(x / scale).

    Args:
        values: float [rows, dim], finite.

    Returns:
        Codes int8 [rows, dim] and scales float32 [rows]; a row of zeros has scale 0.
    """
    array = _matrix("[quantize_rows] values", values)
    scales = np.abs(array).max(axis=1, initial=0) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    codes = np.clip(np.rint(array / divisors[:, None]), -127, 127)
    return codes.astype(np.int8), scales


def fuse_rows(
    values: npt.ArrayLike, row_type: FusedType, layout: FusedLayout = "tbe"
) -> npt.NDArray[np.uint8]:
    """Codes from a row's smallest to its largest value, with scale and bias inline.

    Args:
        values: float [rows, dim], finite.
        row_type: "int8" or "int4".
        layout: see `EmbeddingTable.from_fused`.

    Returns:
        uint8 [rows, bytes], without padding. A value is off by at most about half a scale.

    Raises:
        InputError: a scale or bias is beyond fp16 where the layout has these.
    """
    expect_one_of("row_type", row_type, ("int8", "int4"))
    expect_one_of("layout", layout, ("tbe", "rowwise"))
    array = _matrix("[fuse_rows] values", values)
    if array.shape[1] == 0:
        raise InputError("[fuse_rows] values: expected dim at least 1, found 0")
    dtype = np.float16 if layout == "tbe" or row_type == "int4" else np.float32
    steps = 255 if row_type == "int8" else 15
    with np.errstate(over="ignore"):
        lowest = array.min(axis=1)
        bias = lowest.astype(dtype)
        bias = np.where(bias > lowest, np.nextafter(bias, dtype(-np.inf)), bias)
        exact = (array.max(axis=1) - bias.astype(np.float32)) / np.float32(steps)
        scale = exact.astype(dtype)
        scale = np.where(scale < exact, np.nextafter(scale, dtype(np.inf)), scale)
    scale_and_bias = np.stack([scale, bias], axis=1)
    _check_finite(f"[fuse_rows] scale and bias as {np.dtype(dtype)}", scale_and_bias)
    divisors = np.where(scale > 0, scale, 1).astype(np.float32)
    offsets = array - bias[:, None].astype(np.float32)
    codes = np.clip(np.rint(offsets / divisors[:, None]), 0, steps).astype(np.uint8)
    if row_type == "int4":
        if codes.shape[1] % 2 == 1:
            codes = np.pad(codes, ((0, 0), (0, 1)))
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    inline = scale_and_bias.view(np.uint8)
    return np.hstack([inline, codes] if layout == "tbe" else [codes, inline])


def _matrix(name: str, values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    array = cast_array(name, values, np.float32)
    if array.ndim != 2:
        raise InputError(f"{name}: expected rank 2, found {array.ndim}")
    return array


def expect_one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises InputError unless the argument is one that is known."""
    if value not in known:
        expected = ", ".join(known[:-1]) + f" or {known[-1]}"
        raise InputError(f"[embedding_table] {name}: expected {expected}, found {value!r}")


def _check_finite(name: str, array: npt.NDArray[Any]) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if bad.size > 0:
        raise InputError(f"{name}: row {bad[0, 0]}: expected finite values")
