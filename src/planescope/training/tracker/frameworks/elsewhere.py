"""A callback that was given to another framework's trainer than its own says which one to give."""

from __future__ import annotations

from typing import Any, ClassVar

from planescope.files.errors import UsageError


class NotForLightning:
    """A part of callbacks for other trainers: as Lightning sets it up, it refuses.

    Attributes
    ----------
    meant_for : str
        The trainer that the callback is for.
    """

    meant_for: ClassVar[str]
    state_key = "planescope"  # Lightning asks its callbacks for one

    def on_exception(self, *_: Any, **__: Any) -> None:
        """Do nothing: Lightning calls it for the error of `setup`."""

    def setup(self, *_: Any, **__: Any) -> None:
        """Refuse.

        Raises
        ------
        UsageError
        """
        raise UsageError(
            f"this callback is for {self.meant_for}; give Lightning's trainer the Tracker itself"
        )
