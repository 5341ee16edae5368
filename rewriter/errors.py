"""Errors that a user can act on: one sentence, and the exit code the command line answers with."""

from __future__ import annotations

DONE = 0
DECLINED = 1  # --strict met a decline, or fewer sites than --expect
BAD_INPUT = 2  # usage, unreadable or unsupported input, unwritable output
FAILED = 3  # verification failed; no output file is left


class GraftError(Exception):
    """A sentence for the user: what was met, what is allowed, and where."""

    exit_code = BAD_INPUT


class VerificationError(GraftError):
    """The rewritten model does not give the original's numbers."""

    exit_code = FAILED


class DeclinedError(GraftError):
    """Fewer rewrites than the user demanded with ``--strict`` or ``--expect``."""

    exit_code = DECLINED
