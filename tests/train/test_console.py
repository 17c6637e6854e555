"""Progress goes to stderr with a time left; a quiet reporter says nothing."""

import pytest

from medtl_train.console import Reporter

ROW = {
    "epoch": 3, "phase": "all", "train_loss": 0.5, "val_loss": 0.25, "monitored": 0.875,
    "seconds": 1.5,
}  # fmt: skip


def use(reporter: Reporter, monitor: str = "auroc") -> list:
    reporter.note("[data] 100% [/]")
    seen = list(reporter.tracker("reading", 3)(iter("abc")))
    with reporter.fitting(10, monitor) as (on_step, on_epoch):
        on_step()
        on_epoch(ROW)
    return seen


def test_notes_and_epochs_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert use(Reporter()) == ["a", "b", "c"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "[data] 100% [/]\n" in err  # no markup of the console
    line = "epoch   3 all   train loss 0.5000  val loss 0.2500  val auroc 0.8750  1.5 s\n"
    assert line in err


def test_the_loss_can_be_the_monitored_metric(capsys: pytest.CaptureFixture[str]) -> None:
    use(Reporter(), "loss")
    assert "val loss 0.2500  val loss 0.8750" in capsys.readouterr().err


def test_a_quiet_reporter_passes_everything_on_and_says_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert use(Reporter(quiet=True)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_a_person_sees_how_long_it_will_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # how rich is told that a person looks on
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with Reporter().fitting(10, "auroc") as (on_step, _):
        on_step()
    shown = capsys.readouterr().err
    assert "training" in shown
    assert "0/10" in shown or "1/10" in shown
    assert "left" in shown
