"""`Deployer` on Kubernetes: a Deployment and a Service per version, and a main Service that follows `bring_home`.

Everything goes through ``kubectl``, which knows the user's clusters and credentials: server-side apply with our
field manager, so repeating a call changes nothing and other controllers keep their fields. The image of a
Bento is named by `settings.kubernetes.image`; building and pushing it is not done here. A gateway outside the
cluster does not resolve these names: run it inside.
"""

import json
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from leitstand.errors import ConfigurationError, PermanentBackendError, TransientBackendError
from leitstand.settings import KubernetesSettings, Settings
from leitstand.types import Endpoint, utc_now
from leitstand.usecase import UseCase

__all__ = ["Kubectl", "KubernetesDeployer", "manifests", "run_kubectl"]

MANAGER = "leitstand"
PORT = 3000
BENTOML_USER = 1034  # the images name it by a word, which `runAsNonRoot` cannot check
UNREACHABLE = (
    "connection refused",
    "was refused",
    "connection timed out",
    "i/o timeout",
    "unable to connect",
    "too many requests",
)
Kubectl = Callable[[Sequence[str], str], str]
"""Arguments and standard input to standard output."""


def manifests(use_case: UseCase, *, tag: str, version: int, settings: KubernetesSettings, drain_s: float,
    now: datetime, environment: str = "local") -> list[dict[str, Any]]:  # fmt: skip
    """The Deployment and the Service of one version.

    A pod is ready when the Bento says so. It keeps answering while endpoints are withdrawn (the Bento's own grace
    period), and gets `drain_s` for requests in flight. It runs as the user that BentoML's images define. The
    secret that it shares with the gateway comes from `settings.env_secret`; outside `local` it does not start without.
    """
    name = _name(use_case.name, version)
    labels = _labels(use_case.name, version)
    record = Endpoint(use_case=use_case.name, version=version, tag=tag, url=_url(name, settings), deployed_at=now)
    meta = {"name": name, "namespace": settings.namespace, "labels": labels}
    container = {
        "name": "bento",
        "image": settings.image.format(name=use_case.name, version=version, tag=tag.replace(":", "-")),
        "ports": [{"name": "http", "containerPort": PORT}],
        "env": [{"name": "LEITSTAND_ENVIRONMENT", "value": environment}],
        "envFrom": [{"secretRef": {"name": settings.env_secret}}] if settings.env_secret else [],
        "resources": {"requests": {"cpu": settings.cpu, "memory": settings.memory},
                      "limits": {"memory": settings.memory}},
        "startupProbe": _probe("/readyz", periodSeconds=2, failureThreshold=90),
        "readinessProbe": _probe("/readyz", periodSeconds=2, failureThreshold=2),
        "livenessProbe": _probe("/livez", periodSeconds=10, failureThreshold=3),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": round(drain_s) + 10,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": BENTOML_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }
    deployment = {
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {**meta, "annotations": {"leitstand/endpoint": record.model_dump_json()}},
        "spec": {
            "replicas": settings.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip
    return [deployment, _service(name, use_case.name, version, settings)]


class KubernetesDeployer:
    """See `flows.deploying.Deployer`. Safe with several processes: the API server serialises.

    Args:
        settings: Names the namespace, the image and the context.
        kubectl: Runs kubectl; the program on PATH unless given.
    """

    def __init__(self, settings: Settings, kubectl: Kubectl | None = None) -> None:
        self._chosen = settings.kubernetes
        self._drain_s, self._environment = settings.serving.drain_s, settings.environment
        self._run = kubectl or (lambda arguments, given: run_kubectl(self._chosen.context, arguments, given))

    def deploy(self, use_case: UseCase, *, tag: str, version: int) -> Endpoint:
        """See `Deployer.deploy`.

        Raises:
            PermanentBackendError: The pods did not become ready; what was applied is deleted again.
        """
        there = [endpoint for endpoint in self.all(use_case.name) if endpoint.tag == tag]
        now = there[-1].deployed_at if there else utc_now()
        documents = manifests(
            use_case, tag=tag, version=version, settings=self._chosen, drain_s=self._drain_s, now=now,
            environment=self._environment,
        )  # fmt: skip
        endpoint = Endpoint.model_validate_json(documents[0]["metadata"]["annotations"]["leitstand/endpoint"])
        self._apply(documents)
        try:
            self._kubectl("rollout", "status", f"deployment/{_name(use_case.name, version)}",
                f"--timeout={self._chosen.ready_timeout_s:.0f}s")  # fmt: skip
        except PermanentBackendError:
            if not there:
                self.undeploy(endpoint)
            raise
        if self.current(use_case.name) is None:
            self.bring_home(use_case, endpoint)
        return endpoint

    def bring_home(self, use_case: UseCase, endpoint: Endpoint) -> Endpoint:
        """See `Deployer.bring_home`. The main Service selects another version; no pod is started."""
        self._apply([_service(_main(use_case.name), use_case.name, endpoint.version, self._chosen)])
        return endpoint

    def undeploy(self, endpoint: Endpoint) -> None:
        """See `Deployer.undeploy`. Returns when the pods have ended, each after its drain."""
        name = _name(endpoint.use_case, endpoint.version)
        self._kubectl("delete", f"deployment/{name}", f"service/{name}", "--ignore-not-found", "--wait",
            "--cascade=foreground")  # fmt: skip

    def current(self, use_case: str) -> Endpoint | None:
        """See `Deployer.current`."""
        found = self._kubectl("get", f"service/{_main(use_case)}", "--ignore-not-found", "-o", "json")
        if not found.strip():
            return None
        version = json.loads(found)["spec"]["selector"]["leitstand/version"]
        return next((each for each in self.all(use_case) if str(each.version) == version), None)

    def all(self, use_case: str) -> Sequence[Endpoint]:
        """See `Deployer.all`."""
        selector = f"app.kubernetes.io/managed-by={MANAGER},leitstand/use-case={use_case}"
        found = json.loads(self._kubectl("get", "deployments", "-l", selector, "-o", "json"))
        records = [item["metadata"]["annotations"]["leitstand/endpoint"] for item in found["items"]]
        return sorted(map(Endpoint.model_validate_json, records), key=lambda endpoint: endpoint.deployed_at)

    def _apply(self, documents: list[dict[str, Any]]) -> None:
        """Without kubectl's own validation: it fetches the whole API description, and tests check our manifests."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": documents})
        how = ["--server-side", f"--field-manager={MANAGER}", "--force-conflicts", "--validate=false"]
        self._kubectl("apply", *how, "-f", "-", given=text)

    def _kubectl(self, *arguments: str, given: str = "") -> str:
        return self._run(["-n", self._chosen.namespace, *arguments], given)


def run_kubectl(context: str, arguments: Sequence[str], given: str) -> str:
    """Runs kubectl and returns what it printed.

    Raises:
        ConfigurationError: There is no kubectl.
        TransientBackendError: The API server cannot be reached.
        PermanentBackendError: It refused.
    """
    command = ["kubectl", *([f"--context={context}"] if context else []), *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigurationError("kubectl is not installed", hint="install it, or unset the image setting") from error
    if done.returncode == 0:
        return done.stdout
    said = (done.stderr or done.stdout).strip()[-2000:]
    kind = TransientBackendError if any(sign in said.lower() for sign in UNREACHABLE) else PermanentBackendError
    raise kind(f"`{' '.join(command[:6])} ...` failed: {said}", hint="see `kubectl get pods` in the namespace")


def _service(name: str, use_case: str, version: int, settings: KubernetesSettings) -> dict[str, Any]:
    return {
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": settings.namespace, "labels": _labels(use_case, version)},
        "spec": {
            "selector": _labels(use_case, version),
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }  # fmt: skip


def _labels(use_case: str, version: int) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "bento", "app.kubernetes.io/managed-by": MANAGER,
        "leitstand/use-case": use_case, "leitstand/version": str(version),
    }  # fmt: skip


def _probe(path: str, **timing: int) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def _main(use_case: str) -> str:
    return f"bento-{use_case.replace('_', '-')}"


def _name(use_case: str, version: int) -> str:
    return f"{_main(use_case)}-v{version}"


def _url(name: str, settings: KubernetesSettings) -> str:
    return f"http://{name}.{settings.namespace}.svc:{PORT}"
