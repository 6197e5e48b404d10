"""Facts of the emulated GPU and its libraries.

Source: pytorch/csrc/extensions/misc.cpp, attention.cpp.
"""

from typing import Any

from vila_mc.emulation.extension import enums

_CUDNN_VERSION = 92400
_CUBLASLT_VERSION = 130100


def get_cudnn_version() -> int:
    return _CUDNN_VERSION


def get_cublasLt_version() -> int:  # noqa: N802
    return _CUBLASLT_VERSION


def get_num_cublas_streams() -> int:
    return 4


def get_stream_priority_range(device_id: int | None = None) -> tuple[int, int]:
    return 0, -5


def device_supports_multicast(device_id: int | None = None) -> bool:
    return False


def ubuf_built_with_mpi() -> bool:
    return False


def get_fused_attn_backend(fused_attn_params: Any, *older: Any) -> Any:
    """No fused attention: Transformer Engine then takes its unfused kernels.

    Source: pytorch/csrc/extensions/attention.cpp. From 2.20 on a reason comes with the answer.
    """
    none = enums.NVTE_Fused_Attn_Backend["NVTE_No_Backend"]
    reason = "fused attention is not emulated on a CPU"
    return (none, reason) if enums.VERSION >= (2, 20) else none
