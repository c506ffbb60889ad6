"""Every setting of Holdfast, validated together and passed down as one frozen object.

A value comes from the first of: a flag of the command line, an environment variable with the prefix
``HOLDFAST_``, the TOML file given by ``--config``, the default. Nothing else in the program reads the
environment. The names of the fields are the names of the variables in lower case.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from app.errors import ConfigurationError

ENV_PREFIX = "HOLDFAST_"

INTERNAL_SLACK_BYTES = 64 * 1024
"""What internal topics accept above ``max_record_bytes``: room for what is added to a user's record."""

_SASL_PROTOCOLS = frozenset({"SASL_PLAINTEXT", "SASL_SSL"})
_SSL_PROTOCOLS = frozenset({"SSL", "SASL_SSL"})


class Source(StrEnum):
    """Where the value of a setting came from."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


def _no_bool(value: object) -> object:
    """Refuse ``true`` where a number is meant: pydantic would read it as 1."""
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - pydantic reports a ValueError only.
    return value


def _lower(value: object) -> object:
    return value.strip().lower() if isinstance(value, str) else value


def _upper(value: object) -> object:
    return value.strip().upper() if isinstance(value, str) else value


def _split(value: object) -> object:
    """Read a comma-separated text as its parts; other values pass."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _without_spaces(value: object) -> object:
    return re.sub(r"\s*,\s*", ",", value.strip()) if isinstance(value, str) else value


def _no_trailing_slash(value: str) -> str:
    return value.rstrip("/")


def _storage_default(data: dict[str, Any]) -> str:
    """Files of transfers live in the state directory unless a URL is given."""
    return f"file://{Path(data.get('state_dir', '.holdfast')).absolute()}/files"


_Number = BeforeValidator(_no_bool)
_Seconds = Annotated[float, _Number, Field(gt=0, allow_inf_nan=False, description="a number of seconds above 0")]
_SecondsOrZero = Annotated[
    float, _Number, Field(ge=0, allow_inf_nan=False, description="a number of seconds, 0 or more")
]
_Count = Annotated[int, _Number, Field(ge=1, le=10_000, description="a whole number from 1 to 10000")]
_Replicas = Annotated[int, _Number, Field(ge=1, le=100)]
_Module = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")]
_Text = Annotated[str, Field(description="a text")]
_Secret = Annotated[SecretStr, Field(description="a text")]


