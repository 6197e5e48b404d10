"""Ranks share the questions of an evaluation, and hold one copy of the model for a conversation."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.parallel.asking_ranks import (
    SERVED_TOGETHER,
    Command,
    Done,
    evaluate_quietly,
    run_in_turn,
)
from tests.support.askable import make_askable
from tests.support.launching import wait_until
from tests.support.ranks import ranks_that_may_die, run_ranks
from tests.support.released_tasks import RELEASED
from vila_mc.errors import ExitCode
from vila_mc.evaluation.sharing import Sharing
from vila_mc.evaluation.tasks.kept_answers import KeptAnswers
from vila_mc.files import unfinished_path

POPE, QUESTIONS, CONVERSATION, CHAT = "pope", "questions", "conversation", "chat"
SERVED = "served"
RESUMED, SPLIT, DIFFERENT, UNEVEN = "resumed", "split", "different", "uneven"
EQUAL_TO = {POPE: POPE, QUESTIONS: QUESTIONS, RESUMED: POPE, SPLIT: POPE}
"""What two ranks do, and which file of one rank theirs must be."""
POPE_IMAGE = "val2014/COCO_val2014_000000000001.jpg"
LINES = "what is here\nwhy\n/new\nwhy\n"
NUM_KEPT = 3


@dataclass(frozen=True)
class Found:
    alone: dict[str, Done]
    """What one rank has done."""
    shared: dict[str, list[Done]]
    """What two have, each."""
    folder: Path

    def answers(self, who: str, name: str) -> bytes:
        return (self.folder / who / f"{name}.jsonl").read_bytes()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """One start of two ranks for all."""
    folder = tmp_path_factory.mktemp("asking")
    (folder / "model").mkdir()
    askable = make_askable(folder / "model", [])
    RELEASED["pope"](folder)
    asked = dict(task="colour", images=["red.png"], answer="red", chance=0.5)
    lines = [asked | {"id": str(at), "question": f"what{' is' * at} here"} for at in range(7)]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = ("--checkpoint", str(askable.model()))

    def evaluate(who: str, name: str, *more: object) -> Command:
        output = folder / who / f"{name}.jsonl"
        output.parent.mkdir(exist_ok=True)
        how = (*model, "--output", output, "--batch", 2, "--max-new-tokens", 4)
        return Command("evaluate", tuple(map(str, (*how, *more))))

    def commands(who: str) -> dict[str, Command]:
        own = ("--questions", questions, "--images", askable.folder)
        return {
            POPE: evaluate(who, POPE, *pope),
            QUESTIONS: evaluate(who, QUESTIONS, *own, "--temperature", 1, "--seed", 3),
            CONVERSATION: Command("ask", (*model, "--max-new-tokens", "6"), LINES),
        }

    pope = ("--task", "pope", "--data", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptAnswers, "remove", lambda kept: None)
        names, given = zip(*commands("one").items(), strict=True)
        alone = dict(zip(names, run_in_turn(given, folder), strict=True))
    kept = unfinished_path(folder / "one" / f"{POPE}.jsonl").read_text().splitlines(keepends=True)
    (folder / "two").mkdir()
    begun = "".join(kept[: 1 + NUM_KEPT]) + '{"id": "half'
    unfinished_path(folder / "two" / f"{RESUMED}.jsonl").write_text(begun)
    chat = (str(askable.model()), "--max-new-tokens", "6")
    together = commands("two") | {
        CHAT: Command("chat", chat, LINES),
        SERVED: Command("serve", (*chat, "--serve", "0")),
        RESUMED: evaluate("two", RESUMED, *pope),
        SPLIT: evaluate("two", SPLIT, *pope, "--tensor", 2),
        DIFFERENT: evaluate("two", DIFFERENT, *pope, "--limit", "{rank}1"),
        UNEVEN: evaluate("two", UNEVEN, *pope, "--tensor", 4),
    }
    by_rank = run_ranks(2, run_in_turn, [*together.values()], folder / "two")
    shared = {name: [done[at] for done in by_rank] for at, name in enumerate(together)}
    return Found(alone, shared, folder)


@pytest.mark.parametrize("name", EQUAL_TO)
def test_the_answers_of_two_ranks_are_those_of_one(name: str, found: Found) -> None:
    assert found.answers("two", name) == found.answers("one", EQUAL_TO[name])
    assert not unfinished_path(found.folder / "two" / f"{name}.jsonl").exists()
    first, second = found.shared[name]
    expected = found.alone[EQUAL_TO[name]].out
    if name == RESUMED:
        assert first.out.startswith(f"{NUM_KEPT} of 6 answers are in ")
    assert first.out.endswith(expected)
    assert (first.code, second.code, second.out, second.err) == (0, 0, "", "")
    answers = [json.loads(line) for line in found.answers("one", EQUAL_TO[name]).splitlines()]
    said = {answer.get("answer", answer.get("text")) for answer in answers}
    assert len(said) > 1  # or it would prove nothing


@pytest.mark.parametrize("name", [CONVERSATION, CHAT])
def test_ranks_hold_a_conversation_with_one_person(name: str, found: Found) -> None:
    first, second = found.shared[name]
    assert first.out == found.alone[CONVERSATION].out
    assert len(first.out.splitlines()) == 3
    assert (first.code, second.code, second.out) == (0, 0, "")


def test_ranks_serve_a_model_together(found: Found) -> None:
    """What they say is what one says, also while a client leaves; the first's Ctrl-C ends all."""
    conversation = found.alone[CONVERSATION].out.splitlines()
    said = {"what is here": conversation[0], "why": conversation[2]}
    first, second = found.shared[SERVED]
    assert first.out.splitlines() == [said[question] for question in SERVED_TOGETHER]
    assert first.err.splitlines()[-1] == "interrupted"
    assert (first.code, second.code) == (ExitCode.INTERRUPTED, ExitCode.INTERRUPTED)
    assert (second.out, second.err) == ("", "")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (DIFFERENT, "the ranks were not started for the same run: what is left to ask is 1 items"),
        (
            UNEVEN,
            "2 ranks do not divide into copies of the model on 4 each. Start a multiple",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_refused_in_one_line(
    name: str, message: str, found: Found
) -> None:
    for done in found.shared[name]:
        assert done.code == ExitCode.USER_ERROR
        (line,) = [line for line in done.err.splitlines() if "error" in line]
        assert line.startswith(f"error: {message}")
    assert not (found.folder / "two" / f"{name}.jsonl").exists()


def test_a_killed_rank_leaves_the_answers_so_far(found: Found) -> None:
    """Ranks that are killed or asked to stop, and then one that goes on."""
    folder = found.folder / "killed"
    (folder / "val2014").mkdir(parents=True)
    (folder / "val2014" / "a.jpg").write_bytes((found.folder / POPE_IMAGE).read_bytes())
    (folder / "coco").mkdir()
    for name in ("random", "popular", "adversarial"):
        lines = [
            json.dumps(dict(question_id=at, image="a.jpg", text=f"a {at:03}?", label="yes"))
            for at in range(400)
        ]
        (folder / f"coco/coco_pope_{name}.json").write_text("\n".join(lines))
    output = folder / "a.jsonl"
    how = ("--task", "pope", "--data", str(folder), "--batch", "1", "--max-new-tokens", "2")
    given = ["--checkpoint", str(found.folder / "model" / "run"), *how, "--output", str(output)]
    kept = unfinished_path(output)

    def num_kept() -> int:
        return len(kept.read_text().splitlines()) - 1 if kept.exists() else 0

    for signal_number, codes in (
        (signal.SIGKILL, (ExitCode.FAULT, -signal.SIGKILL)),
        (signal.SIGTERM, (ExitCode.REQUEUE, ExitCode.REQUEUE)),
    ):
        before = num_kept()
        with ranks_that_may_die(2, evaluate_quietly, given) as processes:
            wait_until(lambda least=before: num_kept() > least, "an answer is kept")  # type: ignore[misc]
            pid = processes[1].pid
            assert pid is not None
            os.kill(pid, signal_number)
        assert tuple(process.exitcode for process in processes) == codes
    so_far = min(num_kept(), 20)
    assert 0 < num_kept() < 1200
    some = [*given, "--limit", "20"]
    (done,) = run_in_turn([Command("evaluate", tuple(some))], folder)
    assert done.out.startswith(f"{so_far} of 20 answers are in {kept}")
    fresh = [*some[:-3], str(folder / "fresh.jsonl"), "--limit", "20"]
    (done,) = run_in_turn([Command("evaluate", tuple(fresh))], folder / "coco")
    assert done.code == 0
    assert output.read_bytes() == (folder / "fresh.jsonl").read_bytes()


def test_batches_are_of_like_lengths_and_the_same_for_any_number_of_copies() -> None:
    sharing: Sharing[str] = Sharing(batch=2, length=len, name=str)
    items = ["a", "bbb", "c", "dddd", "ee"]
    assert sharing.batches(items) == [["dddd", "bbb"], ["ee", "a"], ["c"]]
