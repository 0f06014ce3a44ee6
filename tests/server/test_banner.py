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


def test_what_attention_requests_may_ask_for():
    assert "attention  full, by request bound; 512 tokens\n" in banner("m", INFO, "http://x")
    beyond = replace(INFO, attention=replace(INFO.attention, mode="bound", beyond=4096))
    assert "bound, by request full; 512 tokens, beyond 4,096\n" in banner("m", beyond, "http://x")
    assert "attention" not in banner("m", replace(INFO, attention=None), "http://x")


def test_modes_by_size_of_step():
    assert "token up to 8 tokens in a step, dense beyond" in banner("m", INFO, "http://x")
    assert "ffn modes  dense\n" in banner("m", replace(INFO, ffn_modes={1: "dense"}), "http://x")
