"""Flags, then environment, then defaults."""

import argparse

import pytest

from turbosparse.engine.config import EngineConfig
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
        (("--page-size", "24"), "--page-size=24 is not one of 4, 8, 16, 32, 64, 128, 256, 512"),
        (("--page-size", "half"), "--page-size='half' is not a number"),
        (("--predictor-dtype", "int4"), "--predictor-dtype='int4' is not one of auto, float8"),
    ],
)
def test_a_bad_value_is_named(argv, named):
    with pytest.raises(SettingsError, match=named):
        parse(*argv)


def test_a_bad_variable_is_named():
    with pytest.raises(SettingsError, match="TURBOSPARSE_ACCESS_LOG"):
        parse(TURBOSPARSE_ACCESS_LOG="perhaps")
    with pytest.raises(SettingsError, match="TURBOSPARSE_PAGE_SIZE=2 is not one of 4, 8"):
        parse(TURBOSPARSE_PAGE_SIZE="2")


def test_the_engines_share():
    config = parse("--kv-cache-gib", "0.5", "--threads", "3", "--no-prefix-caching").engine(
        "m", "p"
    )
    assert (config.model, config.predictors, config.predictor_dtype) == ("m", "p", "auto")
    assert config.kv_cache_bytes == 1 << 29
    assert (config.num_threads, config.page_size) == (3, EngineConfig("m").page_size)
    assert parse("--page-size", "32").engine("m", None).page_size == 32
    assert not config.prefix_caching


def test_every_flag_has_help():
    parser = argparse.ArgumentParser()
    flags.add_arguments(parser, Settings)
    assert all(action.help for action in parser._actions)
    assert "TURBOSPARSE_MAX_MODEL_LEN" in parser.format_help()


def test_a_file_speaks_where_neither_flag_nor_environment_does(tmp_path):
    file = tmp_path / "serve.yaml"
    file.write_text(
        "model: path/to/model\nport: 9000\nhost: 0.0.0.0\napi-key: [a, b]\n"
        "no_prefix_caching: true\nrequest-timeout: 2.5\ndevice:\n"
    )
    given = parse("--config", str(file), "--port", "9001", TURBOSPARSE_HOST="::1")
    assert (given.port, given.host, given.model) == (9001, "::1", "path/to/model")
    assert given.api_key == ("a", "b")
    assert given.no_prefix_caching
    assert given.request_timeout == 2.5
    assert given.device == "auto", "nothing is said"
    assert parse(TURBOSPARSE_CONFIG=str(file)).port == 9000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 1", "there is no setting prot"),
        ("port: many", "port='many' is not a number"),
        ("port: [1, 2]", "port takes one value"),
        ("- port", "is not a list of `setting: value` lines"),
        ("port: {", "cannot read"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, text, named):
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        parse("--config", str(file))
    with pytest.raises(SettingsError, match="cannot read"):
        parse("--config", str(tmp_path / "nothing.yaml"))


def test_several_values_come_repeated_or_separated_by_commas():
    assert parse("--api-key", "a", "--api-key", "b, c").api_key == ("a", "b", "c")
    assert parse(TURBOSPARSE_API_KEY="a,b").api_key == ("a", "b")
    assert parse("--served-model-name", "x,y").served_model_name == ("x", "y")


def test_what_differs_from_the_defaults_is_said_but_no_secret():
    found = flags.changed(parse("--port", "9000", "--api-key", "hidden"))
    assert found == {"port": 9000, "api_key": "***"}


def test_tls_files_need_a_certificate():
    with pytest.raises(SettingsError, match="--ssl-keyfile needs --ssl-certfile"):
        parse("--ssl-keyfile", "key.pem")
