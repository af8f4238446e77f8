"""Draft views where memory is short: what is free, what is refused, and what continues without."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
from command_line import run

import specdec
from specdec.errors import MemoryShortError, RuntimeUnavailableError
from specdec.runtimes.memory import available_bytes, check_room, release_free_memory
from specdec.runtimes.native import runtime as native

try:
    native.native_module()
except RuntimeUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_available_is_the_lower_of_kernel_and_control_group(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 4000 kB\n")
    assert available_bytes(meminfo, tmp_path) == 4000 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2500000\n")
    (tmp_path / "memory.stat").write_text("anon 1900000\nactive_file 200000\ninactive_file 400000\n")
    assert available_bytes(meminfo, tmp_path) == 1_100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 4000 * 1024


def test_only_what_does_not_fit_is_refused() -> None:
    check_room("it", 100, 100)
    check_room("it", 10**15, None)
    with pytest.raises(MemoryShortError, match=r"^it needs 2\.00 GB of memory and 1\.50 GB are free: "):
        check_room("it", 2 * 10**9, 15 * 10**8)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back when asked")
def test_what_was_freed_is_given_back() -> None:
    held = [bytes([k]) * 60_000 for k in range(200) for _ in range(5)]  # below the size that is mapped by itself
    last = bytes(60_000)  # on top of the heap: nothing below it goes by itself
    before = _resident()
    held.clear()
    release_free_memory()
    assert before - _resident() > 40 << 20
    assert not any(last)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_estimates_are_near_what_views_take(text_model: Path) -> None:
    runtime = specdec.load(text_model, runtime="native").runtime
    assert isinstance(runtime, native.NativeRuntime)
    weights = sum(outputs * inputs for outputs, inputs in runtime.config.matrices().values())
    for view in ("int4", "bucket8"):
        runtime.prepare(view)
        # Tiny matrices are rounded up to whole tiles, so the estimate may be well under; it is never over.
        assert weights * 0.3 < runtime.views()[view].own_bytes <= runtime.memory[view]


def test_auto_goes_on_without_the_view_and_says_so(text_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = specdec.generate(specdec.load(text_model, runtime="native"), "hello", max_tokens=12, speculate=False)
    monkeypatch.setattr(native, "available_bytes", lambda: 1000)
    model = specdec.load(text_model, runtime="native")
    with pytest.warns(UserWarning, match="draft view 'int4' needs .* drafting continues without it"):
        result = specdec.generate(model, "hello", max_tokens=12)
    assert result.tokens == wanted.tokens
    assert isinstance(model.runtime, native.NativeRuntime)
    assert "int4" not in model.runtime.memory


def test_a_view_that_was_asked_for_is_refused(
    text_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "available_bytes", lambda: 1000)
    arguments = ("generate", "--model", text_model, "--runtime", "native", "--prompt", "hello", "--max-tokens", "4")
    ran = run(capsys, *arguments, "--draft-view", "bucket8")
    assert ran.code == 2
    assert "draft view 'bucket8' needs" in ran.err
    assert ran.err.count("\n") == 1
    ran = run(capsys, *arguments, "--draft-view", "bucket", "--drafter", "effort", "--draft-effort", "0.5")
    assert ran.code == 2
    assert "an effort below 1 on the exact weights needs" in ran.err
