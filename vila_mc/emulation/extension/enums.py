"""The enums of the compiled extension.

Source: common/util/pybind_helper.h, pytorch/csrc/extensions/pybind.cpp.
"""

import enum
from importlib.metadata import version
from typing import Any

VERSION = tuple(int(part) for part in version("transformer_engine").split(".")[:2])
"""Of the Transformer Engine whose Python code is executed."""


class DType(enum.Enum):
    """As pybind makes it: no integer, but convertible to one and compared by it."""

    kByte = 0  # noqa: N815
    kInt32 = 2  # noqa: N815
    kFloat32 = 4  # noqa: N815
    kFloat16 = 5  # noqa: N815
    kBFloat16 = 6  # noqa: N815
    kFloat8E4M3 = 7  # noqa: N815
    kFloat8E5M2 = 8  # noqa: N815
    kFloat4E2M1 = 10  # noqa: N815

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__

    def __eq__(self, other: object) -> bool:
        try:
            return bool(self.value == int(other))  # type: ignore[call-overload]
        except (TypeError, ValueError):
            return NotImplemented

    def __hash__(self) -> int:
        return hash(self.value)


class FP8FwdTensors(enum.IntEnum):
    """Rows of a module's scales in the forward pass."""

    GEMM1_INPUT = 0
    GEMM1_WEIGHT = 1
    GEMM1_OUTPUT = 2
    GEMM2_INPUT = 3
    GEMM2_WEIGHT = 4
    GEMM2_OUTPUT = 5
    GEMM3_INPUT = 6
    GEMM3_WEIGHT = 7
    GEMM3_OUTPUT = 8


class FP8BwdTensors(enum.IntEnum):
    """Rows of a module's scales in the backward pass."""

    GRAD_OUTPUT1 = 0
    GRAD_INPUT1 = 1
    GRAD_OUTPUT2 = 2
    GRAD_INPUT2 = 3
    GRAD_OUTPUT3 = 4
    GRAD_INPUT3 = 5


class CommOverlapType(enum.IntEnum):
    """Which collective a GEMM overlaps with."""

    RS = 0
    AG = 1


_BACKENDS = {"NVTE_No_Backend": -1, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2}
_OLD_BACKENDS = {"NVTE_F16_max512_seqlen": 0}
NVTE_Fused_Attn_Backend = enum.IntEnum(  # type: ignore[misc]
    "NVTE_Fused_Attn_Backend", _BACKENDS if VERSION >= (2, 16) else {**_OLD_BACKENDS, **_BACKENDS}
)


class _Open(type):
    """An enum that has any member it is asked for: its values reach no emulated function."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        member: Any = cls()
        member.name = name
        member.value = len(cls.members)
        cls.members[name] = member
        type.__setattr__(cls, name, member)
        return member


def _open_enum(name: str) -> _Open:
    return _Open(
        name,
        (),
        {
            "members": {},
            "__int__": lambda self: self.value,
            "__index__": lambda self: self.value,
            "__repr__": lambda self: f"{name}.{self.name}",
        },
    )


OPEN = {
    name: _open_enum(name)
    for name in (
        "NVTE_Bias_Type",
        "NVTE_Mask_Type",
        "NVTE_Softmax_Type",
        "NVTE_QKV_Format",
        "NVTE_QKV_Layout",
        "NVTEScalingMode",
        "NVTERoutingMapFormat",
        "NVTEQBHistogramMode",
        "Float8BlockScaleTensorFormat",
        "CommOverlapAlgo",
        "CommGemmOverlapRole",
    )
}


class CommOverlapCore:
    """Base class of the overlaps; Transformer Engine asks for instances of it."""


class CommOverlapBase(CommOverlapCore): ...


class CommOverlapP2PBase(CommOverlapCore): ...


class CommOverlapHelper:
    def __init__(self, *group: Any) -> None:
        raise NotImplementedError("overlap of GEMMs with communication is not emulated on a CPU")


class CommOverlap(CommOverlapHelper, CommOverlapBase): ...


class CommOverlapP2P(CommOverlapHelper, CommOverlapP2PBase): ...


class FP8TensorMeta: ...
