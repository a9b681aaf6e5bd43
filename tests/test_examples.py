"""The examples run and say what they promise."""

from __future__ import annotations

import pytest


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    from examples import k_diffusion_model, own_denoiser, own_detector

    own_denoiser.main()
    far, near = (float(line.split("data ")[1].split(",")[0]) for line in capsys.readouterr().out.splitlines()[:2])
    assert near < far
    k_diffusion_model.main()
    assert "largest H" in capsys.readouterr().out
    own_detector.main()
    assert "*" in capsys.readouterr().out.splitlines()[-2]
