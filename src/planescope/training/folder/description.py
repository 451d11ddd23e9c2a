"""The description of a run: names it was made by, those of them that may run, its structure."""

from __future__ import annotations

import functools
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Self

from planescope.files.errors import CheckpointError, UsageError
from planescope.files.optional import consented, typed_names
from planescope.hyperplanes.layer import Structure
from planescope.training.folder.paths import Folder
from planescope.training.folder.structure import read_structure, structure_text

if TYPE_CHECKING:
    from planescope.files.optional import Kind
    from planescope.training.config import RunConfig
    from planescope.training.tracked import TrackedConfig


class Described(Folder):
    """The folder of a run with what describes it; parameters are those of a `Run`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        network: str | None = None,
        data: str | None = None,
        trust: bool | str | Collection[str] = False,
    ) -> None:
        super().__init__(path)
        self._given = {k: v for k, v in {"network": network, "data": data}.items() if v is not None}
        typed = typed_names(trust) or frozenset()
        self.trust: bool | frozenset[str] = (
            typed if isinstance(typed, bool) else typed | set(self._given.values())
        )

    @property
    def config(self) -> RunConfig:
        """Read the config of the run, with network and data replaced where others were given.

        Raises
        ------
        CheckpointError
            If there is no run, or its config.yaml is lost.
        UsageError
            If that is no config.
        """
        from planescope.training.config import load_config

        if self.tracked is not None:
            raise UsageError(
                f"{self.path}: a Tracker followed this training, which planescope cannot repeat"
            )
        path = self._checked()._part("config.yaml")
        # A user's own file that is empty is all defaults; here it would make another run of this.
        if not path.stat().st_size:
            raise CheckpointError(
                f"{path}: is empty; put it back, or train anew with another --out"
            )
        config = load_config(path)
        return config.but(self._given) if self._given else config

    @property
    def tracked(self) -> TrackedConfig | None:
        """Return what a Tracker knew of the training; None for a run that planescope trained.

        Raises
        ------
        CheckpointError
            If there is no run, or its config.yaml is lost.
        UsageError
            If that is no config.
        """
        from planescope.training.tracked import load_tracked

        path = self._checked()._part("config.yaml")
        found = load_tracked(path) if path.stat().st_size else None
        return found.but(self._given) if found is not None else None

    @property
    def about(self) -> RunConfig | TrackedConfig:
        """Return all that is known of the training: `tracked`, or else `config`."""
        return self.tracked or self.config

    @property
    def is_tracked(self) -> bool:
        """Tell whether there is a run, and a Tracker wrote it."""
        return self.exists and self.tracked is not None

    @functools.cached_property  # it never changes, and every file of a run asks for it
    def unit(self) -> str:
        """Return the unit of its snapshots: epochs, or steps where a Tracker counted these."""
        tracked = self.tracked
        return "epoch" if tracked is None else tracked.unit

    @property
    def named_data(self) -> str | None:
        """Return the name that was given to its data; None where nobody gave one."""
        return self._given.get("data") if self.tracked is not None else self.config.data

    @property
    def named_network(self) -> str | None:
        """Return the name that its network is built by; None where only its class is known."""
        return self._given.get("network") if self.tracked is not None else self.config.network

    def consented(self, kind: Kind, /) -> str:
        """Return the name of its network, or of its data, if what that names may run.

        Raises
        ------
        UsageError
            If it is code that nobody consented to.
        CheckpointError
            As `config`.
        """
        where = self.path / "config.yaml"
        return consented(getattr(self.about, kind), kind=kind, where=where, trust=self.trust)

    @property
    def structure(self) -> Structure | str:
        """Return the structure recorded for the network, or the network's name.

        Of a run of an earlier version that names code nobody consented to, nothing does: then no
        layer has a place, and the note says how to have them.

        Raises
        ------
        CheckpointError
            If network.json is damaged.
        """
        tracked, name = self.tracked, self.about.network
        if ":" not in name and tracked is None:
            return name
        recorded = read_structure(self._part("network.json"))
        if recorded is not None and (recorded.network == name or tracked is not None):
            return recorded
        if tracked is not None:
            raise CheckpointError(f"{self._part('network.json')}: is lost; put it back")
        try:
            return self.consented("network")
        except UsageError:
            return Structure(
                network=name,
                names=(),
                places={},
                note=f"{self.path} was made by an earlier version, which did not record where its "
                f"layers stand: stages, inputs and norms are unknown; give --network {name} to "
                "build it, or --trust",
            )

    @property
    def unknown(self) -> str:
        """Say why the places of its layers are unknown; "" where they are known."""
        structure = self.structure
        return structure.note if isinstance(structure, Structure) and not structure.known else ""

    @property
    def can_be_measured(self) -> bool:
        """Tell whether snapshots can be measured in the run's view, which may need norms."""
        return self.about.view == "raw" or not self.unknown

    def save_structure(self, structure: Structure) -> None:
        """Write where the layers of its network stand."""
        self._write("network.json", structure_text(structure))

    def _checked(self) -> Self:
        """Return it; an error where there is no run."""
        if not self.exists:
            if self._part("study.yaml").is_file():
                raise CheckpointError(
                    f"{self.path}: is a study; name runs of {self.path / 'runs'}, or ask "
                    "how far it is by planescope study FILE --status"
                )
            raise CheckpointError(f"{self.path}: is no run: it has no config.yaml")
        return self