class Settings(BaseSettings):
    """Everything an operator may set. Dumps and ``repr`` are safe to log: secrets stay hidden.

    Build it with :func:`load`. Built directly it takes its arguments and the defaults only, never the
    environment, so that a test or a child process gets exactly what it was given.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    bootstrap: Annotated[
        str,
        BeforeValidator(_without_spaces),
        Field(pattern=r"^([^\s,]+(,[^\s,]+)*)?$", description="host:port of brokers, separated by commas"),
    ] = ""
    namespace: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9_-]{1,80}$",
            description="1 to 80 letters, digits, '-' or '_', no dots, which end it in names of topics",
        ),
    ] = "holdfast"
    servers: _Count = 8
    routers: _Count = 4
    handlers: Annotated[
        tuple[_Module, ...],
        NoDecode,
        BeforeValidator(_split),
        Field(min_length=1, description="names of Python modules, separated by commas"),
    ] = ("app.samples",)
    state_dir: Annotated[Path, AfterValidator(Path.expanduser), Field(description="the path of a directory")] = Path(
        ".holdfast"
    )
    store: Annotated[Literal["memory", "rocksdb"], BeforeValidator(_lower), Field(description="memory or rocksdb")] = (
        "memory"
    )
    standby_replicas: Annotated[int, _Number, Field(ge=0, le=100, description="a whole number from 0 to 100")] = 1
    commit_interval: Annotated[
        float, _Number, Field(ge=0.001, le=10, description="a number of seconds from 0.001 to 10")
    ] = 0.1
    delay: _Seconds = 2.0
    migration_timeout: _Seconds = 60.0
    rehome_after: _SecondsOrZero = 30.0
    forget_after: _SecondsOrZero = 600.0
    task_timeout: _Seconds = 30.0
    max_attempts: _Count = 5
    max_crashes: Annotated[
        int,
        _Number,
        Field(
            ge=2,
            le=100,
            description="a whole number from 2 to 100: only its second dead host shows which task it was",
        ),
    ] = 3
    session_ttl: _SecondsOrZero = 0.0
    result_retention: _Seconds = 604_800.0
    max_record_bytes: Annotated[
        int,
        _Number,
        Field(
            ge=1024,
            le=1_000_000_000 - INTERNAL_SLACK_BYTES,
            description="a number of bytes from 1024 to 999934464",
        ),
    ] = 2_097_152
    replication_factor: Annotated[
        _Replicas | None, Field(description="a whole number from 1 to the number of brokers")
    ] = None
    min_insync: Annotated[_Replicas | None, Field(description="a whole number from 1 to the replication factor")] = None
    host: Annotated[str, Field(min_length=1, description="an address of this machine, for example 127.0.0.1")] = (
        "127.0.0.1"
    )
    port: Annotated[int, _Number, Field(ge=0, le=65_535, description="a port from 0 (any) to 65535")] = 0
    advertised_url: Annotated[
        str,
        AfterValidator(_no_trailing_slash),
        Field(pattern=r"^(https?://[^\s/]\S*)?$", description="an http:// or https:// URL"),
    ] = ""
    token: _Secret = SecretStr("")
    storage: Annotated[
        str,
        AfterValidator(_no_trailing_slash),
        Field(pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://\S+$", description="a URL, for example s3://bucket/files"),
        Field(default_factory=_storage_default),
    ]
    server_storage: Annotated[
        str,
        AfterValidator(_no_trailing_slash),
        Field(
            pattern=r"^([A-Za-z][A-Za-z0-9+.-]*://\S*\{server\}\S*)?$",
            description="a URL with {server}, for example s3://files-{server}/holdfast, or nothing",
        ),
    ] = ""
    max_upload_bytes: Annotated[int, _Number, Field(ge=1, description="a number of bytes, 1 or more")] = 10 * 1024**3
    uploads_per_remote: _Count = 1_000
    uploads_max: Annotated[int, _Number, Field(ge=1, description="a whole number, 1 or more")] = 100_000
    upload_expires: _Seconds = 86_400.0
    lease: _Seconds = 10.0
    progress_interval: _Seconds = 1.0
    exchange_timeout: _Seconds = 604_800.0
    exchange_retention: _Seconds = 86_400.0
    exchange_backup_lag: _SecondsOrZero = 0.0
    traces: Annotated[
        str,
        AfterValidator(_no_trailing_slash),
        Field(pattern=r"^(https?://[^\s/]\S*)?$", description="an http:// or https:// URL, or nothing"),
    ] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error", "critical"],
        BeforeValidator(_lower),
        Field(description="debug, info, warning, error or critical"),
    ] = "info"
    log_format: Annotated[Literal["text", "json"], BeforeValidator(_lower), Field(description="text or json")] = "text"
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        BeforeValidator(_upper),
        Field(description="PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL"),
    ] = "PLAINTEXT"
    sasl_mechanism: Annotated[
        Literal["", "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"],
        BeforeValidator(_upper),
        Field(description="PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"),
    ] = ""
    sasl_username: _Text = ""
    sasl_password: _Secret = SecretStr("")
    ssl_ca_location: _Text = ""
    ssl_certificate_location: _Text = ""
    ssl_key_location: _Text = ""
    ssl_key_password: _Secret = SecretStr("")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic-settings names it.
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings names it.
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings names it.
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - pydantic-settings names it.
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave the arguments as the only source: :func:`load` merges the others and notes which one won."""
        return (init_settings,)

    @model_validator(mode="after")
    def _replicas_suffice(self) -> Self:
        factor, in_sync = self.replication_factor, self.min_insync
        if factor is not None and in_sync is not None and in_sync > factor:
            raise ValueError(f"{ENV_PREFIX}MIN_INSYNC={in_sync}: use at most {factor}, the value of REPLICATION_FACTOR")
        return self

    @model_validator(mode="after")
    def _security_is_whole(self) -> Self:
        """An ignored or a missing credential shows up here, and not as a connection that times out."""
        sasl = {
            "SASL_MECHANISM": self.sasl_mechanism,
            "SASL_USERNAME": self.sasl_username,
            "SASL_PASSWORD": self.sasl_password.get_secret_value(),
        }
        given = [name for name, value in sasl.items() if value]
        missing = [name for name, value in sasl.items() if not value]
        protocol = f"{ENV_PREFIX}SECURITY_PROTOCOL={self.security_protocol}"
        if self.security_protocol in _SASL_PROTOCOLS and missing:
            raise ValueError(f"{protocol}: set {ENV_PREFIX}{missing[0]} as well")
        if self.security_protocol not in _SASL_PROTOCOLS and given:
            raise ValueError(f"{protocol}: use SASL_SSL or SASL_PLAINTEXT with {ENV_PREFIX}{given[0]}")
        has_key, has_certificate = bool(self.ssl_key_location), bool(self.ssl_certificate_location)
        if self.security_protocol in _SSL_PROTOCOLS and has_key is not has_certificate:
            name = "SSL_CERTIFICATE_LOCATION" if has_key else "SSL_KEY_LOCATION"
            raise ValueError(f"{protocol}: set {ENV_PREFIX}{name} as well")
        return self


