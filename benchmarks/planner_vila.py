"""What VILA and LLaVA-1.5 took at 7B, as published, beside what the planner says of the same runs.

Their conditions: 576 visual tokens an image, rows padded to the longest of a microbatch and not
packed, transformers under DeepSpeed, recomputation, A100s. Then the recipe of this project, term by
term: what each difference is worth.
"""

from dataclasses import dataclass, replace

from claims import Claim, parser, report

from vila_mc.planner.constants import FITTED
from vila_mc.planner.job import Decoder, Engine, Job, Learns, Share, Tower
from vila_mc.planner.step import step_time
from vila_mc.topology.hardware import GPUS, Gpu

LLAMA_7B = Decoder(
    layers=32, width=4096, heads=32, kv_heads=32, head_width=128, ffn=11008, vocab=32000
)
LLAMA_13B = replace(LLAMA_7B, layers=40, width=5120, heads=40, kv_heads=40, ffn=13824)
CLIP = Tower(
    layers=23,
    width=1024,
    heads=16,
    ffn=4096,
    positions=577,
    connector=1024 * 4096 + 4096 * 4096,
    visual_tokens=576,
)
DEEPSPEED = Engine(name="hugging_face", sharding="weights", calls=9, gradient_bytes=2)
ZERO_2 = replace(DEEPSPEED, sharding="gradients")
PADDING = 1.15
"""Positions of a microbatch over tokens, where rows are sorted by length into groups: assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One phase of a published run."""

    name: str
    samples: float
    text: float
    """Text tokens of a sample, on average."""
    images: float
    rows: int
    learns: Learns
    hours: float
    """As published, of all its GPUs together."""
    gpus: int = 128
    decoder: Decoder = LLAMA_7B
    engine: Engine = DEEPSPEED
    gpu: str = "a100-80g"


ALIGN = Learns(language=False, tables=False)
FULL = Learns()
PHASES = (
    # arXiv 2312.07533, sections 3.1 and 4 and appendix: 595K pairs of CC3M; 25M images of MMC4 (4 a
    # document, about 490 tokens) and 25M pairs of COYO (23 tokens, 4 pairs a row); 1M samples.
    Phase(
        name="VILA-7B align", samples=595e3, text=25, images=1, rows=256, learns=ALIGN, hours=512
    ),
    Phase(
        name="VILA-7B pretrain, MMC4",
        samples=6.25e6,
        text=490,
        images=4,
        rows=1024,
        learns=FULL,
        hours=30 * 128 * 0.54,
    ),
    Phase(
        name="VILA-7B pretrain, COYO",
        samples=6.25e6,
        text=91,
        images=4,
        rows=1024,
        learns=FULL,
        hours=30 * 128 * 0.46,
    ),
    Phase(name="VILA-7B sft", samples=1e6, text=350, images=1, rows=128, learns=FULL, hours=768),
    # LLaVA's README: 558K pairs, 5.5 h at 13B and 3.5 h at 7B of 8 A100; 665K conversations.
    Phase(
        name="LLaVA-1.5-7B align",
        samples=558e3,
        text=25,
        images=1,
        rows=256,
        learns=ALIGN,
        hours=28,
        gpus=8,
        engine=ZERO_2,
    ),
    Phase(
        name="LLaVA-1.5-13B align",
        samples=558e3,
        text=25,
        images=1,
        rows=256,
        learns=ALIGN,
        hours=44,
        gpus=8,
        engine=ZERO_2,
        decoder=LLAMA_13B,
    ),
    Phase(
        name="LLaVA-1.5-7B sft",
        samples=665e3,
        text=350,
        images=1,
        rows=128,
        learns=FULL,
        hours=80,
        gpus=8,
        gpu="a100-40g",
    ),
    Phase(
        name="LLaVA-1.5-13B sft",
        samples=665e3,
        text=350,
        images=1,
        rows=128,
        learns=FULL,
        hours=160,
        gpus=8,
        decoder=LLAMA_13B,
    ),
)


def job_of(phase: Phase, tower: Tower, padding: float) -> Job:
    """A step of a phase."""
    length = round((phase.text + phase.images * tower.visual_tokens) * padding)
    return Job(
        decoder=phase.decoder,
        tower=tower,
        length=length,
        attended=length,
        rows=phase.rows,
        micro_batch=max(1, min(phase.rows // phase.gpus, 16)),
        images=phase.images,
        share=Share(data=phase.gpus),
        recompute="full",
        learns=phase.learns,
        engine=phase.engine,
    )


def hours(phase: Phase, job: Job, gpu: Gpu) -> float:
    """GPU-hours of a phase."""
    steps = phase.samples / phase.rows
    return step_time(job, gpu, FITTED).total * steps * phase.gpus / 3600


def ours(phase: Phase) -> list[tuple[str, float]]:
    """The same phase with one difference after the other, up to this project's recipe."""
    gpu = GPUS[phase.gpu]
    small = replace(CLIP, visual_tokens=144, connector=4096 * 4096 + 4096 * 4096)
    job = job_of(phase, CLIP, PADDING)
    found = [("as published", hours(phase, job, gpu))]
    job = replace(job, engine=Engine(name="vila_mc", overlap_gradients=False))
    found.append(("this engine, its layers and optimizer", hours(phase, job, gpu)))
    down = job_of(phase, small, PADDING)
    job = replace(job, tower=small, length=down.length, attended=down.attended)
    found.append(("144 visual tokens an image", hours(phase, job, gpu)))
    job = replace(job, length=round(job.length / PADDING), attended=round(job.attended / PADDING))
    found.append(("packed rows: no padding", hours(phase, job, gpu)))
    job = replace(job, recompute="none", micro_batch=min(4, job.micro_batch))
    found.append(("no recomputation", hours(phase, job, gpu)))
    fp8 = replace(job, arithmetic="fp8")
    found.append(("H100 and FP8", hours(phase, fp8, GPUS["h100-80g"])))
    return found


def main() -> int:
    """Print published and foretold hours, then the differences of VILA's pre-training."""
    arguments = parser(__doc__).parse_args()
    made = []
    total = 0.0
    for phase in PHASES:
        foretold = hours(phase, job_of(phase, CLIP, PADDING), GPUS[phase.gpu])
        made.append(Claim(f"{phase.name}: foretold of {phase.hours:,.0f}", foretold, "GPU-hours"))
        total += foretold if phase.name.startswith("VILA") else 0.0
    made.append(Claim("VILA-7B, all phases: foretold of 5,100", total, "GPU-hours"))
    for phase in PHASES[1:3]:
        made += [Claim(f"{phase.name}, {what}", value, "GPU-hours") for what, value in ours(phase)]
    return report(made, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
