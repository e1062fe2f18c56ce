"""The edge to W&B, as far as it can be seen without its cloud: configuration and the translation of errors."""

from pathlib import Path

import pytest
import requests
from wandb.errors import AuthenticationError, CommError, UsageError

from leitstand.errors import ConfigurationError, NotFoundError, PermanentBackendError, TransientBackendError
from leitstand.settings import RegistrySettings, Settings, TrackingSettings
from models.registry.opening import open_registry
from models.registry.wandb_api import translate


def test_without_a_key_the_registry_says_what_to_set(tmp_path: Path):
    with pytest.raises(ConfigurationError, match="LEITSTAND_TRACKING__API_KEY"):
        open_registry(Settings(home=tmp_path, registry=RegistrySettings(kind="wandb", entity="team")))


def test_without_an_organisation_the_registry_says_what_to_set(tmp_path: Path):
    settings = Settings(
        home=tmp_path, registry=RegistrySettings(kind="wandb"), tracking=TrackingSettings(api_key="k" * 40)
    )
    with pytest.raises(ConfigurationError, match="LEITSTAND_REGISTRY__ENTITY"):
        open_registry(settings)


def answered(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("said", response=response)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommError("said", exc=answered(503)), TransientBackendError),
        (CommError("said", exc=answered(429)), TransientBackendError),
        (CommError("said", exc=answered(403)), PermanentBackendError),
        (CommError("said", exc=requests.ConnectionError("refused")), TransientBackendError),
        (requests.Timeout("slow"), TransientBackendError),
        (AuthenticationError("bad key"), PermanentBackendError),
        (UsageError("no key"), PermanentBackendError),
        (ValueError("artifact not found"), NotFoundError),
        (CommError("Collection not found"), NotFoundError),
        (CommError("said"), PermanentBackendError),
    ],
)
def test_errors_of_wandb_are_told_apart(error: Exception, expected: type[Exception]):
    ours = translate(error, "team/wandb-registry-model/support")
    assert type(ours) is expected
    assert "team/wandb-registry-model/support" in ours.message
