"""The Helm chart makes manifests that Kubernetes accepts, settings that Flawline accepts, and leaks no secret."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flawline import ray_session, topics
from flawline.settings.tree import SECRET_KEYS, load_settings
from station import probe
from station.cli.main import app
from tests.deploy import compose, kubernetes
from tests.deploy.kubernetes import EXAMPLES, VARIANTS, VERSIONS, Pod, Rendered, variables
from tests.deploy.test_compose import _setting

ChartError = kubernetes.renderer.ChartError

ROLES = {
    "producers": "produce",
    "workers": "work",
    "discovery": "discover",
    "ledger": "ledger",
    "console": "console",
    "notify": "notify",
    "topics": "topics",
}
OF_DEFAULTS = ROLES.keys() - {"notify"}
BY_NAME = pytest.mark.parametrize("variant", VARIANTS)


@pytest.fixture(scope="module")
def rendered() -> dict[str, Rendered]:
    return {name: Rendered(values) for name, values in VARIANTS.items()}


def every_pod(rendered: Rendered) -> list[Pod]:
    return list(rendered.pods().values())


# What Kubernetes accepts


@pytest.mark.parametrize("version", VERSIONS)
@BY_NAME
def test_every_manifest_follows_its_schema(rendered, variant, version):
    for manifest in rendered[variant].manifests:
        kubernetes.validator(manifest, version).validate(manifest)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_schemas_would_find_a_mistake(rendered, version):
    for variant, kind in (("defaults", "StatefulSet"), ("defaults", "NetworkPolicy"), ("ray", "RayCluster")):
        manifest = copy.deepcopy(next(iter(rendered[variant].of_kind(kind).values())))
        manifest["spec"]["replicaCount"] = 1
        assert not kubernetes.validator(manifest, version).is_valid(manifest)
    cluster = copy.deepcopy(rendered["ray"].of_kind("RayCluster")["flawline-workers"])
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["imagee"] = "x"
    assert not kubernetes.validator(cluster, version).is_valid(cluster)


@BY_NAME
def test_names_are_unique_and_every_manifest_carries_the_release(rendered, variant):
    manifests = rendered[variant].manifests
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(set(names)) == len(names)
    for item in manifests:
        assert item["metadata"]["name"].startswith("flawline") and len(item["metadata"]["name"]) <= 52
        assert item["metadata"]["labels"]["app.kubernetes.io/instance"] == "flawline"


def test_another_release_shares_no_name_and_no_pod_with_the_first():
    first, second = kubernetes.renderer.render(), kubernetes.renderer.render(release="hall-2")
    assert not {item["metadata"]["name"] for item in first} & {item["metadata"]["name"] for item in second}
    assert {item["metadata"]["labels"]["app.kubernetes.io/instance"] for item in second} == {"hall-2"}


# Settings and secrets


@BY_NAME
def test_flawline_accepts_the_settings_of_every_pod(rendered, variant, tmp_path, monkeypatch):
    for pod in every_pod(rendered[variant]):
        for container in pod.containers:
            with monkeypatch.context() as patch:
                for name, value in variables(container).items():
                    assert _setting(name.removesuffix("_FILE")) if "__" in name else name in _NO_SETTINGS, name
                    value = _with_secret_files_of(tmp_path, value)
                    patch.setenv(name, _secret_file(tmp_path, value) if name.endswith("_FILE") else value)
                if any(item["name"] == "FLAWLINE_KAFKA__SASL_USERNAME" for item in container["env"]):
                    patch.setenv("FLAWLINE_KAFKA__SASL_USERNAME", "flawline")
                file = tmp_path / "line.toml"
                file.write_text(_with_secret_files_of(tmp_path, rendered[variant].line_toml))
                settings = load_settings(file)
            assert settings.metrics.host == "0.0.0.0"
            assert settings.cameras
            assert settings.has_receivers == (pod.component == "notify")
            assert (settings.store.url is not None) == (pod.component in ("discovery", "console"))


_NO_SETTINGS = {
    "FLAWLINE_WEBHOOKS",
    "FLAWLINE_OUTBOUND",
    "HOME",
    "FLAWLINE_CACHE",
    "RAY_AUTH_MODE",
    *ray_session.SETTINGS,
}


def _secret_file(folder: Path, path: str) -> str:
    """Return a file with a secret, in place of the one that a pod has at `path`."""
    file = folder / path.strip("/").replace("/", "-")
    addresses = {
        "store": "postgresql+psycopg://flawline:secret@db",
        "mqtt": "mqtts://u:secret@h",
        "mes": "https://u@h/",
    }
    file.write_text(next((text for word, text in addresses.items() if word in path), "rtsp://u:secret@cam/1"))
    file.chmod(0o600)
    return str(file)


def _with_secret_files_of(folder: Path, text: str) -> str:
    return re.sub(r'(?<=")/run/secrets/(?:cameras|outbound)/[^"]+', lambda path: _secret_file(folder, path[0]), text)


def test_settings_pass_through_the_config_map_as_they_are(rendered):
    values = kubernetes.renderer.merge(
        yaml.safe_load((kubernetes.CHART / "values.yaml").read_text()), EXAMPLES["plant"]
    )
    assert tomllib.loads(rendered["plant"].line_toml) == values["line"]


def test_a_key_that_is_null_is_left_out(rendered):
    assert "sasl_mechanism" not in tomllib.loads(rendered["trial"].line_toml)["kafka"]


@BY_NAME
def test_no_secret_is_in_a_manifest(rendered, variant):
    assert not rendered[variant].of_kind("Secret")
    content = tomllib.loads(rendered[variant].line_toml)
    harmless = {("pictures", "url")}  # a bucket, whose credentials are variables
    for section, keys in content.items():
        for table in keys if isinstance(keys, list) else [keys] if isinstance(keys, dict) else []:
            assert not {key for key in table if key in SECRET_KEYS and (section, key) not in harmless}
    for pod in every_pod(rendered[variant]):
        for container in pod.containers:
            for name, value in variables(container).items():
                assert not re.search(r"PASSWORD|URL|TOKEN|SECRET", name) or name.endswith("_FILE"), (name, value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kafka": {"sasl_password": "x"}}, "line.kafka.sasl_password is a secret"),
        ({"store": {"url": "postgresql://u:p@db/x"}}, "line.store.url is a secret"),
        ({"grafana": {"token": "x"}}, "line.grafana.token is a secret"),
        ({"grafana": {"store_url": "postgresql://u:p@db/x"}}, "line.grafana.store_url is a secret"),
        ({"cameras": [{"name": "a", "kind": "rtsp", "url": "rtsp://u:p@c/1"}]}, "the url of a may hold a password"),
        ({"webhooks": [{"name": "a", "url": "https://h/token"}]}, "belong to notify.webhooks"),
        ({"outbound": {"mqtt_url": "mqtt://u:p@h"}}, "belong to notify.webhooks and notify.outbound"),
    ],
)
def test_a_secret_among_the_settings_is_refused(values, message):
    with pytest.raises(ChartError, match=message):
        Rendered({"line": values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"webhooks": [{"name": "a", "url_file": "/f", "secret": "x"}]}, "secret of a may be a secret"),
        ({"outbound": {"mqtt_password": "x"}}, "mqtt_password may be a secret"),
        ({"webhooks": [{"name": "a", "url": "https://h/token"}]}, "url_file"),
        ({}, "nobody is to be told"),
    ],
)
def test_whom_to_tell_holds_no_secret_and_is_somebody(values, message):
    with pytest.raises(ChartError, match=message):
        Rendered({"notify": {"enabled": True} | values})


@BY_NAME
def test_only_who_needs_a_secret_gets_it(rendered, variant):
    for pod in every_pod(rendered[variant]):
        assert (pod.volume("store") is not None) == (pod.component in ("discovery", "console"))
        assert (pod.volume("console-admin") is not None) == (pod.component == "console")
        assert (pod.volume("tls") is not None) == (pod.component == "console")
        assert (pod.volume("outbound") is not None) == (pod.component == "notify")
        for container in pod.containers:
            has_bucket = container.get("envFrom") == [{"secretRef": {"name": "flawline-objects"}}]
            assert has_bucket == (pod.component not in ("topics", "notify") and container["name"] != "ray-head"), (
                container["name"]
            )


def test_each_role_may_have_a_user_of_its_own_on_kafka(rendered):
    users = {}
    for pod in every_pod(rendered["plant"]):
        users[pod.component] = pod.volume("kafka")["secret"]["secretName"]
        for container in pod.containers:
            (username,) = [item for item in container["env"] if item["name"] == "FLAWLINE_KAFKA__SASL_USERNAME"]
            assert username["valueFrom"]["secretKeyRef"] == {"name": users[pod.component], "key": "username"}
    reader = "kafka-reader"
    secrets = {
        "producers": "kafka-producers",
        "workers": "kafka-workers",
        "topics": "kafka-admin",
        "notify": "kafka-notify",
    }
    assert users == {"discovery": reader, "ledger": reader, "console": reader, **secrets}


def test_certificates_of_kafka_are_where_the_settings_look_for_them(rendered):
    file = Path(tomllib.loads(rendered["plant"].line_toml)["kafka"]["ssl_cafile"])
    for pod in every_pod(rendered["plant"]):
        assert pod.volume("certificates")["secret"]["secretName"] == "plant-authority"
        assert all(str(file.parent) in _mounts(container) for container in pod.containers)


def test_a_line_without_passwords_on_kafka_mounts_none(rendered):
    for pod in every_pod(rendered["trial"]):
        assert pod.volume("kafka") is None
        assert not any("SASL" in item["name"] for container in pod.containers for item in container["env"])


def test_a_kafka_with_certificates_alone_needs_no_user(tmp_path, monkeypatch):
    kafka = {"security_protocol": "SSL", "sasl_mechanism": None, "ssl_cafile": "/etc/flawline/certificates/ca.pem"}
    certificates = {
        "ssl_certfile": "/etc/flawline/certificates/client.pem",
        "ssl_keyfile": "/etc/flawline/certificates/key",
    }
    secrets = {"kafka": {"name": ""}, "certificates": {"name": "line-certificate"}}
    line = Rendered(EXAMPLES["keda"], {"line": {"kafka": kafka | certificates}, "secrets": secrets})
    file = tmp_path / "line.toml"
    file.write_text(line.line_toml)
    assert load_settings(file).kafka.security_protocol == "SSL"
    assert all(pod.volume("kafka") is None for pod in every_pod(line))
    assert line.of_kind("ScaledObject")["flawline-workers"]["spec"]["triggers"][0]["metadata"]["tls"] == "enable"
    references = line.of_kind("TriggerAuthentication")["flawline-workers"]["spec"]["secretTargetRef"]
    assert {item["parameter"]: item["key"] for item in references} == {
        "ca": "ca.pem",
        "cert": "client.pem",
        "key": "key",
    }
    assert {item["name"] for item in references} == {"line-certificate"}


def test_the_docs_make_every_secret_that_the_values_name():
    text = (compose.ROOT / "docs/kubernetes.md").read_text()
    for secret in yaml.safe_load((kubernetes.CHART / "values.yaml").read_text())["secrets"].values():
        assert not secret["name"] or f" {secret['name']} " in text
        for key in (value for name, value in secret.items() if name.lower().endswith("key")):
            assert f"={key}=" in text or f"--from-file={key}=" in text or f"--from-literal={key}=" in text


# Commands, probes, rights


def _mounts(container: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in container["volumeMounts"]}


@BY_NAME
def test_every_command_is_one_that_the_command_line_has(rendered, variant):
    commands = set()
    for pod in every_pod(rendered[variant]):
        for container in pod.spec["containers"]:
            if "command" not in container:
                commands.add((pod.component, tuple(container["args"])))
    assert {component for component, _ in commands} >= {"producers", "workers", "discovery", "ledger", "topics"}
    for component, (role, *arguments) in commands:
        assert role == ROLES[component]
        command = typer.main.get_command(app).commands[role]
        if hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in arguments if word.startswith("-")} <= options


@BY_NAME
def test_every_container_that_runs_is_asked_whether_it_lives_and_whether_it_works(rendered, variant):
    settings = tomllib.loads(rendered[variant].line_toml)
    for pod in every_pod(rendered[variant]):
        if pod.component == "topics":
            continue
        for container in pod.spec["containers"]:
            assert container["livenessProbe"] and container["readinessProbe"]
            if container["name"] in ("ray-head", "ray-worker"):
                continue
            (port,) = container["ports"]
            words = container["readinessProbe"]["exec"]["command"]
            assert words[:4] == ["python", "-m", probe.__name__, pod.component]
            if pod.component == "console":
                assert port["containerPort"] == settings["console"]["port"]
                assert words[4] == f"https://127.0.0.1:{port['containerPort']}/healthz"
                assert container["livenessProbe"]["tcpSocket"] == {"port": port["name"]}
            else:
                assert pod.component in probe.PROBLEMS
                assert port["containerPort"] == settings["metrics"][f"{pod.component}_port"]
                assert words[4] == f"http://127.0.0.1:{port['containerPort']}/metrics"
                for kind in ("startupProbe", "livenessProbe"):
                    assert container[kind]["httpGet"] == {"path": "/metrics", "port": port["name"]}


@BY_NAME
def test_a_pod_may_do_little_and_writes_only_where_it_is_meant_to(rendered, variant):
    for pod in every_pod(rendered[variant]):
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["serviceAccountName"] in rendered[variant].of_kind("ServiceAccount")
        context = pod.spec["securityContext"]
        assert context["runAsNonRoot"] and context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert re.search(f"--uid {context['runAsUser']}", (compose.ROOT / "deploy/Dockerfile").read_text())
        for container in pod.containers:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"]["memory"] and container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable - {"/dev/shm"} == {"/var/lib/flawline", "/tmp"}
            assert variables(container)["HOME"] == "/tmp"


@BY_NAME
def test_what_a_pod_mounts_is_there_and_what_is_there_is_mounted(rendered, variant):
    claims = {
        name: {claim["metadata"]["name"] for claim in item["spec"].get("volumeClaimTemplates", [])}
        for name, item in rendered[variant].of_kind("StatefulSet").items()
    }
    config_maps = rendered[variant].of_kind("ConfigMap")
    for pod in every_pod(rendered[variant]):
        volumes = [volume["name"] for volume in pod.spec["volumes"]]
        assert len(set(volumes)) == len(volumes)
        mounted = {mount["name"] for container in pod.containers for mount in container["volumeMounts"]}
        assert mounted == set(volumes) | claims.get(pod.owner, set())
        assert pod.volume("line")["configMap"]["name"] in config_maps


def test_cameras_and_users_have_a_disk(rendered):
    with_disk = {name for name, item in rendered["plant"].of_kind("StatefulSet").items()
                 if item["spec"].get("volumeClaimTemplates")}  # fmt: skip
    assert with_disk == {"flawline-producers-station-1", "flawline-producers-station-2", "flawline-console"}
    spec = rendered["plant"].of_kind("StatefulSet")["flawline-producers-station-1"]["spec"]
    claim = spec["volumeClaimTemplates"][0]["spec"]
    assert claim["resources"]["requests"]["storage"] == "100Gi" and claim["storageClassName"] == "fast"
    assert spec["replicas"] == 1


@BY_NAME
def test_a_correction_replaces_a_pod_that_does_not_work(rendered, variant):
    """In order (the default), Kubernetes waits for a pod to be ready before it replaces it, so for ever."""
    for item in rendered[variant].of_kind("StatefulSet").values():
        assert item["spec"]["podManagementPolicy"] == "Parallel"


# What selects what


def _matches(selector: dict[str, Any], pod: Pod) -> bool:
    return selector.items() <= pod.labels.items()


@BY_NAME
def test_selectors_choose_the_pods_that_they_should(rendered, variant):
    pods = rendered[variant].pods()
    for kind in ("StatefulSet", "Deployment"):
        for name, item in rendered[variant].of_kind(kind).items():
            chosen = {owner for owner, pod in pods.items() if _matches(item["spec"]["selector"]["matchLabels"], pod)}
            assert chosen == {name}
    services = rendered[variant].of_kind("Service")
    assert all(_matches(services["flawline-pods"]["spec"]["selector"], pod) for pod in pods.values())
    if "flawline-console" in services:
        service = services["flawline-console"]["spec"]
        (chosen_pod,) = [pod for pod in pods.values() if _matches(service["selector"], pod)]
        ports = {port["name"] for port in chosen_pod.spec["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["ports"]} <= ports
    for item in rendered[variant].of_kind("StatefulSet").values():
        assert item["spec"]["serviceName"] in services


@BY_NAME
def test_a_drain_moves_one_group_of_cameras_and_one_pod_of_workers_at_a_time(rendered, variant):
    budgets = rendered[variant].of_kind("PodDisruptionBudget")
    assert set(budgets) == (set() if variant == "trial" else {"flawline-producers", "flawline-workers"})
    for name, budget in budgets.items():
        chosen = {pod.component for pod in every_pod(rendered[variant])
                  if _matches(budget["spec"]["selector"]["matchLabels"], pod)}  # fmt: skip
        assert chosen == {name.removeprefix("flawline-")}
        if (variant, name) == ("ray", "flawline-workers"):
            (group,) = rendered["ray"].of_kind("RayCluster")["flawline-workers"]["spec"]["workerGroupSpecs"]
            assert budget["spec"]["minAvailable"] == group["replicas"] + 1 - 1, "all pods, with the head, but one"
        else:
            assert budget["spec"]["maxUnavailable"] == 1


@BY_NAME
def test_nothing_reaches_a_pod_but_its_own_port(rendered, variant):
    policies = rendered[variant].of_kind("NetworkPolicy")
    if variant == "trial":
        assert not policies
        return
    for pod in every_pod(rendered[variant]):
        chosen = [policy["spec"] for policy in policies.values()
                  if _matches(policy["spec"]["podSelector"]["matchLabels"], pod)]  # fmt: skip
        assert all(set(spec["policyTypes"]) == {"Ingress", "Egress"} for spec in chosen)
        open_ports = {
            port["port"] for spec in chosen for rule in spec.get("ingress", []) for port in rule.get("ports", [])
        }
        ports = [port for container in pod.spec["containers"] for port in container.get("ports", [])]
        served_ports = {port["containerPort"] for port in ports if port["name"] in ("metrics", "console")}
        if pod.owner != "flawline-workers/inspectors":  # their supervisor, beside the head, serves the metrics
            assert open_ports == served_ports, pod.owner
        others = [rule for spec in chosen for rule in spec.get("ingress", []) if "ports" not in rule]
        assert bool(others) == (variant == "ray" and pod.component == "workers")
        for rule in others:
            (peer,) = rule["from"]
            assert {other.component for other in every_pod(rendered[variant])
                    if _matches(peer["podSelector"]["matchLabels"], other)} == {"workers"}  # fmt: skip


def _egress(rendered: Rendered, component: str) -> dict[int, list[Any]]:
    """Return the destinations of each port that a component may reach; an empty list is everybody."""
    pod = next(pod for pod in rendered.pods().values() if pod.component == component)
    return {
        port["port"]: rule.get("to", [])
        for policy in rendered.of_kind("NetworkPolicy").values()
        if _matches(policy["spec"]["podSelector"]["matchLabels"], pod)
        for rule in policy["spec"]["egress"]
        for port in rule.get("ports", [])
    }


def test_a_role_reaches_what_it_needs_and_nothing_else(rendered):
    reach = {component: set(_egress(rendered["defaults"], component)) for component in OF_DEFAULTS}
    everybody = {53, 9092}
    assert reach == {
        "producers": everybody | {443, 554},
        "workers": everybody | {443},
        "discovery": everybody | {443, 5432},
        "ledger": everybody | {443},
        "console": everybody | {443, 5432},
        "topics": everybody,
    }
    assert set(_egress(rendered["plant"], "notify")) == {53, 9093, 443, 8883}


def test_policies_name_the_peers_of_the_plant(rendered):
    plant = rendered["plant"]
    assert _egress(plant, "workers")[9093] == [{"ipBlock": {"cidr": "10.30.0.0/24"}}]
    assert _egress(plant, "producers")[8554] == [{"ipBlock": {"cidr": "10.40.0.0/16"}}]
    policies = plant.of_kind("NetworkPolicy")
    assert policies["flawline-console"]["spec"]["ingress"][0]["from"] == [{"ipBlock": {"cidr": "10.20.0.0/16"}}]
    labels = {"kubernetes.io/metadata.name": "monitoring"}
    peer = {"namespaceSelector": {"matchLabels": labels}}
    assert policies["flawline-workers"]["spec"]["ingress"][0]["from"] == [peer]


@pytest.mark.parametrize("variant", ["defaults", "plant"])
def test_the_policies_let_kafka_through_where_the_settings_look_for_it(rendered, variant):
    servers = tomllib.loads(rendered[variant].line_toml)["kafka"]["bootstrap_servers"]
    ports = {int(server.rpartition(":")[2]) for server in servers.split(",")}
    assert all(ports <= set(_egress(rendered[variant], component)) for component in OF_DEFAULTS)


def test_prometheus_finds_every_role_under_the_name_that_the_alerts_ask_for(rendered):
    annotated = {pod.component: pod.template["metadata"]["annotations"].get("prometheus.io/port")
                 for pod in every_pod(rendered["plant"]) if pod.component != "topics"}  # fmt: skip
    assert annotated == {
        "producers": "9401",
        "workers": "9402",
        "discovery": "9403",
        "ledger": "9404",
        "notify": "9406",
        "console": None,
    }
    assert not any("prometheus.io/scrape" in pod.template["metadata"].get("annotations", {})
                   for pod in every_pod(rendered["defaults"]))  # fmt: skip
    monitor = rendered["ray"].of_kind("PodMonitor")["flawline"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    assert all(_matches(monitor["spec"]["selector"]["matchLabels"], pod) for pod in every_pod(rendered["ray"]))
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    named = {pod.component for pod in every_pod(rendered["ray"]) for container in pod.spec["containers"]
             for port in container.get("ports", []) if port["name"] == endpoint["port"]}  # fmt: skip
    alerts = (compose.ROOT / "deploy/prometheus/alerts.yml").read_text()
    assert named == set(re.search(r'up\{job=~"([^"]+)"', alerts)[1].split("|"))
    assert endpoint["relabelings"] == [
        {"sourceLabels": ["__meta_kubernetes_pod_label_app_kubernetes_io_component"], "targetLabel": "job"},
        {"targetLabel": "line", "replacement": "line-1"},
    ]


# What a value changes


def test_a_gpu_goes_to_the_workers_alone(rendered):
    before, after = rendered["defaults"].pods(), rendered["gpu"].pods()
    images = {name: pod.spec["containers"][0]["image"] for name, pod in after.items()}
    services = compose.load()["services"]
    gpu_image = compose.load(compose.GPU_FILE)["services"]["workers"]["image"]
    assert images.pop("flawline-workers") == gpu_image
    assert set(images.values()) == {services["workers"]["image"]}
    workers = after["flawline-workers"].spec
    assert workers["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert workers["containers"][0]["resources"]["limits"]["memory"] == "8Gi"
    assert workers["nodeSelector"] and workers["tolerations"]
    for name, pod in after.items():
        if pod.component not in ("workers", "topics"):
            assert pod.spec == before[name].spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": {"gpus": 1}}, "set line.worker.num_gpus"),
        ({"line": {"worker": {"num_gpus": 0.5}}}, "set workers.gpus"),
        ({"workers": {"keda": {"enabled": True, "maxReplicas": 5}}}, "more than half of the partitions"),
        (
            {"workers": {"keda": {"enabled": True}, "ray": {"enabled": True}}},
            "turn one of workers.ray and workers.keda",
        ),
        (
            {"workers": {"keda": {"enabled": True}}, "line": {"worker": {"actors": "auto"}}},
            "changes the number of actors too",
        ),
        ({"producers": {"groups": [{"name": "a", "cameras": ["x"]}]}}, "which line.cameras lacks"),
        ({"producers": {"groups": [{"name": "a", "cameras": ["simulated-1"]}]}}, "simulated-2 is in no group"),
        (
            {"producers": {"groups": [{"name": "a", "cameras": []}, {"name": "b", "cameras": ["simulated-1"]}]}},
            "simulated-1 is in two groups, the second is b",
        ),
        ({"secrets": {"store": {"name": ""}}}, "need PostgreSQL"),
        ({"workers": {"ray": {"enabled": True}}, "secrets": {"ray": {"name": ""}}}, "a Ray cluster needs a token"),
        ({"image": {"tag": "latest"}}, "image.tag"),
        ({"workers": {"replica": 2}}, "workers.*replica"),
        ({"producers": {"groups": [{"name": "A_b", "cameras": []}]}}, "groups"),
    ],
)
def test_values_that_cannot_work_are_refused_in_one_line(values, message, tmp_path, capsys):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    assert kubernetes.renderer.main(["flawline", "--values", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert re.search(message, printed.err)


def test_keda_scales_the_workers_by_the_lag_of_their_group(rendered):
    keda = rendered["keda"]
    scaled = keda.of_kind("ScaledObject")["flawline-workers"]["spec"]
    target = keda.of_kind("StatefulSet")[scaled["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"], "an upgrade would undo what KEDA has set"
    assert rendered["defaults"].of_kind("StatefulSet")["flawline-workers"]["spec"]["replicas"] == 2
    assert not rendered["defaults"].of_kind("ScaledObject")
    trigger = scaled["triggers"][0]["metadata"]
    assert trigger["topic"] == topics.FRAMES.name and trigger["consumerGroup"] == topics.WORKERS_GROUP
    assert (trigger["tls"], trigger["sasl"]) == ("enable", "scram_sha512")
    assert keda.of_kind("TriggerAuthentication")["flawline-workers"]["spec"]["secretTargetRef"] == [
        {"parameter": "username", "name": "flawline-kafka", "key": "username"},
        {"parameter": "password", "name": "flawline-kafka", "key": "password"},
    ]
    settings = tomllib.loads(keda.line_toml)
    assert scaled["maxReplicaCount"] * settings["worker"]["actors"] <= settings["kafka"]["camera_partitions"] / 2


def test_keda_reaches_kafka_as_the_workers_do():
    plant = Rendered(EXAMPLES["plant"], EXAMPLES["keda"])
    trigger = plant.of_kind("ScaledObject")["flawline-workers"]["spec"]["triggers"][0]
    settings = tomllib.loads(plant.line_toml)
    assert trigger["metadata"]["bootstrapServers"] == settings["kafka"]["bootstrap_servers"]
    assert trigger["metadata"]["topic"] == "hall-2.frames" and trigger["metadata"]["consumerGroup"] == "hall-2.workers"
    references = plant.of_kind("TriggerAuthentication")["flawline-workers"]["spec"]["secretTargetRef"]
    assert {"parameter": "ca", "name": "plant-authority", "key": "ca.pem"} in references
    assert {item["name"] for item in references} == {"plant-authority", "kafka-workers"}
    trial = Rendered(EXAMPLES["trial"], EXAMPLES["keda"])
    (trigger,) = trial.of_kind("ScaledObject")["flawline-workers"]["spec"]["triggers"]
    assert trigger["metadata"]["tls"] == "disable" and "authenticationRef" not in trigger
    assert not trial.of_kind("TriggerAuthentication")


@pytest.mark.parametrize(
    ("mechanism", "word"),
    [("PLAIN", "plaintext"), ("SCRAM-SHA-256", "scram_sha256"), ("SCRAM-SHA-512", "scram_sha512")],
)
def test_keda_knows_the_mechanisms_by_words_of_its_own(mechanism, word):
    keda = Rendered(EXAMPLES["keda"], {"line": {"kafka": {"sasl_mechanism": mechanism}}})
    assert keda.of_kind("ScaledObject")["flawline-workers"]["spec"]["triggers"][0]["metadata"]["sasl"] == word


def test_a_ray_cluster_takes_the_place_of_the_pods_of_workers(rendered):
    ray = rendered["ray"]
    assert "flawline-workers" not in ray.of_kind("StatefulSet")
    cluster = ray.of_kind("RayCluster")["flawline-workers"]
    locks = [file.read_text() for file in (compose.ROOT / "deploy").glob("requirements.*.lock")]
    assert {re.search(r"^ray==(\S+)", lock, re.MULTILINE)[1] for lock in locks} == {cluster["spec"]["rayVersion"]}
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    pods = ray.pods()
    head, supervisor = pods["flawline-workers/head"].spec["containers"]
    (node,) = pods["flawline-workers/inspectors"].spec["containers"]
    for container in (head, node):
        assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0]
        started = {name: value for name, value in variables(container).items() if name in ray_session.SETTINGS}
        # Of a driver, or in the image.
        image_has = {"RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_COLOR_PREFIX"}
        assert started == {key: value for key, value in ray_session.SETTINGS.items() if key not in image_has}
    for container in (head, supervisor, node):
        assert variables(container)["RAY_AUTH_MODE"] == "token"
        (token,) = [item for item in container["env"] if item["name"] == "RAY_AUTH_TOKEN"]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "flawline-ray", "key": "auth_token"}
    gcs = {port["name"]: port["containerPort"] for port in head["ports"]}["gcs"]
    assert variables(supervisor)["FLAWLINE_WORKER__RAY_ADDRESS"] == f"127.0.0.1:{gcs}"
    assert {"/tmp", "/dev/shm"} <= _mounts(head) & _mounts(supervisor)
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", "no actor beside the head"
    group = cluster["spec"]["workerGroupSpecs"][0]
    assert group["rayStartParams"]["node-manager-port"] == str(node["ports"][0]["containerPort"])
    assert node["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert node["image"].endswith("-gpu") and supervisor["image"].endswith("-cpu")
    settings = tomllib.loads(ray.line_toml)["worker"]
    assert settings["actors"] * settings["num_gpus"] <= group["replicas"] * 1, "Ray would wait for room for ever"


def test_a_change_of_the_settings_starts_the_pods_again_and_creates_the_topics_anew(rendered):
    changed = Rendered({"line": {"log_level": "DEBUG"}})
    for name, pod in changed.pods().items():
        if pod.component != "topics":
            assert (
                pod.template["metadata"]["annotations"]
                != rendered["defaults"].pods()[name].template["metadata"]["annotations"]
            )
    (before,), (after,) = rendered["defaults"].of_kind("Job"), changed.of_kind("Job")
    assert before != after


def test_parts_can_be_left_out():
    bare = Rendered({"topics": {"enabled": False}, "console": {"enabled": False}})
    assert {pod.component for pod in every_pod(bare)} == {"producers", "workers", "discovery", "ledger"}


# The first user of the console


@pytest.mark.system
def test_the_first_user_of_the_console_is_made_once(rendered, tmp_path):
    (container,) = rendered["defaults"].pods()["flawline-console"].spec["initContainers"]
    password = tmp_path / "password"
    password.write_text("a password that is long enough\n")
    password.chmod(0o600)
    command = [*container["command"][:-1], str(password)]
    binary = tmp_path / "flawline"
    binary.write_text(f'#!/bin/sh\nexec {sys.executable} -m station.cli "$@"\n')
    binary.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "FLAWLINE_DATA_DIR": str(tmp_path / "data"),
        "PYTHONPATH": str(compose.ROOT),
    }
    for _ in range(2):
        subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=120)
    listed = subprocess.run([str(binary), "users", "list", "--json"], check=True, capture_output=True, text=True,
                            env=environment, cwd=tmp_path, timeout=120).stdout  # fmt: skip
    assert [(user["name"], user["role"]) for user in yaml.safe_load(listed)["users"]] == [("admin", "admin")]


# The renderer, and Helm itself where it is


@BY_NAME
def test_plain_manifests_are_what_was_checked(rendered, variant, capsys):
    files = [] if variant == "defaults" else ["--values", str(kubernetes.FOLDER / "examples" / f"{variant}.yaml")]
    assert kubernetes.renderer.main(["flawline", *files]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == rendered[variant].manifests


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("a {{ .x }} b", "a 1 b"),
        ("a {{- .x -}} b", "a1b"),
        ("{{ if eq .x 2 }}two{{ else if .x }}one{{ else }}none{{ end }}", "one"),
        ("{{ range $i, $v := .list }}{{ $i }}{{ $v }}{{ end }}", "0a1b"),
        ("{{ range .none }}x{{ else }}nothing{{ end }}", "nothing"),
        ("{{ range $k, $v := .map }}{{ $k }}={{ $v }};{{ end }}", "a=1;b=2;"),
        ("{{ with .map }}{{ .b }}{{ $.x }}{{ end }}", "21"),
        ("{{ $y := 1 }}{{ range .list }}{{ $y = . }}{{ end }}{{ $y }}", "b"),
        ('{{ define "t" }}<{{ . }}>{{ end }}{{ include "t" .x | quote }}', '"<1>"'),
        ('{{ .none | default (printf "%s-%d" "a" 2) }}', "a-2"),
        ("{{/* not here */}}x", "x"),
        ("{{ toJson .map }}", '{"a":1,"b":2}'),
    ],
)
def test_the_renderer_does_what_go_templates_do(text, output):
    templates = kubernetes.renderer._Templates()
    dot = {"x": 1, "list": ["a", "b"], "map": {"b": 2, "a": 1}, "none": None}
    assert templates.run(templates.parse("t.yaml", text), dot) == output


@pytest.mark.parametrize(
    "text",
    [
        "{{ lookup .x }}",
        "{{ .x.y }}",
        "{{ .list }}",
        "{{ $z }}",
        "{{ .x | unknown }}",
        '{{ include "missing" . }}',
        "{{ if .x }}",
        '{{ template "t" . }}',
        "{{ .x ? 1 }}",
        "{{ (eq 1 1 }}",
    ],
)
def test_the_renderer_stops_at_what_it_does_not_know(text):
    templates = kubernetes.renderer._Templates()
    with pytest.raises(ChartError):
        templates.run(templates.parse("t.yaml", text), {"x": 1, "list": ["a"]})


@pytest.mark.system
@pytest.mark.skipif(not shutil.which("helm"), reason="helm is not installed")
@BY_NAME
def test_helm_renders_the_same(rendered, variant, tmp_path):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(VARIANTS[variant]))
    chart = str(kubernetes.CHART)
    subprocess.run(["helm", "lint", "--strict", chart, "--values", str(file)], check=True, timeout=60)
    command = ["helm", "template", "flawline", chart, "--namespace", "default", "--values", str(file)]
    text = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def by_name(manifests: list[Any]) -> dict[tuple[str, str], Any]:
        return {(item["kind"], item["metadata"]["name"]): item for item in manifests if item}

    assert by_name(list(yaml.safe_load_all(text))) == by_name(rendered[variant].manifests)
