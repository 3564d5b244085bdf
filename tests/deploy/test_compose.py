"""docker-compose.yml holds what compose accepts, refuses to start without passwords, and names only what exists."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
import tomllib
import typing
from contextlib import closing

import pytest
import yaml
from pydantic import BaseModel

from flawline.errors import UsageError
from flawline.settings.tree import MetricsSettings, Settings, load_settings
from station.web.accounts import Accounts
from station.web.service import _check_doors
from tests.deploy import compose

PASSWORDS = {name: f"secret{number}" for number, name in enumerate(compose.example_variables())}
ROLE_PORTS = {
    "producers": MetricsSettings().producers_port,
    "workers": MetricsSettings().workers_port,
    "discovery": MetricsSettings().discovery_port,
    "ledger": MetricsSettings().ledger_port,
    "notify": MetricsSettings().notify_port,
}
ONE_SHOT = {"topics", "cli"}
SERVICES = compose.load(environment=PASSWORDS)["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("flawline:")}


@pytest.mark.parametrize("path", [compose.FILE, compose.GPU_FILE], ids=lambda path: path.name)
def test_the_file_follows_the_compose_specification(path):
    compose.validator().validate(compose.load(path))


def test_the_schema_would_find_a_mistake():
    content = compose.load()
    content["services"]["kafka"]["imagee"] = "x"
    assert not compose.validator().is_valid(content)


@pytest.mark.parametrize("missing", PASSWORDS)
def test_without_a_password_nothing_starts(missing):
    for environment in (PASSWORDS | {missing: ""}, {k: v for k, v in PASSWORDS.items() if k != missing}):
        with pytest.raises(compose.Refused, match=missing):
            compose.load(environment=environment)


def test_the_example_environment_works_nowhere_as_it_is():
    assert set(compose.example_variables().values()) == {""}
    with pytest.raises(compose.Refused):
        compose.load(environment=compose.example_variables())


def test_no_password_is_written_into_the_file():
    for name, service in compose.load()["services"].items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|JAAS|URL|TOKEN", key):
                assert ":?" in str(value), f"{name}: {key} has a value of its own"


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_bounded_and_restarts(name):
    service = SERVICES[name]
    assert re.search(r":v?\d+\.\d+(\.\d+)?(-\w+)?$", service["image"]), service["image"]
    assert service["restart"]
    limits = service["deploy"]["resources"]["limits"]
    assert limits["cpus"] and limits["memory"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert name in ONE_SHOT or "test" in service["healthcheck"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_bound_to_this_machine_by_default(name):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_and_stores_on_exists(name):
    for other, condition in SERVICES[name].get("depends_on", {}).items():
        if condition["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[other]
        if condition["condition"] == "service_completed_successfully":
            assert other in ONE_SHOT
    volumes = compose.load()["volumes"]
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        if not source.startswith("."):
            assert source in volumes
        elif not source.startswith("./data/"):  # the operator's own, /data is ignored by git
            assert (compose.ROOT / source).exists(), f"{name} mounts {source}, which is not there"


@pytest.mark.parametrize("arguments", sorted({tuple(service["command"]) for service in OURS.values()}), ids=" ".join)
def test_every_command_is_one_that_the_command_line_has(arguments):
    words = [word for word in arguments if not word.startswith("-")]
    result = subprocess.run(
        [sys.executable, "-m", "station.cli", *words, "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        env={"COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert "Commands" not in result.stdout, "a group of commands, which does nothing by itself"
    for option in set(arguments) - set(words):
        assert option in result.stdout


@pytest.mark.parametrize("path", [compose.FILE, compose.GPU_FILE], ids=lambda path: path.name)
def test_every_setting_in_the_environment_is_one_that_exists(path):
    names = {name for service in compose.load(path)["services"].values() for name in service.get("environment", {})}
    ours = {name for name in names if name.startswith("FLAWLINE_")}
    assert ours
    for name in ours | set(re.findall(r"FLAWLINE_\w+", (compose.ROOT / "deploy/Dockerfile").read_text())):
        if name != "FLAWLINE_CONFIG":  # names the file itself
            assert _setting(name), f"{name} sets nothing"


def _setting(variable: str) -> bool:
    model: type[BaseModel] = Settings
    *sections, last = variable.removeprefix("FLAWLINE_").lower().split("__")
    for section in sections:
        model = typing.cast(type[BaseModel], model.model_fields[section].annotation)
    return last in model.model_fields


def test_the_plants_settings_are_valid_together_with_the_environment(monkeypatch):
    for key, value in OURS["discovery"]["environment"].items():
        monkeypatch.setenv(key, value)
    settings = load_settings(compose.ROOT / "deploy/line.plant.toml")
    assert (
        settings.store_url == f"postgresql+psycopg://flawline:{PASSWORDS['POSTGRES_PASSWORD']}@postgres:5432/flawline"
    )
    assert settings.kafka.sasl_password.get_secret_value() == PASSWORDS["KAFKA_PASSWORD"]
    assert settings.kafka.bootstrap_servers == "kafka:9092"
    assert settings.metrics.host == "0.0.0.0"
    assert settings.cameras


def test_only_who_needs_the_store_is_given_its_password():
    knowing = {name for name, service in OURS.items() if "FLAWLINE_STORE__URL" in service["environment"]}
    assert knowing == {"discovery", "console", "cli"}
    assert all("FLAWLINE_KAFKA__SASL_PASSWORD" in service["environment"] for service in OURS.values())


def test_whom_to_tell_is_said_to_notify_alone_and_nothing_is_told_by_default(tmp_path, monkeypatch):
    assert {name for name, service in SERVICES.items() if "env_file" in service} == {"notify"}
    assert SERVICES["notify"]["profiles"] == ["notify"]
    assert not load_settings(compose.ROOT / "deploy/line.plant.toml", kafka={"sasl_password": "x"}).has_receivers
    for text in re.findall(r"^(FLAWLINE_\w+=.*)$", (compose.ROOT / "docs/outbound.md").read_text(), re.MULTILINE):
        name, _, value = text.partition("=")
        file = tmp_path / "secret"
        file.write_text("https://mes.plant/flawline")
        monkeypatch.setenv(name, re.sub(r'"/run/secrets/[^"]+"', f'"{file}"', value).replace("FOLDER", str(tmp_path)))
    told = load_settings(compose.ROOT / "deploy/line.plant.toml", kafka={"sasl_password": "x"})
    assert told.webhooks and told.outbound.mqtt_url and told.outbound.mqtt_password


def test_the_console_is_reached_over_https_by_users_only(tmp_path, monkeypatch):
    console = SERVICES["console"]
    for key, value in console["environment"].items():
        monkeypatch.setenv(key, value)
    settings = load_settings(compose.ROOT / "deploy/line.plant.toml").console
    assert f"https://127.0.0.1:{settings.port}/healthz" in " ".join(console["healthcheck"]["test"])
    assert console["ports"] == [f"127.0.0.1:{settings.port}:{settings.port}"]
    mounts = [mount.split(":")[1] for mount in console["volumes"]]
    assert {str(settings.tls_certfile.parent), str(settings.tls_keyfile.parent)} <= set(mounts)
    with closing(Accounts(tmp_path)) as accounts, pytest.raises(UsageError, match="without a log-in"):
        _check_doors(settings, accounts)


def test_prometheus_scrapes_every_role_where_it_listens_and_where_its_health_is_checked():
    scrapes = yaml.safe_load((compose.ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    assert {job["job_name"]: job["static_configs"][0]["targets"] for job in scrapes} == {
        role: [f"{role}:{port}"] for role, port in ROLE_PORTS.items()
    }
    for role, port in ROLE_PORTS.items():
        assert f"http://127.0.0.1:{port}/metrics" in " ".join(SERVICES[role]["healthcheck"]["test"])


def test_prometheus_tells_the_alertmanager_whose_webhook_is_a_secret_in_a_file():
    config = yaml.safe_load((compose.ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (target,) = config["alerting"]["alertmanagers"][0]["static_configs"][0]["targets"]
    service, port = target.split(":")
    assert f"http://localhost:{port}/" in " ".join(SERVICES[service]["healthcheck"]["test"])
    (secret,) = SERVICES[service]["secrets"]
    content = yaml.safe_load((compose.ROOT / "deploy/prometheus/alertmanager.yml").read_text())
    (webhook,) = content["receivers"][0]["webhook_configs"]
    assert webhook["url_file"] == f"/run/secrets/{secret}"
    assert compose.load(environment=PASSWORDS)["secrets"][secret]["file"] == "./data/secrets/alert_webhook"
    lines = {job["static_configs"][0]["labels"]["line"] for job in config["scrape_configs"]}
    assert lines == {tomllib.loads((compose.ROOT / "deploy/line.plant.toml").read_text())["line"]}


def test_the_gpu_variant_changes_only_services_that_exist():
    gpu = compose.load(compose.GPU_FILE)["services"]
    assert set(gpu) <= set(OURS)
    assert gpu["workers"]["image"] != OURS["workers"]["image"]
    arguments = set(re.findall(r"^ARG (\w+)", (compose.ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE))
    assert set(gpu["workers"]["build"]["args"]) <= arguments


def test_the_gpu_variant_installs_the_gpu_packages_and_hands_its_actors_the_gpu():
    workers = compose.load(compose.GPU_FILE)["services"]["workers"]
    assert workers["build"]["args"] == {"VARIANT": "gpu"}
    assert (compose.ROOT / "deploy/requirements.gpu.lock").exists()
    [device] = workers["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and "gpu" in device["capabilities"]
    actors = load_settings(compose.ROOT / "deploy/line.plant.toml").worker.actors
    share = float(workers["environment"]["FLAWLINE_WORKER__NUM_GPUS"])
    assert 0 < actors * share <= device["count"], "Ray starts no actor for which there is no share of a GPU"


def test_the_image_holds_every_package_and_runs_as_nobody_special():
    dockerfile = (compose.ROOT / "deploy/Dockerfile").read_text()
    assert all(re.search(r":\d+\.\d+\.\d+-", image) for image in re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE))
    assert re.search(r"^USER \d+$", dockerfile, re.MULTILINE)
    copies = [line.split()[1:-1] for line in re.findall(r"^COPY (?!--from).*$", dockerfile, re.MULTILINE)]
    copied = {
        source.replace("${VARIANT}", variant) for sources in copies for source in sources for variant in ("cpu", "gpu")
    }
    kept = {line[1:] for line in (compose.ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == kept, "what the image copies and what .dockerignore lets through differ"
    assert all((compose.ROOT / source).exists() for source in copied)
    project = tomllib.loads((compose.ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {
        folder.name
        for folder in compose.ROOT.iterdir()
        if (folder / "__init__.py").is_file() and any(fnmatch.fnmatch(folder.name, pattern) for pattern in patterns)
    }
    assert packages <= copied
