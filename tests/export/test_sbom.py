"""The bill of materials lists what is installed, is CycloneDX, and tells nothing of the machine."""

import getpass
import importlib.metadata
import json
import platform
import socket
from email.message import Message
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from medtl_export.sbom import LOCAL, sbom

DIGEST = "sha256:" + "ab" * 32


class Installed(Distribution):
    """A package that is described here and lies nowhere."""

    def __init__(self, name: str, version: str = "1.0", origin: Any = None, **fields: Any) -> None:
        message = Message()
        message["Metadata-Version"] = "2.4"
        message["Name"], message["Version"] = name, version
        for field, values in fields.items():
            for value in values if isinstance(values, list) else [values]:
                message[field.replace("_", "-")] = value
        self._files = {"METADATA": str(message), "direct_url.json": origin}

    def read_text(self, filename: str) -> str | None:
        return self._files.get(filename)

    def locate_file(self, path: Any) -> Any:
        raise AssertionError(f"{path} of a package is not to be looked for")


def bill(*packages: Distribution) -> dict[str, Any]:
    return json.loads(sbom("liver", DIGEST, packages, model_version="dd2e06f91f55"))


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in document["components"] if one["name"] == name]
    return found


def needs(document: dict[str, Any], ref: str) -> list[str]:
    (found,) = [one for one in document["dependencies"] if one["ref"] == ref]
    return found.get("dependsOn", [])


@pytest.fixture(scope="module")
def real() -> str:
    return sbom("liver", DIGEST, model_version="dd2e06f91f55")


def test_the_bill_of_this_environment_passes_the_strict_schema(real: str) -> None:
    pytest.importorskip("jsonschema")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(real) is None
    broken = json.loads(real)
    broken["metadata"]["component"]["type"] = "network"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_the_bill_of_this_environment_lists_all_packages_python_and_the_system(real: str) -> None:
    found = {(one["name"], one["version"]) for one in json.loads(real)["components"]}
    for package in importlib.metadata.distributions():
        assert (package.metadata["Name"], package.version) in found
    assert (platform.python_implementation(), platform.python_version()) in found
    kinds = [one["type"] for one in json.loads(real)["components"]]
    assert kinds.count("platform") == kinds.count("operating-system") == 1


def test_the_bill_of_this_environment_names_no_path_host_user_or_time(real: str) -> None:
    document = json.loads(real)
    assert "timestamp" not in document["metadata"]
    root = Path(__file__).parents[2]
    for private in (str(root), str(Path.home()) + "/", "file:", "site-packages"):
        assert private not in real
    names = [one["name"] for one in document["components"]]
    assert socket.gethostname() not in names
    assert getpass.getuser() not in names


def test_the_model_is_the_subject_with_its_digest() -> None:
    document = bill(Installed("medtl"))
    assert document["specVersion"] == "1.6"
    assert document["metadata"]["component"] == {
        "type": "machine-learning-model",
        "name": "liver",
        "version": "dd2e06f91f55",
        "bom-ref": DIGEST,
        "hashes": [{"alg": "SHA-256", "content": "ab" * 32}],
    }
    assert document["metadata"]["lifecycles"] == [{"phase": "build"}]
    assert "medtl==1.0" in needs(document, DIGEST)


def test_without_medtl_the_model_depends_on_all_packages() -> None:
    document = bill(Installed("a"), Installed("b"))
    assert {"a==1.0", "b==1.0"} < set(needs(document, DIGEST))


def test_the_same_environment_gives_the_same_bytes_in_any_order() -> None:
    packages = [Installed("b", Requires_Dist=["a", "c"]), Installed("a"), Installed("c")]
    texts = {
        sbom("m", DIGEST, order, model_version="1")
        for order in (packages, list(reversed(packages)))
    }
    assert len(texts) == 1


