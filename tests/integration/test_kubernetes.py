"""The Kubernetes deployer: manifests against the official schemas, and its calls through the real kubectl."""

from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from flows.kubernetes import KubernetesDeployer, manifests
from leitstand.errors import PermanentBackendError, TransientBackendError
from leitstand.settings import KubernetesSettings, Settings
from leitstand.types import utc_now
from tests.kubernetes_api import Api, serving
from tests.rollout_for_tests import use_case

IMAGE = "registry.example/{name}:{tag}"


@pytest.mark.parametrize("release", ["1.28", "1.32", "1.36"])
def test_manifests_follow_the_schemas_of_old_and_new_releases(release: str) -> None:
    settings = KubernetesSettings(image=IMAGE, replicas=2)
    name = use_case().model_copy(update={"name": "card_support"})
    found = manifests(name, tag="card_support:8", version=8, settings=settings, drain_s=20, now=utc_now())
    for document in found:
        kubernetes_validate.validate(document, release, strict=True)
    deployment, service = found
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/card_support:card_support-8"
    assert pod["terminationGracePeriodSeconds"] == 30
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    assert service["metadata"]["name"] == "bento-card-support-v8"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    with serving() as api:
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{api.server_port}"}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {}}],
        }  # fmt: skip
        (tmp_path / "config").write_text(yaml.safe_dump(config))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl caches what it discovers below it
        yield api


def deployer() -> KubernetesDeployer:
    return KubernetesDeployer(Settings(kubernetes=KubernetesSettings(image=IMAGE, ready_timeout_s=1)))


def test_kubectl_applies_lists_switches_and_deletes_versions(api: Api) -> None:
    deployed = deployer()
    first = deployed.deploy(use_case(), tag="support:1", version=1)
    second = deployed.deploy(use_case(), tag="support:2", version=2)
    assert (first.url, second.url) == (
        "http://bento-support-v1.default.svc:3000", "http://bento-support-v2.default.svc:3000",
    )  # fmt: skip
    assert deployed.deploy(use_case(), tag="support:2", version=2) == second
    assert list(deployed.all("support")) == [first, second]
    assert deployed.current("support") == first
    assert deployed.bring_home(use_case(), second) == second
    assert deployed.current("support") == second
    deployed.undeploy(first)
    deployed.undeploy(first)
    assert list(deployed.all("support")) == [second]
    assert {name for _, name in api.objects} == {"bento-support", "bento-support-v2"}


def test_pods_that_do_not_become_ready_are_deleted_again(api: Api) -> None:
    with pytest.raises(PermanentBackendError, match="timed out waiting"):
        deployer().deploy(use_case(), tag="support:dead", version=2)
    assert api.objects == {}


def test_an_unreachable_cluster_is_worth_trying_again(api: Api) -> None:
    api.shutdown()
    api.server_close()
    with pytest.raises(TransientBackendError):
        deployer().all("support")


def test_pods_know_their_environment_and_get_the_gateways_secret() -> None:
    settings = KubernetesSettings(image="registry.example/{name}:{version}", env_secret="leitstand-bento")
    found = manifests(
        use_case(), tag="support:8", version=8, settings=settings, drain_s=20, now=utc_now(), environment="production"
    )
    (container,) = found[0]["spec"]["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "LEITSTAND_ENVIRONMENT", "value": "production"}]
    assert container["envFrom"] == [{"secretRef": {"name": "leitstand-bento"}}]
