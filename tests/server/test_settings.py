"""Flags, then environment, then defaults."""

import argparse

import pytest

from turbosparse.server import flags
from turbosparse.server.flags import SettingsError
from turbosparse.server.settings import Settings


def parse(*argv: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser, Settings)
    return flags.read(Settings, vars(parser.parse_args(argv)), environment)


def test_defaults():
    assert parse() == Settings()
    assert parse().host == "127.0.0.1", "nobody else can reach it unless told so"


def test_a_flag_wins_over_the_environment():
    assert parse(TURBOSPARSE_PORT="9000").port == 9000
    assert parse("--port", "9001", TURBOSPARSE_PORT="9000").port == 9001
    assert parse(TURBOSPARSE_PORT="").port == 8000
    assert parse("--no-prefix-caching").no_prefix_caching
    assert parse(TURBOSPARSE_NO_PREFIX_CACHING="true").no_prefix_caching
    assert not parse(TURBOSPARSE_NO_PREFIX_CACHING="0").no_prefix_caching


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--port", "x"), "--port='x' is not a number"),
        (("--port", "-1"), "--port=-1 is less than 0"),
        (("--max-num-seqs", "0"), "--max-num-seqs=0"),
        (("--ffn-mode", "fast"), "--ffn-mode='fast' is not one of token, union, dense"),
        (("--log-level", "loud"), "--log-level"),
    ],
)
def test_a_bad_value_is_named(argv, named):
    with pytest.raises(SettingsError, match=named):
        parse(*argv)


def test_a_bad_variable_is_named():
    with pytest.raises(SettingsError, match="TURBOSPARSE_ACCESS_LOG"):
        parse(TURBOSPARSE_ACCESS_LOG="perhaps")


def test_the_engines_share():
    config = parse("--kv-cache-gib", "0.5", "--threads", "3", "--no-prefix-caching").engine(
        "m", "p"
    )
    assert (config.model, config.predictors) == ("m", "p")
    assert config.kv_cache_bytes == 1 << 29
    assert config.num_threads == 3
    assert not config.prefix_caching


def test_every_flag_has_help():
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser, Settings)
    assert all(action.help for action in parser._actions)
    assert "TURBOSPARSE_MAX_MODEL_LEN" in parser.format_help()
