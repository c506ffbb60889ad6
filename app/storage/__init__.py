"""Where transfers are stored: local files, S3, and whatever else fsspec offers, behind segments and whole objects."""

from urllib.parse import urlsplit

from app.errors import ConfigurationError
from app.storage.base import CHUNK_BYTES, Storage, StoredFile, Writer
from app.storage.layout import Shelf
from app.storage.local import LocalStorage

__all__ = ["CHUNK_BYTES", "Shelf", "Storage", "StoredFile", "Writer", "open_storage"]


def open_storage(url: str) -> Storage:
    """Open the storage at a URL such as ``file:///var/files`` or ``s3://bucket/files``; nothing is written yet.

    Credentials and endpoints of S3 come from where boto looks for them (``AWS_ACCESS_KEY_ID``, ``AWS_ENDPOINT_URL``).

    Raises:
        ConfigurationError: nobody knows the protocol, or it is not set up.
    """
    parts = urlsplit(url)
    if parts.scheme in ("file", "local"):
        return LocalStorage(url.partition("://")[2])
    from app.storage.objects import ObjectStorage  # only who uses it pays for loading it

    try:
        return ObjectStorage(url)
    except (ImportError, ValueError, OSError) as error:
        raise ConfigurationError(f"HOLDFAST_STORAGE={url}: {error}") from error
