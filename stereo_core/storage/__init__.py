"""Object storage: fetches s3://, aws:// and minio:// objects through a local cache, and uploads files.

An object is downloaded in parallel parts and checked (our sha256, else its MD5, else its size) before it appears in the
cache. An upload either completes or changes nothing. A process remembers each object's version for the whole run: if an
object changes meanwhile, that is an error, so versions are never mixed.

All settings come from the environment: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL or S3_ENDPOINT (none: AWS), AWS_REGION,
credentials (AWS_* or MINIO_* variables, ~/.aws/credentials, web identity (at AWS_ENDPOINT_URL_STS), the container's or
instance's role), STEREO_CACHE (a folder) and STEREO_CACHE_GIB. None of it is logged.

A process has one set of clients, one view of the objects and one cache: CLIENTS, OBJECTS and CACHE. The functions
below are their methods.
"""

from stereo_core.storage.cache import Cache, cache_folder
from stereo_core.storage.client import Clients, StorageError
from stereo_core.storage.objects import Entry, Objects
from stereo_core.storage.transfers import PARALLEL, progress
from stereo_core.storage.uris import MOUNTS, REFERENCE, SCHEMES, is_uri, local_path, split

CLIENTS = Clients()
OBJECTS = Objects(CLIENTS)
CACHE = Cache(OBJECTS)

in_a_hurry = CLIENTS.in_a_hurry
forget, look, is_prefix = OBJECTS.forget, OBJECTS.look, OBJECTS.is_prefix
children, tree = OBJECTS.children, OBJECTS.tree
upload, copy, remove, stored_digest = OBJECTS.upload, OBJECTS.copy, OBJECTS.remove, OBJECTS.stored_digest
fetch, read, fetch_to, fetch_tree = CACHE.fetch, CACHE.read, CACHE.fetch_to, CACHE.fetch_tree

__all__ = [
    "CACHE",
    "CLIENTS",
    "MOUNTS",
    "OBJECTS",
    "PARALLEL",
    "REFERENCE",
    "SCHEMES",
    "Entry",
    "StorageError",
    "cache_folder",
    "children",
    "copy",
    "fetch",
    "fetch_to",
    "fetch_tree",
    "forget",
    "in_a_hurry",
    "is_prefix",
    "is_uri",
    "local_path",
    "look",
    "progress",
    "read",
    "remove",
    "split",
    "stored_digest",
    "tree",
    "upload",
]
