"""Settings that every test shares."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks share the machine's cores
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # compiling costs more than the tests gain

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """What every process of the tests needs.

    GPUs are hidden from all tests but those of ``-m gpu``: ranks are more than most have. And a
    shell has what it starts in the background ignore Ctrl-C, as then all that tests start would do.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``gpu`` where there is none, and ``matrix`` unless it is asked for."""
    for test in items:
        if test.get_closest_marker("matrix") and "matrix" not in test.config.option.markexpr:
            test.add_marker(pytest.mark.skip(reason="one of a matrix: -m matrix runs it"))
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch  # only where a test asks for it: the import takes seconds

    if not torch.cuda.is_available():
        for test in gpu_tests:
            test.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and -m gpu"))
