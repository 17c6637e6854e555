"""What is known of the processor, from Linux's own words."""

import platform
from pathlib import Path

import pytest

from medtl_runtime.engines.processor import first_processor, machine, may_saturate

CPUINFO = Path("/proc/cpuinfo")


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_vnni", False),
        ("flags : fpu avx2 avx_vnni", False),
        ("flags : fpu avx2 avx512f avx512_vnni_like", True),
        ("flags : fpu avx2", True),
    ],
)
def test_int8_products_may_saturate_on_x86_without_vnni(flags: str, expected: bool) -> None:
    assert may_saturate(flags) is expected


@pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo")
def test_this_processor_s_features_are_those_of_the_whole_file() -> None:
    words = CPUINFO.read_text(encoding="utf-8")
    assert may_saturate() is may_saturate(words)
    (name,) = {line.split(":")[1].strip() for line in words.splitlines() if "model name" in line}
    assert name in machine()
    assert machine() == machine()


def test_only_thefirst_processor_is_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: One\ncpu MHz\t\t: 2500.1\nflags\t\t: a b\n\n"
        "processor\t: 1\nmodel name\t: Other\nflags\t\t: c\n"
    )
    assert list(first_processor(file)) == ["model name\t: One", "flags\t\t: a b"]
