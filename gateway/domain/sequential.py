"""Evidence that may be looked at as often as one likes: bets on counts, whose winnings chance alone rarely makes.

**The bet.** Of `trials` coin throws, `hits` came up heads; under the null hypothesis heads has probability at most
`null`. Whoever bets that the odds of heads are h times as large multiplies his stake by a likelihood ratio at every
throw: a supermartingale under the null. By Ville's inequality (1939) his wealth exceeds 1/α at *any* of ever so many
looks with probability at most α. We do not know h, so the stake is spread over several (the mixture of Robbins, 1970;
mixture SPRT of Johari et al., "Always valid inference", 2022). All evidence here is the natural logarithm of that
wealth; `needed(α)` is log 1/α.

**Two tracks.** Calls are sent to the canary as if by lot, with the share of the calls that it has. Whatever the rate of
bad events does over time, each bad event is the canary's with that share as probability, if both tracks are equally
likely to fail; with odds r times that, if the canary is r times as likely (Lindon and Malek, "Anytime-valid inference
for multinomial count data", NeurIPS 2022). So only bad events are throws, and the base rate need not be known. We take
the share from the counts rather than the weight, for callers are sticky and not of one size: given the calls of both
tracks the canary's part of the bad ones is hypergeometric, whose bets win no more than the binomial's on average
(Hoeffding, 1963, section 6), so at one look this costs nothing; over looks the bound needs a share that settles, and
is held by simulation.

**Quantiles.** "Above the p95" is a bad event too, but the p95 is estimated. A confidence sequence of quantiles (Howard
and Ramdas, "Sequential estimation of quantiles with applications to A/B testing", Bernoulli 2022) names the edges that
the p95 of both tracks together may be at; the evidence is that of the edge where it is weakest. It asks nothing
of the distribution, so heavy tails are no harm.

**Clusters.** Calls of one caller resemble each other. A `dilution` of D says that D calls tell what one independent one
would: the logarithm of each bet is divided by D, which leaves a supermartingale one (Jensen), and is the usual design
effect (Kish, 1965).
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from gateway.domain.counts import Histogram

BETS = (1.25, 1.5, 1.75, 2.0, 2.5, 3.5, 6.0, 12.0, 30.0)
"""How many times larger the odds may be; the stake is spread evenly, so a bet on nine costs at most log 9 = 2.2."""
MISS = 0.2
"""The part of a quantile's error budget that goes to missing the edge where the quantile is."""


def needed(alpha: float) -> float:
    """The evidence that chance alone reaches with probability at most `alpha`."""
    return -math.log(alpha)


def evidence_above(hits: float, trials: float, null: float, dilution: float = 1.0) -> float:
    """Evidence (nats) that heads is more likely than `null`; 0 where nothing can be told."""
    if trials <= 0 or not 0 < null < 1:
        return 0.0
    logs = [(hits * math.log(h) - trials * math.log1p(null * (h - 1))) / dilution for h in BETS]
    best = max(logs)
    return best + math.log(sum(math.exp(log - best) for log in logs) / len(BETS))


def evidence_below(hits: float, trials: float, null: float, dilution: float = 1.0) -> float:
    """Evidence (nats) that heads is less likely than `null`."""
    return evidence_above(trials - hits, trials, 1 - null, dilution)


@dataclass(frozen=True, slots=True)
class Events:
    """Bad events among each track's samples."""

    stable: float
    stable_samples: float
    canary: float
    canary_samples: float

    def evidence_worse(self, dilution: float = 1.0) -> float:
        """Evidence that the canary's rate is above the stable's."""
        return evidence_above(self.canary, self.stable + self.canary, self._share(1.0), dilution)

    def evidence_within(self, ratio: float, dilution: float = 1.0) -> float:
        """Evidence that the canary's rate is below `ratio` times the stable's."""
        return evidence_below(self.canary, self.stable + self.canary, self._share(ratio), dilution)

    def at_harm(self, rate: float, z: float, dilution: float = 1.0) -> "Events":
        """What had been seen at least, but for bad luck of `z` standard deviations, if the canary's rate were `rate`.

        The stable's own luck counts too: its events stay, but they are known only to their square root.
        """
        mean = rate * self.canary_samples
        size = self.canary_samples / self.stable_samples if self.stable_samples else 0.0
        spread = math.sqrt(mean * (1 + self._growth(mean) * size) * dilution)
        return Events(self.stable, self.stable_samples, max(0.0, mean - z * spread), self.canary_samples)

    def _growth(self, mean: float) -> float:
        """How many times the stable's rate `mean` events of the canary are."""
        alike = self.stable * self.canary_samples / self.stable_samples
        return mean / alike if alike else 1.0

    def _share(self, ratio: float) -> float:
        weighted = ratio * self.canary_samples
        total = weighted + self.stable_samples
        return weighted / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Tails:
    """The samples of both tracks beyond each edge that a quantile may be at: `level` of both together lie beyond it.

    `span`: the edges' indexes, all that are plausible at error `alpha`, however often it is asked.
    """

    stable: Histogram
    canary: Histogram
    span: range
    dilution: float

    @classmethod
    def of(cls, stable: Histogram, canary: Histogram, level: float, alpha: float, dilution: float = 1.0) -> "Tails":
        both = stable + canary
        if not both.samples:
            return cls(stable, canary, range(1), dilution)
        limit = needed(alpha / 2)
        indexes = range(len(both.above))
        low = bisect_left(
            indexes, True, key=lambda j: evidence_above(both.above[j], both.samples, level, dilution) < limit)
        # The quantile lies above every edge before its own, so an edge is too high once the one before it is.
        high = bisect_left(
            indexes, True, key=lambda j: evidence_below(both.above[j], both.samples, level, dilution) >= limit)
        return cls(stable, canary, range(low, min(high + 1, len(indexes))), dilution)

    def evidence_worse(self) -> float:
        """Evidence that the canary goes beyond the quantile more often than the stable."""
        return min(self._events(j, j).evidence_worse(self.dilution) for j in self.span)

    def evidence_within(self, ratio: float) -> float:
        """Evidence that the canary's values are less than `ratio` times the stable's."""
        return min(self._events(j, self._at_most(j, ratio)).evidence_within(1.0, self.dilution) for j in self.span)

    def evidence_at_harm(self, ratio: float, z: float) -> float:
        """Evidence to expect, but for bad luck of `z` deviations, if the canary were `ratio` times the stable."""
        def expected(j: int) -> float:
            rate = self.stable.above[self._at_least(j, 1 / ratio)] / self.stable.samples
            return self._events(j, j).at_harm(rate, z, self.dilution).evidence_worse(self.dilution)

        return min(map(expected, self.span)) if self.stable.samples else 0.0

    def _events(self, of_stable: int, of_canary: int) -> Events:
        return Events(
            self.stable.above[of_stable], self.stable.samples, self.canary.above[of_canary], self.canary.samples)

    def _at_most(self, index: int, factor: float) -> int:
        """The highest edge not above `factor` times this one."""
        edges = self.stable.edges
        return index if index >= len(edges) else max(0, bisect_right(edges, edges[index] * factor) - 1)

    def _at_least(self, index: int, factor: float) -> int:
        """The lowest edge not below `factor` times this one."""
        edges = self.stable.edges
        return index if index >= len(edges) else bisect_left(edges, edges[index] * factor)
