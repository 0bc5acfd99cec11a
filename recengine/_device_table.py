"""Embedding rows in the memory of a GPU."""

from __future__ import annotations

from recengine import _ops
from recengine._device import CudaArray, call_device
from recengine._embedding_table import EmbeddingTable, FusedLayout, FusedType, expect_one_of
from recengine.errors import InputError


class DeviceTable:
    """Embedding rows [rows, dim] in the memory of a GPU; immutable, shared by all calls.

    The copy's rows begin at multiples of 16 bytes, which is what the kernels read fastest, unless
    that would add more than a third to them.

    Args:
        table: rows on the CPU, which are copied.
        device: the GPU.

    Raises:
        DeviceError: there is no such GPU, or it has too little memory.
    """

    def __init__(self, table: EmbeddingTable, device: int = 0) -> None:
        self._native = _ops.DeviceTable.copy(table._native, device)

    @classmethod
    def from_array(
        cls, data: CudaArray, scales: CudaArray | None = None, *, name: str = "table"
    ) -> DeviceTable:
        """Rows that are on a GPU already, borrowed as they are.

        Args:
            data: float32, float16, bfloat16, uint16 (the bits of bfloat16) or int8 [rows, dim] in C
                order, at least 1 row. Rows that begin at multiples of 16 bytes are read fastest.
            scales: float32 [rows], for int8 only: value = scale * code.
            name: what messages call the table.

        Raises:
            InputError: an array is not on a GPU, or dtype, shape or the presence of scales is not
                as said above.
        """
        device = call_device("[device_table]", data=data, scales=scales)
        if device is None:
            raise InputError("[device_table] data: expected an array on a GPU")
        table = cls.__new__(cls)
        table._native = _ops.DeviceTable.borrow(
            name,
            device.read("[device_table] data", data),
            None if scales is None else device.read("[device_table] scales", scales),
        )
        return table

    @classmethod
    def from_fused(
        cls,
        data: CudaArray,
        dim: int,
        row_type: FusedType,
        layout: FusedLayout = "tbe",
        *,
        name: str = "table",
    ) -> DeviceTable:
        """Quantised rows that are on a GPU already, see `EmbeddingTable.from_fused`.

        Raises:
            InputError: the array is not on a GPU, or a row has too few bytes.
        """
        expect_one_of("row_type", row_type, ("int8", "int4"))
        expect_one_of("layout", layout, ("tbe", "rowwise"))
        device = call_device("[device_table]", data=data)
        if device is None:
            raise InputError("[device_table] data: expected an array on a GPU")
        table = cls.__new__(cls)
        table._native = _ops.DeviceTable.borrow_fused(
            name,
            device.read("[device_table] data", data),
            dim,
            row_type == "int4",
            layout == "rowwise",
        )
        return table

    @property
    def name(self) -> str:
        """What messages call the table."""
        return self._native.name

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self._native.rows

    @property
    def dim(self) -> int:
        """Values in a row."""
        return self._native.dim

    @property
    def device(self) -> int:
        """The GPU that it is on."""
        return self._native.device
