"""The software bill of materials of an export: what the model file was made with (CycloneDX 1.6).

It lists what is installed where the exporter runs, by the packages' own metadata, and names neither
the machine nor a path, a user or the time: the same environment and model give the same bytes.
"""

# The library's decorators hide the constructors of its classes from type checkers.
# pyright: reportCallIssue=false

import importlib.metadata
import json
import platform
import uuid
from collections.abc import Iterable, Mapping
from email.utils import getaddresses
from importlib.metadata import Distribution
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.contact import OrganizationalContact
from cyclonedx.model.license import License, LicenseAcknowledgement
from cyclonedx.model.lifecycle import LifecyclePhase, PredefinedLifecycle
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

LOCAL = "medtl:installed-from"
"""The property of a package that was installed from a folder, hence is no release of a registry."""

_SERIAL = uuid.UUID("5f2d7c0e-6b5e-5c1b-9a43-0d8c6f1f7a11")
_LICENCE_CLASSIFIER = "License :: "
# Some packages put the whole text of their licence where its name belongs.
_LONGEST_LICENCE_NAME = 80


def sbom(
    model_name: str,
    model_digest: str,
    distributions: Iterable[Distribution] | None = None,
    *,
    model_version: str,
) -> str:
    """Return the bill of materials as JSON text.

    Parameters
    ----------
    model_name, model_version
        Of the model file's description.
    model_digest
        ``sha256:`` and the 64 hexadecimal digits of the file's SHA-256.
    distributions
        The installed packages; by default all that this interpreter finds.

    Returns
    -------
    A CycloneDX 1.6 document. Its subject is the model; it depends on Python, the operating system
    and medtl, or on all packages where medtl is not among them. A package depends on what its
    metadata require for this machine, as far as it is installed; an extra counts where all that it
    requires is installed, because no installer notes which extras were asked for.
    """
    found = importlib.metadata.distributions() if distributions is None else distributions
    packages = _by_name(found)
    parts = {name: _component(package) for name, package in packages.items()}
    python, system = _python(), _operating_system()
    model = _model(model_name, model_version, model_digest)
    bom: Any = Bom(  # to a checker it has no methods, see above
        components=[python, system, *parts.values()],
        metadata=BomMetaData(
            component=model, lifecycles=[PredefinedLifecycle(LifecyclePhase.BUILD)]
        ),
        serial_number=_SERIAL,
    )
    made_with = [parts["medtl"]] if "medtl" in parts else list(parts.values())
    bom.register_dependency(model, [*made_with, python, system])
    for name, package in packages.items():
        needed = _requirements(package, packages)
        bom.register_dependency(parts[name], [parts[other] for other in sorted(needed)])
    # The number stands for the content: the same bill has the same one.
    bom.serial_number = uuid.uuid5(_SERIAL, _text(bom))
    return _text(bom)


def _text(bom: Any) -> str:
    written = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string()
    document = json.loads(written)
    # The library always writes the time; the standard does not ask for it.
    del document["metadata"]["timestamp"]
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _by_name(distributions: Iterable[Distribution]) -> dict[str, Distribution]:
    """Return packages by normalised name, sorted; of several of a name, the one Python imports."""
    packages: dict[str, Distribution] = {}
    for one in distributions:
        # Remains of a broken installation have no name.
        if name := _field(one, "Name"):
            packages.setdefault(canonicalize_name(name), one)
    return dict(sorted(packages.items()))


def _model(name: str, version: str, digest: str) -> Component:
    algorithm, _, content = digest.partition(":")
    assert algorithm == "sha256", digest
    return Component(
        name=name,
        version=version,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=digest,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content)],
    )


def _component(package: Distribution) -> Component:
    name, version = canonicalize_name(package.metadata["Name"]), _field(package, "Version")
    local = _is_from_folder(package)
    return Component(
        name=package.metadata["Name"],
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"{name}=={version}",
        # A registry may have another package of this name.
        purl=None if local else PackageURL(type="pypi", name=name, version=version),
        licenses=_licences(package),
        authors=[OrganizationalContact(name=author) for author in _authors(package)],
        properties=[Property(name=LOCAL, value="a local folder")] if local else (),
    )


def _field(package: Distribution, name: str) -> str:
    """Return a field of the metadata; empty where it is missing."""
    return (package.metadata.get_all(name) or [""])[0].strip()


def _is_from_folder(package: Distribution) -> bool:
    """Whether a package was installed from a folder, editable or not (PEP 610)."""
    try:
        origin = json.loads(package.read_text("direct_url.json") or "{}")
    except ValueError:
        return False
    return isinstance(origin, Mapping) and "dir_info" in origin


def _licences(package: Distribution) -> list[License]:
    """Return what the package declares: an SPDX expression (PEP 639), else a name."""
    make = LicenseFactory().make_from_string
    declared = LicenseAcknowledgement.DECLARED
    for field in ("License-Expression", "License"):
        text = _field(package, field)
        if text and "\n" not in text and len(text) <= _LONGEST_LICENCE_NAME:
            return [make(text, license_acknowledgement=declared)]
        if text and field == "License-Expression":
            return [make(" ".join(text.split()), license_acknowledgement=declared)]
    classifiers = package.metadata.get_all("Classifier") or []
    names = {c.rpartition(" :: ")[2] for c in classifiers if c.startswith(_LICENCE_CLASSIFIER)}
    return [make(name, license_acknowledgement=declared) for name in sorted(names)]


def _authors(package: Distribution) -> list[str]:
    """Return the authors' names, without their addresses."""
    if author := _field(package, "Author"):
        return [" ".join(author.split())]
    named = getaddresses(package.metadata.get_all("Author-email") or [])
    return sorted({name for name, _ in named if name})


def _requirements(package: Distribution, packages: Mapping[str, Distribution]) -> set[str]:
    """Return the names of the installed packages that a package requires on this machine."""
    asked = [one for one in map(_requirement, package.requires or []) if one is not None]
    always = _holding(asked, extra="")
    needed = set(always)
    for extra in package.metadata.get_all("Provides-Extra") or []:
        more = _holding(asked, extra=extra) - always
        if more <= set(packages):
            needed |= more
    return (needed & set(packages)) - {canonicalize_name(package.metadata["Name"])}


def _requirement(text: str) -> Requirement | None:
    try:
        return Requirement(text)
    except InvalidRequirement:  # from before PEP 508; pip cannot read it either
        return None


def _holding(asked: Iterable[Requirement], *, extra: str) -> set[str]:
    return {
        canonicalize_name(one.name)
        for one in asked
        if one.marker is None or one.marker.evaluate({"extra": extra})
    }


def _python() -> Component:
    name, version = platform.python_implementation(), platform.python_version()
    return Component(
        name=name,
        version=version,
        type=ComponentType.PLATFORM,
        bom_ref=f"{name}=={version}",
        cpe=f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*" if name == "CPython" else None,
    )


def _operating_system() -> Component:
    """Return the system by its release file, which names a product and not the machine."""
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {"NAME": platform.system() or "unknown"}
    name, version = release["NAME"], release.get("VERSION_ID")
    return Component(
        name=name,
        version=version,
        type=ComponentType.OPERATING_SYSTEM,
        bom_ref=f"{name} {version or ''}".strip(),
        properties=[Property(name="medtl:architecture", value=platform.machine())],
    )
