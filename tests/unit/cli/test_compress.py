"""`tlora compress`."""

import pytest

import tlora
from tests.helpers.commands import RUN, done, invoke

pytestmark = pytest.mark.usefixtures("workplace", "no_pictures")


def test_compress_prints_what_is_kept_and_lost():
    done(f"{RUN} --steps 3 --eval-limit 0 --output trained --save-calibration")
    calibration = "trained/tlora/calibration"
    text = done(f"compress trained --parameters 0.5 --calibration {calibration} --output half").stdout
    compression = tlora.compress("trained", parameters=0.5, calibration=tlora.Calibration.load(calibration))
    before, after = compression.parameters
    assert f"{after:,} of {before:,} parameters" in text
    assert f"lost (task)   {compression.error():.1%} of the outputs on the task" in text
    assert "next  tlora inspect half" in text
    assert tlora.inspect("half").ranks == {name: rank for name, rank in compression.ranks.items() if rank}
    assert "--overwrite" in invoke("compress trained --rank 1 --output half").stderr
    done("compress trained --rank 1 --overwrite --output half")
    assert set(tlora.inspect("half").ranks.values()) == {1}
