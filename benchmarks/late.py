"""Steps of KFAC as they are late in training, when rounds of updates have their full length."""

from __future__ import annotations

import tfkfac

NEVER, LATE = 10**6, 10**7
"""Steps between two updates that there are none of; updates after which a round is as long."""


def make_late(optimizer: tfkfac.KFAC) -> None:
    """Lets an optimizer that was built go on as if it had made `LATE` updates."""
    updates = next(variable for variable in optimizer.variables if variable.name == "updates")
    updates.assign(LATE)
