"""deploy/kubernetes.yml: valid by Kubernetes' own schemas, and what it says of the server is so."""

from pathlib import Path

import pytest
import yaml

from ppvilg.config.load import check_mapping
from ppvilg.server.command import ServerConfig

kubernetes_validate = pytest.importorskip("kubernetes_validate")

DEPLOY = Path(__file__).parents[2] / "deploy"
OBJECTS = list(yaml.safe_load_all((DEPLOY / "kubernetes.yml").read_text("utf-8")))
BY_KIND = {thing["kind"]: thing for thing in OBJECTS}
POD = BY_KIND["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: thing["kind"])
def test_schema(thing, version):
    kubernetes_validate.validate(thing, version, strict=True)


def test_the_server_reads_its_configuration():
    tree = yaml.safe_load(BY_KIND["ConfigMap"]["data"]["server.yml"])
    config = check_mapping(tree, ServerConfig, dict.fromkeys(tree, "server.yml"))
    (port,) = CONTAINER["ports"]
    assert config.port == port["containerPort"]
    assert config.host == "0.0.0.0"
    mounts = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    for path in (config.model, config.api_keys_file, CONTAINER["args"][1]):
        assert any(path == mount or path.startswith(f"{mount}/") for mount in mounts)
    stopping = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"] + config.deadline
    assert POD["spec"]["terminationGracePeriodSeconds"] > stopping


def test_what_selects_the_pods_selects_them():
    labels = POD["metadata"]["labels"]
    assert BY_KIND["Service"]["spec"]["selector"].items() <= labels.items()
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert BY_KIND[kind]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    volumes = {volume["name"] for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == volumes


def test_the_user_is_the_image_s():
    user = POD["spec"]["securityContext"]["runAsUser"]
    assert f"--uid {user} " in (DEPLOY / "Dockerfile").read_text("utf-8")
