"""The arms of the study: each name says which directions, and what is done with the gradient.

<directions>_<what is done>     grad: SVD of paired gradient differences; act_mN: hidden-state difference in the top N
axes of
                                each writer; act_nobasis: the same without that basis; random, shuffled, clean: controls
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Arm:
    """One way of training.

    constraint, gate, restore: see `research.training.constraints`. design: gradient or activation. m: axes of the
    writers' singular basis kept (activation), None for no basis. control: what replaces the contrast. rebound: the
    reward transform instead.
    """

    constraint: str = "none"
    gate: str = "one_sided"
    restore: bool = True
    design: str = "gradient"
    m: int | None = None
    control: str = "none"
    rebound: str = "none"
    doc: str = ""


ARMS: dict[str, Arm] = {
    "vanilla": Arm(doc="GRPO alone"),
    "measure_only": Arm("measure_only", doc="directions measured, gradients untouched"),
    "grad_erase": Arm("erase", doc="erase, magnitude restored"),
    "grad_erase_unrestored": Arm("erase", restore=False, doc="erase, magnitude not restored"),
    "grad_erase_no_gate": Arm("erase", gate="no_gate", doc="erase both senses"),
    "grad_erase_reverse": Arm("erase", gate="reverse", doc="reflect instead of remove"),
    "grad_route": Arm("route", restore=False, doc="removed part into the quarantine, ablated at evaluation"),
    "act_m8_erase": Arm("erase", design="activation", m=8, doc="hidden-state direction, top 8 axes"),
    "act_m16_erase": Arm("erase", design="activation", m=16, doc="hidden-state direction, top 16 axes"),
    "act_m32_erase": Arm("erase", design="activation", m=32, doc="hidden-state direction, top 32 axes"),
    "act_nobasis_erase": Arm("erase", design="activation", doc="hidden-state direction, not denoised"),
    "random_erase": Arm("erase", control="random", doc="control: random orthonormal directions, as many"),
    "shuffled_erase": Arm("erase", control="shuffled", doc="control: labels of the pairs' gradients shuffled"),
    "clean_erase": Arm("erase", control="clean", doc="control: clean against clean"),
    "rebound_additive": Arm(rebound="additive", doc="reward minus alpha x concept score"),
    "rebound_multiplicative": Arm(rebound="multiplicative", doc="reward scaled by the concept score"),
}  # fmt: skip

# The comparisons fixed in advance (experiments/reward_hack/preregistration.md).
VANILLA, METHOD, RANDOM = "vanilla", "grad_erase", "random_erase"
DENOISED, UNDENOISED = "act_m16_erase", "act_nobasis_erase"
