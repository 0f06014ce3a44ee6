"""What start-up says."""

from dataclasses import replace

from echo_engine import build

from turbosparse.engine.config import EngineConfig
from turbosparse.server.banner import banner

_, INFO = build(EngineConfig(model="echo"))


def test_exact_or_approximate_stands_in_the_banner():
    assert "function  exact\n" in banner("m", INFO, "http://x")
    approximate = replace(INFO, exact=False, approximation="separate predictors from p")
    assert "APPROXIMATE: separate predictors from p" in banner("m", approximate, "http://x")


def test_modes_by_size_of_step():
    assert "token up to 8 tokens in a step, dense beyond" in banner("m", INFO, "http://x")
    assert "ffn modes  dense\n" in banner("m", replace(INFO, ffn_modes={1: "dense"}), "http://x")
