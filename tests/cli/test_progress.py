import io
import re
import time

import numpy as np
import pytest
from rich.console import Console

from research.cli.progress import Progress, duration


def plain(total_steps: int = 100, start_step: int = 0, log_every: int = 10) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(total_steps, start_step, log_every, Console(file=file, force_terminal=False, width=60)), file


def live(total_steps: int = 100, start_step: int = 0) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    environment = {"TERM": "xterm-256color"}
    console = Console(file=file, force_terminal=True, width=100, color_system=None, _environ=environment)
    return Progress(total_steps, start_step, 10, console), file


def test_plain_lines_come_first_last_and_every_so_many_steps() -> None:
    progress, file = plain(total_steps=25)
    with progress:
        progress.stage("training the tokenizer")
        for step in range(1, 26):
            progress.update(step, np.float32(4.5), 12345.6, utilisation=0.41)
    lines = file.getvalue().splitlines()
    assert lines[0] == "training the tokenizer"
    assert [line.split("  ")[0] for line in lines[1:]] == ["step 1/25", "step 10/25", "step 20/25", "step 25/25"]
    assert lines[2].startswith("step 10/25  loss 4.5000  12,346 tokens/s  41% of peak FLOPs  ")
    assert " elapsed" in lines[2]
    assert lines[2].endswith(" left")
    assert not lines[-1].endswith(" left")
    assert "\x1b" not in file.getvalue()


def test_plain_lines_have_what_is_known_and_each_event() -> None:
    progress, file = plain(start_step=40)
    with progress:
        progress.event("resumed from step 40")
        progress.update(41, 4.0, 10.0)
        progress.update(50, 4.0, 10.0, heldout_bits_per_byte=2.3456, heldout_accuracy=None)
        progress.update(50, 4.0, 10.0, heldout_bits_per_byte=2.0)
        progress.update(60, 4.0, 10.0, heldout_accuracy=0.25, gradient_norm=1.23456)
    resumed, first, second, third = file.getvalue().splitlines()
    assert resumed == "resumed from step 40"
    assert "held-out" not in first
    assert "peak" not in first
    assert "held-out 2.346 bits/byte" in second
    assert "held-out 2.000 bits/byte  held-out accuracy 25.0%  gradient norm 1.235" in third


@pytest.mark.parametrize("make", [plain, live])
def test_text_is_shown_as_it_is_and_cannot_steer_the_terminal(make) -> None:
    progress, file = make()
    with progress:
        progress.stage("reading [data]")
        progress.event("sample: [bold]a[/bold] \x1b[31mred\x07 " + "long " * 40)
        progress.update(1, 1.0, 1.0)
    assert "reading [data]" in file.getvalue()
    assert "[bold]a[/bold] \N{REPLACEMENT CHARACTER}[31mred\N{REPLACEMENT CHARACTER} " + "long " * 39 in file.getvalue()


def test_live_display_shows_stages_steps_and_events() -> None:
    progress, file = live(total_steps=200)
    with progress:
        progress.stage("tokenizing")
        time.sleep(0.1)
        progress.stage("compiling")
        progress.update(120, 3.25, 12345.6, 0.41, heldout_bits_per_byte=2.5)
        progress.stage("evaluating")
        progress.event("checkpoint at step 120")
    output = file.getvalue()
    assert re.search(r"tokenizing \(\d+\.\d s\)", output)
    assert re.search(r"compiling \(\d+\.\d s\)", output)
    assert "evaluating (" not in output
    assert "checkpoint at step 120" in output
    last = output[output.rindex("step 120 / 200") :]
    assert "loss 3.2500   held-out 2.500 bits/byte   12,346 tokens/s   41% of peak FLOPs" in last
    assert output.count("\x1b[?25l") == output.count("\x1b[?25h") == 1  # the cursor comes back


def test_live_display_is_drawn_a_few_times_a_second_however_many_steps_there_are() -> None:
    progress, file = live(total_steps=10**6)
    with progress:
        began, step = time.monotonic(), 0
        while time.monotonic() - began < 1.0:
            step += 1
            progress.update(step, 3.0, 10.0, 0.5)
    assert step > 2_000
    assert file.getvalue().count("loss 3.0000") <= 8


def test_display_ends_when_the_run_fails() -> None:
    progress, file = live()
    with pytest.raises(KeyboardInterrupt), progress:
        progress.update(3, 1.0, 1.0)
        raise KeyboardInterrupt
    assert file.getvalue().endswith("\x1b[?25h")


def test_a_quiet_console_shows_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress(10, 0, 1, Console(quiet=True)) as progress:
        progress.stage("reading")
        progress.update(1, 1.0, 1.0)
        progress.event("saved")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (245.0, "4:05"), (3723.4, "1:02:03")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