def load(config: Path | None, flags: Mapping[str, object]) -> tuple[Settings, dict[str, Source]]:
    """Merge flags, environment, file and defaults, and say where each value came from.

    Args:
        config: a TOML file of settings, names in lower case at the top level; ``None`` for no file.
        flags: values of the command line by field name; ``None`` means that the flag was not given.

    Raises:
        ConfigurationError: the file cannot be read or names an unknown setting, or a value is not allowed.
    """
    from_file = {} if config is None else _read_file(config)
    from_environment = EnvSettingsSource(Settings)()
    from_flags = {name: value for name, value in flags.items() if value is not None}
    sources = dict.fromkeys(Settings.model_fields, Source.DEFAULT)
    sources |= dict.fromkeys(from_file, Source.FILE)
    sources |= dict.fromkeys(from_environment, Source.ENVIRONMENT)
    sources |= dict.fromkeys(from_flags, Source.FLAG)
    try:
        settings = Settings(**{**from_file, **from_environment, **from_flags})
    except ValidationError as error:
        # The chain is cut on purpose: pydantic's own text shows the values, secret ones too.
        raise ConfigurationError(_explain(error, sources, config)) from None
    return settings, sources


def kafka_config(settings: Settings) -> dict[str, str | int]:
    """Options of librdkafka that every client of the cluster needs: where it is and how to log in.

    The result holds passwords: pass it to a client, never to a log.

    Raises:
        ConfigurationError: no bootstrap server is set.
    """
    options: dict[str, str | int] = {"bootstrap.servers": require_bootstrap(settings)}
    options["security.protocol"] = settings.security_protocol
    if settings.security_protocol in _SASL_PROTOCOLS:
        options["sasl.mechanism"] = settings.sasl_mechanism
        options["sasl.username"] = settings.sasl_username
        options["sasl.password"] = settings.sasl_password.get_secret_value()
    if settings.security_protocol in _SSL_PROTOCOLS:
        files = {
            "ssl.ca.location": settings.ssl_ca_location,
            "ssl.certificate.location": settings.ssl_certificate_location,
            "ssl.key.location": settings.ssl_key_location,
            "ssl.key.password": settings.ssl_key_password.get_secret_value(),
        }
        options |= {name: value for name, value in files.items() if value}
    return options


def require_bootstrap(settings: Settings) -> str:
    """Return the bootstrap servers, or raise :exc:`ConfigurationError` when none are set."""
    if not settings.bootstrap:
        raise ConfigurationError(
            f"{ENV_PREFIX}BOOTSTRAP is empty: set it to host:port of a Kafka broker, "
            "or use `holdfast up` or `holdfast demo`, which start one of their own"
        )
    return settings.bootstrap


def _read_file(config: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise ConfigurationError(f"cannot read the settings file {config}: {reason}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the settings file {config} is not TOML: {error}") from error
    for name in values:
        if name not in Settings.model_fields:
            raise ConfigurationError(f"{config}: unknown setting {name!r}{_suggestion(name)}")
    return values


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), Settings.model_fields, n=1)
    return f": did you mean {close[0]!r}?" if close else ": `holdfast doctor` prints all settings"


def typing_errors() -> list[tuple[str, str]]:
    """Variables of the environment that look like settings and are none, and the settings that were probably meant."""
    known = {f"{ENV_PREFIX}{name.upper()}" for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.startswith(ENV_PREFIX) and name not in known)
    close = ((name, difflib.get_close_matches(name, known, n=1, cutoff=0.9)) for name in unknown)
    return [(name, meant[0]) for name, meant in close if meant]


def _explain(error: ValidationError, sources: Mapping[str, Source], config: Path | None) -> str:
    # A default that follows from a refused value was never asked for.
    details = [d for d in error.errors(include_url=False) if d["type"] != "default_factory_not_called"]
    lines = {str(d["loc"][0]) if d["loc"] else "": d for d in details}
    return "; ".join(_explain_one(name, detail, sources, config) for name, detail in lines.items())


def _explain_one(name: str, detail: ErrorDetails, sources: Mapping[str, Source], config: Path | None) -> str:
    """One refused value in one line: the name the operator wrote, the value, what is allowed."""
    if not name:
        return detail["msg"].removeprefix("Value error, ")
    field = Settings.model_fields.get(name)
    if field is None:
        return f"unknown setting {name!r}{_suggestion(name)}"
    # A detail's own input may be a part of the value, such as one module of the list.
    value = "(hidden)" if field.annotation is SecretStr else repr(detail["input"])
    written = {
        Source.FLAG: f"--{name.replace('_', '-')}={value}",
        Source.FILE: f"{config}: {name} = {value}",
    }.get(sources.get(name, Source.DEFAULT), f"{ENV_PREFIX}{name.upper()}={value}")
    return f"{written}: use {field.description}"
