"""What a user should know without asking: told by Python's logging, each thing once for each handle."""

from __future__ import annotations

import logging

LOGGER = logging.getLogger("tokenprune")
"""No handler is added: without a configuration Python shows warnings on the standard error, and nothing below them."""


class Notices:
    """Tells each thing once.

    Warnings are what may surprise; facts that a user may want to know are of level INFO.
    """

    def __init__(self) -> None:
        self._told: set[str] = set()

    def warn(self, topic: str, message: str) -> None:
        """Tell something unexpected, unless something of that topic was told before."""
        self._tell(logging.WARNING, topic, message)

    def inform(self, topic: str, message: str) -> None:
        """Tell a fact, unless something of that topic was told before."""
        self._tell(logging.INFO, topic, message)

    def _tell(self, level: int, topic: str, message: str) -> None:
        if topic not in self._told:
            self._told.add(topic)
            LOGGER.log(level, "%s", message)
