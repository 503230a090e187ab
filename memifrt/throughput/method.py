"""How to search: how long trials are, how many of them decide about a load, and how close the bounds must come.

The names are those of RFC 9971 (Multiple Loss Ratio Search); its section on example goals has the values of
``rfc2544`` and ``tst009``.
"""

from __future__ import annotations

from dataclasses import dataclass

from memifrt.errors import ConfigError

#: The loss ratios of the Non Drop Rate and, as CSIT has it, of the Partial Drop Rate.
NDR, PDR = 0.0, 0.005
#: The shortest trial, and the longest time for anything, in seconds.
_SHORTEST, _LONGEST = 0.01, 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """The settings of a search, the same for NDR and PDR. Times are in seconds.

    :ivar trial: the length of the trials that decide about a load.
    :ivar duration_sum: a load is decided when its trials have lasted so long together, or earlier if the rest cannot
        change the decision.
    :ivar initial_trial: the length of the first, coarse trials.
    :ivar exceed_ratio: the share of a load's trials that may lose too much: 0.5 takes the majority.
    :ivar width: the search ends when the lower bound is this close to the upper one, as a share of it.
    :ivar pdr: the loss ratio of PDR.
    :ivar min_rate: the lowest load to try, in frames a second.
    :ivar max_rate: the highest load to try, in frames a second; None: as fast as the generator can.
    :ivar time_limit: the most seconds for one frame size.
    """

    trial: float = 1.0
    duration_sum: float = 21.0
    initial_trial: float = 1.0
    exceed_ratio: float = 0.5
    width: float = 0.005
    pdr: float = PDR
    min_rate: float = 1000.0
    max_rate: float | None = None
    time_limit: float = _LONGEST

    def __post_init__(self) -> None:
        if not _SHORTEST <= self.trial <= _LONGEST:
            raise ConfigError(f"a trial of {self.trial:g} s is not from {_SHORTEST:g} to {_LONGEST:g} s long")
        if not 0 < self.initial_trial <= self.trial:
            raise ConfigError(
                f"the first trials of {self.initial_trial:g} s are longer than the others: {self.trial:g} s"
            )
        if not self.trial <= self.duration_sum <= _LONGEST:
            raise ConfigError(
                f"trials of {self.duration_sum:g} s together are shorter than one trial of {self.trial:g} s, "
                f"or longer than {_LONGEST:g} s"
            )
        for name, ratio in (("width", self.width), ("PDR loss ratio", self.pdr)):
            if not 0.0001 <= ratio <= 0.5:
                raise ConfigError(f"a {name} of {100 * ratio:g} % is not from 0.01 % to 50 %")
        if not 0 <= self.exceed_ratio < 1:
            raise ConfigError(f"an exceed ratio of {self.exceed_ratio:g} is not from 0 to less than 1")
        if not 1 <= self.min_rate <= 1e9:
            raise ConfigError(f"a lowest rate of {self.min_rate:g} packets/s is not from 1 to 1e9")
        if self.max_rate is not None and not self.min_rate < self.max_rate <= 1e9:
            raise ConfigError(
                f"a highest rate of {self.max_rate:g} packets/s is not above the lowest one of {self.min_rate:g}, "
                "up to 1e9"
            )
        if not 0 < self.time_limit <= _LONGEST:
            raise ConfigError(f"a time limit of {self.time_limit:g} s is not from more than 0 to {_LONGEST:g} s")


#: By name. ``quick`` is for a first look. ``csit`` is what FD.io CSIT uses. ``tst009`` (ETSI GS NFV-TST 009, with one
#: repetition of lossy trials) and ``rfc2544`` have trials of 60 seconds.
METHODS = {
    "quick": Method(trial=0.5, duration_sum=2.5, initial_trial=0.1, width=0.01),
    "csit": Method(),
    "tst009": Method(trial=60.0, duration_sum=120.0),
    "rfc2544": Method(trial=60.0, duration_sum=60.0, exceed_ratio=0.0),
}
