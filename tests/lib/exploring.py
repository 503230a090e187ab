"""How Hypothesis chooses its examples: always the same ones in ``make test``, random ones in ``make fuzz``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

#: ``MEMIFRT_EXPLORE=N`` takes N times as many examples, at random: ``make fuzz`` does. Without it a test has the same
#: examples on every run, so that luck is no part of the result.
_TIMES = int(os.environ.get("MEMIFRT_EXPLORE", "0"))


def choose_profile() -> None:
    """Load the profile. Tests do not time: how long an example takes depends on the machine."""
    settings.register_profile(
        "memifrt",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=not _TIMES,
        max_examples=100 * (_TIMES or 1),
        print_blob=bool(_TIMES),
    )
    settings.load_profile("memifrt")


def machine_settings(examples: int, steps: int) -> settings:
    """Settings of a state machine: ``examples`` runs of up to ``steps`` steps each."""
    return settings(
        max_examples=examples * (_TIMES or 1),
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
