"""A rank that is left alone says so in one line, whatever library noticed."""

import contextlib
from pathlib import Path

import pytest

from tests.support.tiny import tiny_run
from vila_mc.errors import ExitCode, HeldOutputError, SetupError
from vila_mc.observe.history import End, read_history
from vila_mc.train import rank
from vila_mc.train.rank import LAUNCHED_BY_US, lost_peer, rank_and_world_size
from vila_mc.train.rank_status import STATUS_DIRECTORY

LOST = {
    "gloo, closed": "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by "
    "peer [127.0.0.1]:48911",
    "gloo, reset": "[pair.cc:534] Read error [10.0.0.2]:2044: Connection reset by peer",
    "gloo, timeout": "[unbound_buffer.cc:81] Timed out waiting 60000ms for recv operation",
    "gloo, another's timeout": "[pair.cc:460] Application timeout caused pair closure",
    "gloo, start": "Gloo connectFullMesh failed with [pair.cc:144] no error",
    "NCCL, aborted": "NCCL communicator was aborted on rank 2.  Original reason for failure was: "
    "[Rank 2] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=10, OpType=BROADCAST, "
    "Timeout(ms)=1800000) ran for 1805457 milliseconds before timing out.",
    "NCCL, watchdog": "[Rank 0] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=6, OpType=ALLREDUCE, Timeout(ms)=60000) ran for 60099 milliseconds",
    "NCCL, watchdog's end": "[PG 0 Rank 1] Process group watchdog thread terminated with "
    "exception: [Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1)",
    "NCCL, remote": "NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was "
    "a network error, NCCL version 2.21.5\nncclRemoteError: A call failed possibly due to a "
    "network error or a remote process exiting prematurely.\nLast error:\nsocketProgress: "
    "Connection closed by remote peer node1<53044>",
    "NCCL, system": "NCCL error in: NCCLUtils.hpp:275, unhandled system error (run with "
    "NCCL_DEBUG=INFO for details), NCCL version 2.21.5\nncclSystemError: System call (e.g. socket, "
    "malloc) or external library call failed or device error.",
    "store, closed": "failed to recv, got 0 bytes. Connection was likely closed. Did the remote "
    "server shutdown or crash?",
    "store, timeout": "wait timeout after 60000ms, keys: /default_pg/0//cpu//0",
}


@pytest.mark.parametrize("said", LOST.values(), ids=list(LOST))
def test_a_lost_rank_is_one_line(said: str) -> None:
    lost = lost_peer(RuntimeError(said))
    assert lost is not None
    assert str(lost).startswith("lost contact with another rank: ")
    assert "\n" not in str(lost)
    assert len(str(lost)) < 250


@pytest.mark.parametrize(
    "said",
    [
        "",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "NCCL error in: ProcessGroupNCCL.cpp:1, unhandled cuda error\nncclUnhandledCudaError: Call "
        "to CUDA function failed.",
        "NCCL error: invalid usage\nncclInvalidUsage: This usually reflects invalid usage of NCCL.",
        "mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)",
    ],
)
def test_our_own_faults_keep_their_traceback(said: str) -> None:
    assert lost_peer(RuntimeError(said)) is None


STARTED = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def test_what_a_launcher_says() -> None:
    assert rank_and_world_size({}) == (0, 1)
    assert rank_and_world_size(STARTED) == (1, 2)
    ours = {"RANK": "1", "WORLD_SIZE": "2", LAUNCHED_BY_US: "4242"}
    assert rank_and_world_size(ours) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": None}, "WORLD_SIZE is not set"),
        ({"RANK": None}, "RANK is not set"),
        ({"MASTER_PORT": ""}, "MASTER_PORT is not set"),
        ({"RANK": "2"}, "RANK is 2, WORLD_SIZE is 2"),
        ({"RANK": "-1"}, "RANK is -1"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
    ],
)
def test_half_of_a_launcher_is_refused(changes: dict[str, str | None], said: str) -> None:
    environment = {name: value for name, value in (STARTED | changes).items() if value is not None}
    with pytest.raises(SetupError, match=said):
        rank_and_world_size(environment)


ENDS: dict[str, tuple[Exception | None, list[tuple[ExitCode, str]]]] = {
    "stopped": (None, [(ExitCode.REQUEUE, "")]),
    "a mistake": (SetupError("the disk is gone."), [(ExitCode.USER_ERROR, "the disk is gone.")]),
    "held": (HeldOutputError("another run is writing there."), []),
    "a fault": (KeyError("what"), [(ExitCode.FAULT, "KeyError: 'what'")]),
}


@pytest.mark.parametrize("case", ENDS)
@pytest.mark.parametrize("is_replaced", [True, False])
def test_under_another_launcher_a_rank_writes_the_end_of_its_own_output_alone(
    case: str, is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    failure, expected = ENDS[case]

    def train(*_: object) -> ExitCode:
        if is_replaced:
            output.rename(tmp_path / "elsewhere")
            output.mkdir()
        if failure is not None:
            raise failure
        return ExitCode.REQUEUE

    for name, stand_in in (("_train", train), ("end_at_once_when_stopped", lambda: None)):
        monkeypatch.setattr(rank, name, stand_in)
    monkeypatch.setattr(rank, "end_with_parent", lambda *_: None)
    for name in (STATUS_DIRECTORY, LAUNCHED_BY_US, "RANK"):
        monkeypatch.delenv(name, raising=False)
    with contextlib.suppress(KeyError):  # a fault of ours keeps its traceback
        rank.train_rank(tiny_run(train={"output": str(output)}))
    ends = [(end.code, end.cause) for end in read_history(output) if isinstance(end, End)]
    assert ends == ([] if is_replaced else expected)
