"""Which codes stand for a model's classes."""

from pathlib import Path

import pytest

from medtl_runtime.codes import Code, Codes, private_code, read_codes
from medtl_runtime.errors import UsageError
from medtl_runtime.heads import Head

HEADS = (Head(name="label", classes=("normal", "lesion", "no finding")),)
LESION = '[classes.lesion]\nvalue = "4147007"\nscheme = "SCT"\nmeaning = "Mass"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "codes.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_maps_classes_and_the_procedure(tmp_path: Path) -> None:
    text = LESION + (
        '[classes."no finding"]\nvalue = "RID28480"\nscheme = "RADLEX"\nmeaning = "normal"\n'
        '[procedure]\nvalue = "25045-6"\nscheme = "LN"\nmeaning = "CT unspecified body region"\n'
    )
    codes = read_codes(written(tmp_path, text), HEADS)
    assert codes.of("lesion") == Code(value="4147007", scheme="SCT", meaning="Mass")
    assert codes.of("no finding").scheme == "RADLEX"
    assert codes.procedure.value == "25045-6"


def test_an_empty_file_maps_nothing(tmp_path: Path) -> None:
    codes = read_codes(written(tmp_path, ""), HEADS)
    assert codes == Codes()
    assert codes.procedure == Code(value="363679005", scheme="SCT", meaning="Imaging procedure")


def test_a_label_that_is_not_mapped_has_a_private_code(tmp_path: Path) -> None:
    codes = read_codes(written(tmp_path, LESION), HEADS)
    assert codes.of("normal") == Code(value="normal", scheme="99MEDTL", meaning="normal")


@pytest.mark.parametrize(
    ("label", "value", "meaning"),
    [
        ("lesion-2.b_c", "lesion-2.b_c", "lesion-2.b_c"),
        ("no finding", "073571ea6384a96f", "no finding"),
        ("a" * 17, None, "a" * 17),
        ("b" * 65, None, "b" * 63 + "…"),
        ("病変", None, "病変"),
        ("a\\b\n", None, "a?b?"),
        (" ", None, "unnamed"),
        ("", None, "unnamed"),
    ],
)
def test_any_label_becomes_a_code_that_dicom_can_hold(
    label: str, value: str | None, meaning: str
) -> None:
    code = private_code(label)
    assert code == private_code(label)
    assert code.meaning == meaning
    assert len(code.value) <= 16
    assert value is None or code.value == value


def test_different_labels_have_different_private_codes() -> None:
    labels = ["a", "A", "a ", "a" * 17, "a" * 18, "ä", "b" * 64 + "1", "b" * 64 + "2"]
    assert len({private_code(label).value for label in labels}) == len(labels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[classes.", "is not TOML"),
        ("classes = 3", "classes is 3; expected a table"),
        ("classes.lesion = 'x'", "classes.lesion is 'x'; expected a table"),
        ("[class.lesion]", "class is unknown; expected classes, values, procedure"),
        (
            LESION.replace("lesion", "mass"),
            "classes.mass is no class of the model; expected normal",
        ),
        ('[classes.lesion]\nvalue = "1"\nscheme = "SCT"', "classes.lesion.meaning is missing"),
        (LESION + 'version = "2"', "classes.lesion.version is unknown; expected value, scheme"),
        (LESION.replace('"4147007"', "4147007"), "classes.lesion.value is 4147007; expected text"),
        (LESION.replace("Mass", " "), "classes.lesion.meaning is ' '; expected text"),
        (
            LESION.replace("4147007", "1" * 17),
            "classes.lesion.value has 17 characters; DICOM allow",
        ),
        (
            LESION.replace("Mass", "M" * 65),
            "classes.lesion.meaning has 65 characters; DICOM allows",
        ),
        (LESION.replace("SCT", "S\\\\T"), "classes.lesion.scheme holds a backslash"),
        ("[procedure]\nvalue = '1'", "procedure.scheme is missing"),
    ],
)
def test_a_wrong_file_is_refused_by_the_name_of_its_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UsageError) as error:
        read_codes(path, HEADS)
    assert str(error.value).startswith(f"{path}")
    assert message in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.toml: No such file"):
        read_codes(tmp_path / "none.toml", HEADS)


def test_a_file_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "codes.toml"
    path.write_bytes(LESION.replace("Mass", "Läsion").encode("latin-1"))
    with pytest.raises(UsageError, match="is not TOML"):
        read_codes(path, HEADS)
