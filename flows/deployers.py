"""Chooses the deployer from the settings: Kubernetes when an image is named, else processes on this machine."""

from flows.deploying import Deployer, LocalDeployer
from flows.kubernetes import KubernetesDeployer
from leitstand.settings import Settings

__all__ = ["open_deployer"]


def open_deployer(settings: Settings) -> Deployer:
    """The deployer of an installation. Nothing is connected or started here."""
    return KubernetesDeployer(settings) if settings.kubernetes.image else LocalDeployer(settings)
