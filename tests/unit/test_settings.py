"""Settings: where values come from, which are refused and in which words."""

from pathlib import Path

import pytest

from app.errors import ConfigurationError
from app.settings import Settings, Source, kafka_config, load, require_bootstrap


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"HOLDFAST_{name.upper()}", raising=False)


def test_defaults_are_those_of_the_contract() -> None:
    settings, sources = load(None, {})
    assert set(sources.values()) == {Source.DEFAULT}
    assert set(sources) == set(Settings.model_fields)
    assert (settings.servers, settings.routers, settings.namespace) == (8, 4, "holdfast")
    assert (settings.delay, settings.migration_timeout, settings.rehome_after) == (2, 60, 30)
    assert (settings.task_timeout, settings.max_attempts, settings.max_crashes) == (30, 5, 3)
    assert (settings.result_retention, settings.max_record_bytes) == (604_800, 2_097_152)
    assert (settings.replication_factor, settings.min_insync) == (None, None)
    assert settings.handlers == ("app.samples",)
    assert settings.storage == f"file://{Path('.holdfast').absolute()}/files"


def test_flags_win_over_environment_over_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text("servers = 3\nrouters = 3\ndelay = 3\n")
    monkeypatch.setenv("HOLDFAST_SERVERS", "5")
    monkeypatch.setenv("HOLDFAST_ROUTERS", "5")
    monkeypatch.setenv("HOLDFAST_HANDLERS", "shop.cart, shop.till")
    monkeypatch.setenv("HOLDFAST_PORT", "")
    settings, sources = load(file, {"servers": 7, "namespace": None})
    assert (settings.servers, settings.routers, settings.delay, settings.port) == (7, 5, 3, 0)
    assert settings.handlers == ("shop.cart", "shop.till")
    shown = {name: sources[name] for name in ("servers", "routers", "delay", "namespace", "port")}
    assert shown == {
        "servers": Source.FLAG,
        "routers": Source.ENVIRONMENT,
        "delay": Source.FILE,
        "namespace": Source.DEFAULT,
        "port": Source.DEFAULT,
    }


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("servers", "0", "from 1 to 10000"),
        ("servers", "many", "from 1 to 10000"),
        ("routers", "2.5", "from 1 to 10000"),
        ("namespace", "a.b", "no dots"),
        ("namespace", "a.", "no dots"),
        ("namespace", "a\n", "no dots"),
        ("namespace", "ä", "letters"),
        ("namespace", "x" * 81, "1 to 80"),
        ("max_crashes", "1", "from 2 to 100"),
        ("delay", "0", "above 0"),
        ("delay", "nan", "above 0"),
        ("delay", "inf", "above 0"),
        ("session_ttl", "-1", "0 or more"),
        ("store", "redis", "memory or rocksdb"),
        ("port", "65536", "to 65535"),
        ("handlers", "not a module", "Python modules"),
        ("handlers", ",", "Python modules"),
        ("advertised_url", "worker:80", "http://"),
        ("storage", "/files", "a URL"),
        ("bootstrap", "a:1,,b:2", "host:port"),
        ("log_level", "loud", "debug, info"),
        ("security_protocol", "tls", "SASL_SSL"),
        ("min_insync", "0", "replication factor"),
        ("max_record_bytes", "10", "from 1024"),
    ],
)
def test_a_refused_value_is_one_line_with_name_value_and_what_is_allowed(
    name: str, value: str, allowed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"HOLDFAST_{name.upper()}", value)
    with pytest.raises(ConfigurationError) as caught:
        load(None, {})
    text = str(caught.value)
    assert text.startswith(f"HOLDFAST_{name.upper()}=")
    assert allowed in text
    assert "\n" not in text


def test_the_line_names_flag_or_file_where_the_value_stands(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text("max_attempts = true\n")
    with pytest.raises(ConfigurationError, match=r"--commit-interval='soon': use a number of seconds"):
        load(None, {"commit_interval": "soon"})
    with pytest.raises(ConfigurationError, match=r"holdfast\.toml: max_attempts = True: use a whole number"):
        load(file, {})


def test_several_refused_values_are_all_named() -> None:
    with pytest.raises(ConfigurationError, match=r"--servers=0: .*; --routers=0: "):
        load(None, {"servers": 0, "routers": 0})


def test_an_unknown_key_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "holdfast.toml"
    file.write_text("server = 3\n")
    with pytest.raises(ConfigurationError, match=r"holdfast\.toml: unknown setting 'server': .*'servers'"):
        load(file, {})
    file.write_text("[kafka]\nx = 3\n")
    with pytest.raises(ConfigurationError, match="unknown setting 'kafka'"):
        load(file, {})


def test_a_file_that_cannot_be_read_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        load(tmp_path / "none.toml", {})
    (tmp_path / "bad.toml").write_text("servers =")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(tmp_path / "bad.toml", {})
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="is not TOML"):
        load(tmp_path / "bytes.toml", {})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="unknown setting 'colour'"):
        load(None, {"colour": "blue"})


def test_settings_are_frozen() -> None:
    settings, _ = load(None, {})
    with pytest.raises(ValueError, match="frozen"):
        settings.servers = 9  # type: ignore[misc]


def test_settings_built_directly_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_SERVERS", "5")
    assert Settings().servers == 8


def test_secrets_show_nowhere() -> None:
    secrets = {name: f"hidden-{name}" for name in ("token", "sasl_password", "ssl_key_password")}
    flags = {"security_protocol": "sasl_ssl", "sasl_mechanism": "plain", "sasl_username": "u", **secrets}
    settings, _ = load(None, flags)
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "hidden-" not in shown
    with pytest.raises(ConfigurationError) as caught:
        load(None, {**flags, "token": ["hidden-token"], "sasl_mechanism": ""})
    assert "hidden-" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_security_must_be_whole() -> None:
    with pytest.raises(ConfigurationError, match="set HOLDFAST_SASL_PASSWORD as well"):
        load(None, {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "u"})
    with pytest.raises(ConfigurationError, match="use SASL_SSL or SASL_PLAINTEXT with HOLDFAST_SASL_USER"):
        load(None, {"sasl_username": "u"})
    with pytest.raises(ConfigurationError, match="set HOLDFAST_SSL_CERTIFICATE_LOCATION as well"):
        load(None, {"security_protocol": "SSL", "ssl_key_location": "k.pem"})


def test_min_insync_cannot_exceed_the_replication_factor() -> None:
    with pytest.raises(ConfigurationError, match="HOLDFAST_MIN_INSYNC=3: use at most 2"):
        load(None, {"replication_factor": 2, "min_insync": 3})


def test_kafka_config_carries_what_is_set_and_nothing_else() -> None:
    plain, _ = load(None, {"bootstrap": " a:1 , b:2 "})
    assert kafka_config(plain) == {"bootstrap.servers": "a:1,b:2", "security.protocol": "PLAINTEXT"}
    secure, _ = load(
        None,
        {
            "bootstrap": "a:1",
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "scram-sha-512",
            "sasl_username": "u",
            "sasl_password": "p",
            "ssl_ca_location": "ca.pem",
        },
    )
    assert kafka_config(secure) == {
        "bootstrap.servers": "a:1",
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.ca.location": "ca.pem",
    }


def test_no_bootstrap_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigurationError, match="HOLDFAST_BOOTSTRAP is empty"):
        require_bootstrap(Settings())
