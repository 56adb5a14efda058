"""Files and folders, local or in an object store. Needs the standard library; clients are imported
when a URL is used.

paths: read, write and list by path or URL, asking again where a store fails.
objects: S3 and Google Cloud Storage by their vendors' clients.
directory: the root of a dataset: local.
remote: the root of a dataset: in a store.
temporary: temporary folders that a SIGKILL does not leave for good.
"""
