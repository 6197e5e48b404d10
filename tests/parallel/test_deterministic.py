"""``train.deterministic``: what it has libraries do, and that two runs are the same bit for bit."""

import contextlib
import hashlib
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.launching import write_recipe
from tests.support.ranks import run_ranks
from tests.support.tiny import tiny_microbatches, tiny_run
from tests.support.tiny_data import write_dataset
from vila_mc.config.load import load_run
from vila_mc.config.parallel import ParallelConfig
from vila_mc.errors import ExitCode, SetupError
from vila_mc.model.build import build_stages
from vila_mc.model.fusions import fusion_options
from vila_mc.parallel.groups import distributed
from vila_mc.train import step as step_module
from vila_mc.train.rank import train_rank
from vila_mc.train.step import Trainer

VARIABLES = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "NCCL_ALGO": "Ring",
    "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0",
}


def _settings() -> dict[str, Any]:
    return {
        "torch": torch.are_deterministic_algorithms_enabled(),
        "warns only": torch.is_deterministic_algorithms_warn_only_enabled(),
        **{name: os.environ.get(name) for name in VARIABLES},
    }


def test_it_sets_what_it_promises_and_puts_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    before = _settings()
    with distributed(ParallelConfig(), seed=1, deterministic=True):
        assert _settings() == {
            "torch": True,
            "warns only": False,
            **VARIABLES,
        }
    assert _settings() == before
    with distributed(ParallelConfig(), seed=1):
        assert _settings() == before


def test_what_the_environment_may_say_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_ALGO", "^NVLS")
    with distributed(ParallelConfig(), seed=1, deterministic=True):
        assert os.environ["NCCL_ALGO"] == "^NVLS"
    assert os.environ["NCCL_ALGO"] == "^NVLS"
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    with (
        pytest.raises(SetupError, match=r"^NCCL_ALGO is Tree in .* needs it to be Ring or Collnet"),
        distributed(ParallelConfig(), seed=1, deterministic=True),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_cross_entropy_is_not_fused() -> None:
    for is_on in (False, True):
        config = tiny_run(train={"precision": "bf16", "deterministic": is_on})
        assert fusion_options(config, "language")["cross_entropy_loss_fusion"] is not is_on


def _digests() -> list[str]:
    """Of all weights after a few steps, twice from the same beginning."""
    config = tiny_run(train={"deterministic": True, "precision": "bf16"})
    digests = []
    with distributed(config.parallel, seed=1, deterministic=True) as ranks:
        for _ in range(2):
            trainer = Trainer(config, ranks, build_stages(config, ranks))
            batches = tiny_microbatches(config, ranks.at.data, ranks.layout.data)
            results = [trainer.step(batches) for _ in range(3)]
            digest = hashlib.sha256(repr(results).encode())
            for weight in trainer.stages[0].parameters():
                digest.update(weight.detach().view(torch.uint8).numpy().tobytes())
            digests.append(digest.hexdigest())
    return digests


@pytest.mark.slow
def test_two_runs_are_the_same_bit_for_bit() -> None:
    ((first, second), of_other_rank) = run_ranks(2, _digests)
    assert first == second
    assert of_other_rank == [first, second]


def _whole_run(recipe: Path, output: Path, is_impossible: bool) -> tuple[int, list[bool], str]:
    """Exit code, whether torch was told in each pass, and what is said on stderr."""
    original, told = step_module.loss_sum_and_count, []

    def watched(labels: torch.Tensor, loss_bs: torch.Tensor) -> Any:
        told.append(torch.are_deterministic_algorithms_enabled())
        if is_impossible:
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
        return original(labels, loss_bs)

    step_module.loss_sum_and_count = watched
    options = {"train.output": str(output), "train.steps": 1, "train.deterministic": True}
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        code = train_rank(load_run([recipe], options))
    return code, told, errors.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("is_impossible", [False, True])
def test_a_run_follows_the_option_or_says_what_it_cannot(
    is_impossible: bool, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", *write_dataset(tmp_path))
    ((code, told, errors),) = run_ranks(1, _whole_run, recipe, tmp_path / "out", is_impossible)
    assert told
    assert all(told)
    assert code == (ExitCode.USER_ERROR if is_impossible else ExitCode.OK)
    if is_impossible:
        (line,) = [line for line in errors.splitlines() if "error: " in line]
        assert "train.deterministic is true, and put_ does not have a deterministic" in line
