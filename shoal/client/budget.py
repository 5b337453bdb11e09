"""How many calls a client may repeat. Pure.

A bucket of tokens: every answer earns a part of one, every repeat takes one. What is
more than `REST` ages away, and what is less grows back, with the time constant `AGE_S`.
So a steady client has the repeats of 5 % of its last 30 s of answers in hand, enough for
all that were under way at a router that dies; when everything fails nothing is earned,
and that is all that it repeats. With 2 requests a second or more, that is at most one
repeat for ten requests in 30 s of failures.

Source: Google, Site Reliability Engineering (2016), chapter 21 (retry budgets); gRFC A6
(tokens that answers earn).
"""

import math

EARNED = 0.05
FIRST = 5.0
REST = 2.0
AGE_S = 30.0


class RetryBudget:
    """The tokens of one client. Every `now` is seconds of one clock that only grows."""

    def __init__(self) -> None:
        self._tokens = FIRST
        self._at = -math.inf

    def earn(self, now: float) -> None:
        """A call was answered."""
        self._age(now)
        self._tokens += EARNED

    def spend(self, now: float) -> bool:
        """Takes a token for a repeat; False if there is none."""
        self._age(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _age(self, now: float) -> None:
        if self._at > -math.inf:
            passed = max(0.0, now - self._at)
            self._tokens = REST + (self._tokens - REST) * math.exp(-passed / AGE_S)
        self._at = max(self._at, now)
