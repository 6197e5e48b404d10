"""Nobody gets into a run through its ports: one machine opens none to others."""

import pickle
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch.distributed as dist

from tests.support import forked
from tests.support.launching import (
    Launcher,
    finish,
    ranks_of,
    steps_done,
    training,
    wait_until,
    write_recipe,
)
from tests.support.tiny_data import write_dataset
from vila_mc.errors import ExitCode

MANY = ("--train.steps", 100_000, "--train.save_every", 100_000)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return write_recipe(folder / "recipe.yaml", *write_dataset(folder))


def _listeners(process: Launcher) -> set[Any]:
    """Addresses on which a launcher and all that it started accept connections."""
    parent = psutil.Process(process.pid)
    return {
        connection.laddr
        for one in (parent, *parent.children(recursive=True))
        for connection in one.net_connections(kind="tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def _is_loopback(address: Any) -> bool:
    return address.ip.startswith("127.") or address.ip in ("::1", "::ffff:127.0.0.1")


@contextmanager
def _to_be_stopped(process: Launcher, output: Path) -> Iterator[None]:
    """A run that trains; it is asked to stop at the end, and does."""
    wait_until(lambda: steps_done(output) >= 2, "step 2")
    yield
    steps = steps_done(output)
    wait_until(lambda: steps_done(output) > steps, "another step")
    process.terminate()
    _assert_stopped(process)


def _assert_stopped(process: Launcher) -> None:
    ended = finish(process)
    assert ended.code == ExitCode.REQUEUE, ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
def test_a_run_on_one_machine_listens_to_itself_alone(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("--config", recipe, "--ranks", 2, "--parallel.pipeline", 2, *MANY)
    with (
        training(*command, "--train.output", output) as process,
        _to_be_stopped(process, output),
    ):
        listeners = _listeners(process)
        assert listeners  # of gloo
        assert all(_is_loopback(address) for address in listeners), listeners
        # Where ranks leave their addresses for each other is no port at all, and private.
        (store,) = {rank.environ()["VILA_MC_STORE_FILE"] for rank in ranks_of(process)}
        assert stat.S_IMODE(Path(store).parent.stat().st_mode) == 0o700
        assert "MASTER_PORT" not in ranks_of(process)[0].environ()


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_a_pickle_in_the_store_of_several_machines_never_runs(recipe: Path, tmp_path: Path) -> None:
    output, exploded = tmp_path / "out", tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(exploded))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = (
        *("--config", recipe, "--ranks", 1, "--parallel.pipeline", 2, "--nodes", 2, *MANY),
        *("--rendezvous", f"localhost:{port}", "--train.output", output),
    )
    with forked.training(*command) as other, forked.training(*command) as process:
        with _to_be_stopped(process, output):
            assert all(_is_loopback(at) for one in (other, process) for at in _listeners(one))
            store = dist.TCPStore(  # type: ignore[attr-defined]
                "127.0.0.1", port, None, False, timedelta(seconds=20)
            )
            keys = store.list_keys()
            assert keys
            for key in (*keys, "torch.rendezvous.vila_mc", "default_pg/torch.rendezvous.vila_mc"):
                store.set(key, bomb)  # type: ignore[arg-type]
        _assert_stopped(other)  # told by its ranks, which are told by the others
    assert not exploded.exists()
    pickle.loads(bomb)
    assert exploded.exists()  # it would have
