"""The deployment files: valid by their schemas and linters, and true to the program that they start."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
import yaml

from app.cli import cli
from app.cli.shell import Shell
from app.settings import ENV_PREFIX, Settings, load

ROOT: Final = Path(__file__).parents[3]
DEPLOY: Final = ROOT / "deploy"
DOCKERFILE: Final = DEPLOY / "docker" / "Dockerfile"
COMPOSE: Final = DEPLOY / "compose"
KUBERNETES: Final = DEPLOY / "kubernetes"
UNIT: Final = DEPLOY / "systemd" / "holdfast-worker@.service"
HAND_OVER_S: Final = 10
KUBERNETES_VERSION: Final = "1.34"


def compose() -> Any:
    return yaml.safe_load((COMPOSE / "compose.yaml").read_text())


def manifests() -> Iterator[tuple[str, Any]]:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    for name in listed:
        for document in yaml.safe_load_all((KUBERNETES / name).read_text()):
            yield f"{name} {document['kind']}", document


def manifest(kind: str) -> Any:
    [found] = [document for _, document in manifests() if document["kind"] == kind]
    return found


def planned_stop_s() -> float:
    """How long a stop may take that loses nothing: a handler in line, and the hand-over."""
    return Settings().task_timeout + HAND_OVER_S


def worker_settings(environment: dict[str, str]) -> Settings:
    """The settings that a worker makes of its environment; fails on names or values that it does not take."""
    ours = {name: value for name, value in environment.items() if name.startswith(ENV_PREFIX)}
    return load(None, {name.removeprefix(ENV_PREFIX).lower(): value for name, value in ours.items()})[0]


def worker_name(arguments: list[str]) -> str:
    """Parse a command line of `holdfast`; return the name of the worker that it starts."""
    with cli.make_context("holdfast", list(arguments), obj=Shell()) as context:
        _, command, rest = cli.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        assert command.name == "worker"
        return str(command.make_context("worker", rest, obj=Shell()).params["name"])


# -- the image --------------------------------------------------------------------------------------------------------


def test_the_recipe_of_the_image_passes_its_linter() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [linter, "--failure-threshold", "info", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_runs_as_somebody_else_than_root_and_tells_its_health() -> None:
    text = DOCKERFILE.read_text()
    stages = text.split("\nFROM ${BASE}")
    assert len(stages) == 3
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", stages[-1], re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*/healthz", stages[-1], re.MULTILINE)
    environment = dict(re.findall(r"(HOLDFAST_[A-Z_]+)=(\S+)", stages[-1]))
    assert worker_settings(environment).port == 8080
    assert str(worker_settings(environment).state_dir) in text.partition("VOLUME ")[2]
    assert "TOKEN" not in text


def test_what_the_image_copies_is_let_through_and_exists() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        word
        for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE.read_text(), re.MULTILINE)
        for word in line.split()[:-1]
    ]
    assert len(copied) > 5
    for path in copied:
        assert (ROOT / path).exists(), path
        assert path in allowed or str(Path(path).parent) in allowed, path


def test_the_image_is_built_with_locked_versions() -> None:
    for path in re.findall(r"--requirement (\S+)", DOCKERFILE.read_text()):
        pins = [line for line in (ROOT / path).read_text().splitlines() if line and not line.startswith((" ", "#"))]
        assert pins
        assert all("==" in pin for pin in pins), path
        assert (ROOT / path).read_text().count("--hash=sha256:") >= len(pins)


# -- Compose ----------------------------------------------------------------------------------------------------------


def test_the_compose_file_is_valid() -> None:
    places = find_spec("check_jsonschema")
    assert places is not None
    assert places.origin is not None
    schema = Path(places.origin).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.Draft7Validator(json.loads(schema.read_text())).validate(compose())


def test_compose_starts_three_brokers_and_three_workers() -> None:
    services = compose()["services"]
    brokers = {name: service for name, service in services.items() if name.startswith("kafka-")}
    workers = {name: service for name, service in services.items() if name.startswith("w")}
    assert len(brokers) == len(workers) == 3
    assert {service["environment"]["KAFKA_NODE_ID"] for service in brokers.values()} == {"1", "2", "3"}
    for name, service in workers.items():
        assert worker_name(service["command"]) == name
        environment = {**service["environment"], "HOLDFAST_TOKEN": "given"}
        settings = worker_settings(environment)
        assert settings.advertised_url == f"http://{name}:8080"
        assert {broker.partition(":")[0] for broker in settings.bootstrap.split(",")} == set(brokers)
        limit = int(brokers["kafka-1"]["environment"]["KAFKA_MESSAGE_MAX_BYTES"])
        assert limit >= settings.max_record_bytes + 65_536
        assert int(service["stop_grace_period"].removesuffix("s")) >= planned_stop_s()


def test_compose_has_no_default_secret() -> None:
    services = compose()["services"]
    secrets = {
        f"{name} {variable}": value
        for name, service in services.items()
        for variable, value in service.get("environment", {}).items()
        if re.search(r"TOKEN|PASSWORD|SECRET", variable)
    }
    assert len(secrets) == 4
    for where, value in secrets.items():
        assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), where
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_what_compose_mounts_is_in_the_repository() -> None:
    mounts = [
        volume.split(":")[0]
        for service in compose()["services"].values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]
    assert mounts
    assert [path for path in mounts if not (COMPOSE / path).exists()] == []
    scraped = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())["scrape_configs"][0]["static_configs"][0]
    assert scraped["targets"] == ["w1:8080", "w2:8080", "w3:8080"]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    """No linter of Grafana's own is to be had: what its files point at is looked up here."""
    services = compose()["services"]
    given = COMPOSE / "grafana" / "provisioning"
    [source] = yaml.safe_load((given / "datasources" / "prometheus.yaml").read_text())["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert source["type"] == "prometheus"
    assert f"127.0.0.1:{port}:{port}" in services[host]["ports"]
    [provider] = yaml.safe_load((given / "dashboards" / "holdfast.yaml").read_text())["providers"]
    mounts = {volume.split(":")[1]: COMPOSE / volume.split(":")[0] for volume in services["grafana"]["volumes"]}
    [board] = mounts[provider["options"]["path"]].glob("*.json")
    assert mounts["/etc/grafana/provisioning"].samefile(given)
    chosen = json.loads(board.read_text())["templating"]["list"][0]
    assert (chosen["type"], chosen["query"]) == ("datasource", source["type"])
    assert source["isDefault"]


# -- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "document"), list(manifests()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_the_manifests_are_valid(name: str, document: Any) -> None:
    kubernetes_validate.validate(_selected(document), KUBERNETES_VERSION, strict=True)


def _selected(document: Any) -> Any:
    """As kustomize completes it: labels and selectors are written once, in the kustomization."""
    labels = {"app.kubernetes.io/name": "holdfast"}
    if document["kind"] == "StatefulSet":
        template = document["spec"]["template"]
        metadata = {**template["metadata"], "labels": labels}
        spec = {
            **document["spec"],
            "selector": {"matchLabels": labels},
            "template": {**template, "metadata": metadata},
        }
        return {**document, "spec": spec}
    return document


def test_kubernetes_settings_are_ones_that_a_worker_takes() -> None:
    template = manifest("StatefulSet")["spec"]["template"]["spec"]
    [worker] = template["containers"]
    own = {entry["name"]: entry.get("value", "holdfast-0") for entry in worker["env"]}
    secret = dict.fromkeys(
        re.findall(r"^(\w+)=", (KUBERNETES / "secret.env.example").read_text(), re.MULTILINE), "given"
    )
    settings = worker_settings({**manifest("ConfigMap")["data"], **secret, **own})
    assert settings.store == "rocksdb"
    assert settings.security_protocol == "SASL_SSL"
    assert template["enableServiceLinks"] is False
    assert worker_name([argument.replace("$(POD_NAME)", "holdfast-0") for argument in worker["args"]]) == "holdfast-0"
    mounts = {mount["mountPath"] for mount in worker["volumeMounts"]}
    assert str(Path(settings.ssl_ca_location).parent) in mounts
    assert re.search(r"HOLDFAST_STATE_DIR=(\S+)", DOCKERFILE.read_text())[1] in mounts  # type: ignore[index]


def test_kubernetes_probes_and_stops_workers_as_they_want() -> None:
    spec = manifest("StatefulSet")["spec"]
    [worker] = spec["template"]["spec"]["containers"]
    assert worker["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert worker["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= planned_stop_s()
    services = {document["metadata"]["name"]: document for _, document in manifests() if document["kind"] == "Service"}
    assert services[spec["serviceName"]]["spec"]["clusterIP"] == "None"
    assert (
        f".{spec['serviceName']}."
        in {entry["name"]: entry for entry in worker["env"]}["HOLDFAST_ADVERTISED_URL"]["value"]
    )
    assert manifest("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_secrets_are_a_template_without_values_and_stay_out_of_the_repository() -> None:
    template = (KUBERNETES / "secret.env.example").read_text()
    assert re.findall(r"^HOLDFAST_\w+=(.+)$", template, re.MULTILINE) == []
    assert "deploy/kubernetes/secret.env" in (ROOT / ".gitignore").read_text().splitlines()


# -- systemd ----------------------------------------------------------------------------------------------------------


def test_the_unit_starts_a_worker_and_waits_for_its_end() -> None:
    text = UNIT.read_text()
    [line] = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    program, *arguments = line.split()
    assert program.endswith("/holdfast")
    assert worker_name([argument.replace("%i", "w1") for argument in arguments]) == "w1"
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    assert int(stop) >= planned_stop_s()
    assert "RestartPreventExitStatus=2" in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_the_unit_passes_systemd(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/holdfast/bin/holdfast", "/bin/true").replace("/opt/holdfast", "/opt")
    unit = tmp_path / "holdfast-worker@w1.service"
    unit.write_text(text)
    for command in (["verify"], ["security", "--offline=yes", "--threshold=20"]):
        done = subprocess.run(["systemd-analyze", *command, unit], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr == ""