def test_the_serial_number_changes_with_the_content() -> None:
    serials = {
        bill(Installed("a"))["serialNumber"],
        bill(Installed("a", "1.1"))["serialNumber"],
        json.loads(sbom("m", DIGEST, [Installed("a")], model_version="2"))["serialNumber"],
    }
    assert len(serials) == 3
    assert all(serial.startswith("urn:uuid:") for serial in serials)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT"}, {"license": {"id": "MIT"}}),
        ({"License_Expression": "MIT OR Apache-2.0"}, {"expression": "MIT OR Apache-2.0"}),
        ({"License": "bsd-3-clause"}, {"license": {"id": "BSD-3-Clause"}}),
        ({"License": "Ours, ask us"}, {"license": {"name": "Ours, ask us"}}),
        (
            {"Classifier": ["Topic :: X", "License :: OSI Approved :: BSD License"]},
            {"license": {"name": "BSD License"}},
        ),
        (
            {"License": "x" * 200, "Classifier": ["License :: OSI Approved :: MIT License"]},
            {"license": {"name": "MIT License"}},
        ),
    ],
)
def test_licences_are_expressions_identifiers_or_names(
    fields: dict[str, Any], expected: dict[str, Any]
) -> None:
    (found,) = component(bill(Installed("a", **fields)), "a")["licenses"]
    for one in (found, found.get("license", {})):
        one.pop("acknowledgement", None)
    assert found == expected


def test_a_long_expression_is_kept_whole() -> None:
    expression = " AND ".join(["Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "Zlib"] * 3)
    (found,) = component(bill(Installed("a", License_Expression=expression)), "a")["licenses"]
    assert found["expression"] == expression


def test_a_package_without_a_licence_has_none() -> None:
    assert "licenses" not in component(bill(Installed("a")), "a")


def test_authors_are_named_without_their_addresses() -> None:
    document = bill(Installed("a", Author_email="Ann Other <ann@example.org>, b@example.org"))
    assert component(document, "a")["authors"] == [{"name": "Ann Other"}]
    assert "example.org" not in json.dumps(document)


def test_requirements_become_dependencies_where_they_hold_and_are_installed() -> None:
    required = [
        "B_b>=1",
        "absent",
        "c; python_version < '3'",
        "d; python_version >= '3'",
        "e; extra == 'whole'",
        "f; extra == 'half'",
        "absent2; extra == 'half'",
        "not a requirement !!",
    ]
    packages = [Installed(name) for name in ("b-b", "c", "d", "e", "f")]
    top = Installed("top", Requires_Dist=required, Provides_Extra=["whole", "half"])
    assert needs(bill(top, *packages), "top==1.0") == ["b-b==1.0", "d==1.0", "e==1.0"]


def test_a_package_that_names_itself_in_an_extra_does_not_depend_on_itself() -> None:
    package = Installed("a", Requires_Dist=["a[x]; extra == 'all'"], Provides_Extra=["all"])
    assert needs(bill(package), "a==1.0") == []


def test_a_package_from_a_folder_is_listed_without_the_folder_or_an_address_in_a_registry() -> None:
    origin = json.dumps({"url": "file:///home/ann/secret", "dir_info": {"editable": True}})
    document = bill(Installed("mine", origin=origin), Installed("theirs"))
    mine = component(document, "mine")
    assert "purl" not in mine
    assert mine["properties"] == [{"name": LOCAL, "value": "a local folder"}]
    assert component(document, "theirs")["purl"] == "pkg:pypi/theirs@1.0"
    assert "ann" not in json.dumps(document)


def test_a_wheel_from_a_file_keeps_its_address_and_loses_its_path() -> None:
    origin = json.dumps({"url": "file:///home/ann/a.whl", "archive_info": {}})
    document = bill(Installed("a", origin=origin))
    assert component(document, "a")["purl"] == "pkg:pypi/a@1.0"
    assert "ann" not in json.dumps(document)


def test_of_two_packages_of_one_name_the_first_counts() -> None:
    document = bill(Installed("Some.Name", "2"), Installed("some-name", "1"))
    assert component(document, "Some.Name")["version"] == "2"
    assert len(document["components"]) == 3
