"""Files and folders, local or in an object store. Needs the standard library; clients are imported
when a URL is used.

url: whether a path is a URL.
place: whether a path is one of this machine, and no device that a file would replace.
store: the one interface, with the defaults of an object store.
local: the local disk.
connection: another way to connect to them than the environment says.
objects: S3 and Google Cloud Storage by their vendors' clients.
retries: requests that are repeated where a store fails.
paths: read, write and list by path or URL: the store of a path is asked.
directory: the root of a dataset.
user_cache: the cache folder of the user.
temporary: temporary folders that a SIGKILL does not leave for good.
"""
