"""The packages that planescope is installed with, their licences, and a bill of materials.

    python -m checks.reliability.supply licences    which there are; status 1 where one may not be
    python -m checks.reliability.supply pins        packages with their versions, for pip-audit
    python -m checks.reliability.supply sbom A B    of a CycloneDX list of an environment, those

Only what a user's installation has counts, ``planescope[all]`` and what that needs in turn, not
what develops and tests it.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Licences that ask of a program which uses the package that it be under them too, or forbid uses.
# The MPL asks that of changes to its own files alone.
COPYLEFT = re.compile(r"\b[AL]?GPL|GENERAL PUBLIC|\bSSPL|\bEUPL|\bCC-BY-(NC|SA)|\bBUSL", re.I)
# torch for CUDA comes with NVIDIA's libraries, which may be used and are not passed on with ours.
# Its list of them says nothing of a licence.
READ_BY_HAND = {"cuda-toolkit": "LicenseRef-NVIDIA-Proprietary"}
UNKNOWN = "unknown"


def installed(name: str = "planescope", extras: Iterable[str] = ("all",)) -> list[Distribution]:
    """The distributions that a package needs here, directly or not, itself left out; by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        try:
            found[one[0]] = distribution(one[0])
        except PackageNotFoundError:
            raise SystemExit(
                f"{one[0]} is needed and not installed; make audit installs all"
            ) from None
        for needed in _requirements(found[one[0]], one[1]):
            waiting += [(canonicalize_name(needed.name), extra) for extra in ("", *needed.extras)]
    del found[canonicalize_name(name)]
    return [found[each] for each in sorted(found)]


def _requirements(package: Distribution, extra: str) -> Iterator[Requirement]:
    for text in package.requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield requirement


def licence_of(package: Distribution, /) -> str:
    """Return what a package says of its licence: the SPDX expression, or else older fields."""
    about = package.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    classifiers = about.get_all("Classifier") or []
    names = [each.split(" :: ")[-1] for each in classifiers if each.startswith("License :: ")]
    # Some put the whole text there; the classifier then says what it is.
    line = str(about.get("License") or "").strip()
    if names or (line and "\n" not in line):
        return " AND ".join(names) if names else line
    return READ_BY_HAND.get(canonicalize_name(about["Name"]), UNKNOWN)


def is_refused(licence: str, /) -> bool:
    """Tell whether no licence on offer lets a program under MIT use the package."""
    offers = licence.split(" OR ")
    return licence == UNKNOWN or all(COPYLEFT.search(offer) for offer in offers)


def by_licence(packages: Iterable[Distribution], /) -> dict[str, list[str]]:
    """Names of packages by what they say of their licence."""
    found = defaultdict(list)
    for package in packages:
        found[licence_of(package)].append(str(package.metadata["Name"]))
    return dict(sorted(found.items()))


def runtime_part(bill: dict[str, Any], packages: Iterable[Distribution], /) -> dict[str, Any]:
    """Of a CycloneDX bill of an environment what an installation of planescope has."""
    wanted = {canonicalize_name(package.metadata["Name"]) for package in packages}
    kept = [each for each in bill["components"] if canonicalize_name(each["name"]) in wanted]
    if missing := wanted - {canonicalize_name(each["name"]) for each in kept}:
        raise SystemExit(f"the bill of materials lacks {', '.join(sorted(missing))}")
    root = bill["metadata"]["component"]
    root["version"] = distribution("planescope").version
    refs = {root["bom-ref"], *(each["bom-ref"] for each in kept)}
    graph = [
        each | {"dependsOn": [ref for ref in each.get("dependsOn", ()) if ref in refs]}
        for each in bill["dependencies"]
        if each["ref"] in refs
    ]
    return {**bill, "components": kept, "dependencies": graph}


def _print_licences() -> int:
    found = by_licence(installed())
    for licence, names in found.items():
        print(f"{licence}: {', '.join(names)}")
    refused = [licence for licence in found if is_refused(licence)]
    for licence in refused:
        print(f"not to be used by a program under MIT, or not known: {licence}")
    return 1 if refused else 0


def main() -> None:
    """Parse, print or write; status 1 where a licence is refused."""
    parser = argparse.ArgumentParser(prog="python -m checks.reliability.supply")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("licences")
    tasks.add_parser("pins")
    bill = tasks.add_parser("sbom")
    bill.add_argument("source", type=Path)
    bill.add_argument("out", type=Path)
    args = parser.parse_args()
    if args.task == "licences":
        raise SystemExit(_print_licences())
    if args.task == "pins":
        for package in installed():
            # Without what an index of torch's adds to a version, as in 2.9.0+cpu.
            print(f"{package.metadata['Name']}=={package.version.partition('+')[0]}")
        return
    part = runtime_part(json.loads(args.source.read_text(encoding="utf-8")), installed())
    args.out.write_text(json.dumps(part, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
