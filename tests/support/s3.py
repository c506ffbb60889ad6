"""An S3 on this machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

BUCKET = "holdfast"


@contextmanager
def s3(patch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A server with an empty bucket; yields the environment variables that lead to it, which are set here as well."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    for name, value in variables.items():
        patch.setenv(name, value)
    # One that was made before leads to another server.
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        boto3.client("s3").create_bucket(Bucket=BUCKET)  # type: ignore[no-untyped-call]
        yield variables
    finally:
        server.stop()
