"""Matrix products in FP8, by Transformer Engine."""

from dataclasses import dataclass, fields
from typing import Literal

from vila_mc.config.checks import STRICT, require, require_positive

Fp8Recipe = Literal["none", "delayed", "current", "blockwise", "mxfp8"]
Fp8Part = Literal["vision", "language"]
_DELAYED_ALONE = ("amax_history", "amax_algorithm", "margin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp8Config:
    """Which matrix products are computed in FP8, and how their numbers are scaled into it."""

    __pydantic_config__ = STRICT

    recipe: Fp8Recipe = "none"
    """Where scales come from. delayed: from the greatest values of earlier steps. current: from the
    tensor itself. blockwise: of 1x128 and 128x128 blocks. mxfp8: of 32 numbers, on Blackwell."""
    format: Literal["hybrid", "e4m3"] = "hybrid"
    """hybrid: e4m3, and e5m2 for gradients. e4m3: for all."""
    parts: tuple[Fp8Part, ...] = ("language",)
    """Parts whose linear layers compute in FP8: any of vision, language."""
    amax_history: int = 1024
    """Passes whose greatest values the delayed recipe looks back on."""
    amax_algorithm: Literal["max", "most_recent"] = "max"
    """Which of them it takes."""
    margin: int = 0
    """Powers of two that it leaves free above them."""
    first_layers_bf16: int = 0
    """Layers at the beginning of each part that stay in bf16."""
    last_layers_bf16: int = 0
    """Layers at its end that do."""
    primary_weights: bool = False
    """Keep the weights that these layers learn in FP8, cast from the optimizer's fp32 ones after
    each step: no copy in bf16, and half the bytes that data-parallel ranks gather."""
    emulation: bool = False
    """Compute on a CPU what a GPU would, slowly, to see what a recipe does to the loss."""

    def __post_init__(self) -> None:
        require_positive("train.fp8", amax_history=self.amax_history)
        require(
            len(self.parts) > 0 and len(set(self.parts)) == len(self.parts),
            f"train.fp8.parts is [{', '.join(self.parts)}]; name each of vision, language once at "
            "most, and at least one.",
        )
        for name in ("margin", "first_layers_bf16", "last_layers_bf16"):
            value = getattr(self, name)
            require(value >= 0, f"train.fp8.{name} is {value}; it must be 0 or more.")
        for field in fields(self):
            require(
                self.recipe == "delayed"
                or field.name not in _DELAYED_ALONE
                or getattr(self, field.name) == field.default,
                f"train.fp8.{field.name} concerns the delayed recipe alone, and train.fp8.recipe "
                f"is {self.recipe}. Leave it out.",
            )
        require(
            self.recipe != "none" or not self.emulation,
            "train.fp8.emulation is true, and train.fp8.recipe is none, so there is nothing to "
            "emulate. Set the recipe to delayed, current, blockwise or mxfp8.",
        )
        require(
            self.recipe != "none" or not self.primary_weights,
            "train.fp8.primary_weights is true, and train.fp8.recipe is none, so that nothing is "
            "in FP8. Set the recipe to delayed, current, blockwise or mxfp8.",
        )
        if self.recipe == "delayed":
            # Transformer Engine reduces all of them when the tower is done, and a rank whose
            # microbatch has no image would not take part.
            require(
                "vision" not in self.parts,
                "train.fp8.recipe delayed reduces greatest values over data-parallel ranks in each "
                "pass, and vision has none where a rank reads no image. Take it out of "
                "train.fp8.parts, or set train.fp8.recipe to current.",
            )
            require(
                self.first_layers_bf16 == self.last_layers_bf16 == 0,
                "train.fp8.recipe delayed knows no layers in bf16. Leave "
                "train.fp8.first_layers_bf16 and last_layers_bf16 out, or set train.fp8.recipe to "
                "current.",
            )

    def concerns(self, part: Fp8Part) -> bool:
        """Whether the linear layers of a part compute in FP8."""
        return self.recipe != "none" and part in self.parts

    def layers(self, part: Fp8Part, depth: int) -> range:
        """Of the ``depth`` layers of a part, those that compute in FP8."""
        if not self.concerns(part):
            return range(0)
        return range(self.first_layers_bf16, depth - self.last_layers_bf16)

    def decides(self) -> dict[str, str]:
        """The options that decide the numbers by this recipe, and their values."""
        if self.recipe == "none":
            return {"recipe": "none"}
        values = {field.name: str(getattr(self, field.name)) for field in fields(self)}
        values["parts"] = f"[{', '.join(sorted(self.parts))}]"
        unread = {"emulation", "primary_weights"}
        if self.recipe != "delayed":
            unread |= set(_DELAYED_ALONE)
        return {name: value for name, value in values.items() if name not in unread}

    def said(self) -> str:
        """A few words for people, of what decides the numbers."""
        if self.recipe == "none":
            return "no FP8"
        emulated = ", emulated" if self.emulation else ""
        return f"FP8 {self.recipe} ({self.format}) in {' and '.join(self.parts)}{emulated}"

    def gathers_in_bf16(self) -> bool:
        """Whether weights in FP8 are gathered in bf16, as those of mxfp8 are: each copy of theirs,
        for rows and for columns, has scales of its own."""
        return self.primary_weights and self.recipe == "mxfp8"

    def alignment(self) -> int:
        """Tokens and channels of its matrix products come in multiples of this."""
        return 32 if self.recipe == "mxfp8" else 16
