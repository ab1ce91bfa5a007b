"""Where boto3 finds credentials that are not in the variables of the key: a role of the machine, a web identity, a file."""

import boto3
from botocore.exceptions import BotoCoreError


def credential_source() -> str | None:
    """Return botocore's name of the source of the credentials that a client would use, like `iam-role`; None if it finds none.

    Fetches none that only a request to a server of tokens would give. Where nothing else is configured, the metadata service of the cloud
    is asked, which takes a second or two on a machine that has none.
    """
    try:
        credentials = boto3.session.Session().get_credentials()
    except BotoCoreError:  # a half of the key, or a profile that does not exist
        return None
    return None if credentials is None else str(credentials.method)
