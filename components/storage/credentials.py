"""Credentials of boto3's provider chain, resolved again when the store says that they have expired.

botocore renews credentials by the time that their source names, and some sources name none or a wrong one: a file that another program
writes again, a process or a service that states no expiration, a clock that is off. Promises: what the chain finds is never logged. Safe to
share between threads.
"""

import logging
from collections.abc import Callable
from threading import Lock
from typing import Any

import boto3
import botocore.session
from botocore.credentials import Credentials, ReadOnlyCredentials, create_credential_resolver
from botocore.exceptions import BotoCoreError, ClientError

from components.errors import BadInput, first_line
from components.storage.faults import is_temporary
from components.system.failures import was_raised_in

_log = logging.getLogger("components.storage.store")


class ChainCredentials(Credentials):
    """What the chain resolves to, in place of the credentials that boto3 would keep; `resolve` asks the chain."""

    def __init__(self, resolve: Callable[[], Credentials | None]) -> None:
        self._resolve = resolve
        self._credentials = resolve()
        self._lock = Lock()
        self.generation = 0
        """How often they were replaced."""

    @property
    def method(self) -> str:  # type: ignore[override]
        """The provider that they come from."""
        return "no provider" if self._credentials is None else self._credentials.method

    def get_frozen_credentials(self) -> ReadOnlyCredentials | None:  # type: ignore[override]
        """Return what signs a request; None makes botocore raise `NoCredentialsError`."""
        return None if self._credentials is None else self._credentials.get_frozen_credentials()

    def get_deferred_property(self, property_name: str) -> Callable[[], Any]:
        return lambda: getattr(self._credentials, property_name, None)

    def renew(self, generation: int) -> bool:
        """Resolve the chain again, unless it was since `generation`; return whether another attempt may succeed.

        It may if the credentials are other ones now, or if their source only fails for now.
        """
        with self._lock:
            if self.generation != generation:
                return True
            try:
                fresh = self._resolve()
                if fresh is None or fresh.get_frozen_credentials() == self.get_frozen_credentials():
                    return False
            except (BotoCoreError, ClientError, OSError) as error:
                _log.warning("the credentials have expired, and %s has no new ones: %s", self.method, type(error).__name__)
                return is_temporary(error)
            self._credentials = fresh
            self.generation += 1
            _log.warning("the credentials had expired; new ones came from %s", self.method)
            return True


class ChainResolver:
    """The component of a botocore session that resolves its credentials, to `ChainCredentials`."""

    def __init__(self, region: str) -> None:
        """Ask STS in `region` where the chain asks it."""
        self._region = region

    def load_credentials(self) -> ChainCredentials:
        return ChainCredentials(lambda: create_credential_resolver(botocore.session.Session(), region_name=self._region).load_credentials())


def configuration_error(error: Exception) -> BadInput | None:
    """Return the error for a profile, a region or a source of credentials that boto3 cannot use, or None for one of this code.

    Some that boto3 does not expect: a token file or a program that does not exist, settings of a profile in another form.
    """
    if not was_raised_in(error, "boto3", "botocore"):
        return None
    kind = "" if isinstance(error, BotoCoreError | OSError) else f"{type(error).__name__}: "
    return BadInput(f"no S3 client can be made: {kind}{first_line(error)}", hint="check the AWS_ variables and ~/.aws/config")


def credential_source() -> str | None:
    """Return botocore's name of the source of the credentials that a client would use, like `iam-role`; None if it finds none.

    Fetches none that only a request to a server of tokens would give. Where nothing else is configured, the metadata service of the cloud
    is asked, which takes a second or two on a machine that has none.
    """
    try:
        credentials = boto3.session.Session().get_credentials()
    except BotoCoreError:  # a half of the key, or a profile that does not exist
        return None
    except Exception as error:
        raise configuration_error(error) or error from error
    return None if credentials is None else str(credentials.method)
