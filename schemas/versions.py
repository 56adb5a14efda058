"""Which versions made a thing."""

from importlib import metadata


def installed_version(package: str) -> str:
    """The version of an installed distribution, or "not installed" (flowtrain run from its source
    tree, say).
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
