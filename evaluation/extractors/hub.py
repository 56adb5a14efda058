"""One file of a model on the Hugging Face hub: found in the hub's cache, else fetched into it.

What is in the cache is taken without asking the hub, so a branch stays at the commit that was fetched first; the
weights' SHA-256 goes with every result. The hub's client respects `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`,
`HF_ENDPOINT` and `HF_TOKEN`. It tries six times in half a minute, so the hub is asked once before.
"""

from pathlib import Path
from typing import Any

from schemas.errors import UserError


def fetch_file(repository: str, name: str, revision: str | None = None) -> Path:
    """Have a file of a repository in the cache.

    Args:
        repository: `org/name`.
        name: of the file in it.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The file in the cache.

    Raises:
        UserError: no such repository, revision or file, no way to reach the hub, or no client installed.
    """
    label = f"{name} of {repository}" + (f" at revision {revision}" if revision else "")
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError(f"fetching {label} needs `pip install huggingface_hub`, or give a local file") from None
    found = hub.try_to_load_from_cache(repository, name, revision=revision)
    if isinstance(found, str):
        return Path(found)
    try:
        _see(hub, repository, name, revision)
        return Path(hub.hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # besides its own, the client lets through errors of its HTTP library and the OS
        raise UserError(f"cannot get {label} from the hub: {_reason(hub, error)}") from error


def _see(hub: Any, repository: str, name: str, revision: str | None) -> None:
    """Ask the hub once whether it is there.

    Raises:
        LocalEntryNotFoundError: it gave no answer, or the client is told to stay offline.
    """
    if hub.constants.HF_HUB_OFFLINE:
        raise hub.errors.LocalEntryNotFoundError("HF_HUB_OFFLINE is set")
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repository, name, revision=revision))
    except hub.errors.HfHubHTTPError:
        pass  # an answer; what it means, and whether it is worth another try, the client says
    except Exception as error:  # of the HTTP library, which is not the same in all releases of the client
        raise hub.errors.LocalEntryNotFoundError(str(error)) from error


def _reason(hub: Any, error: Exception) -> str:
    """One line about what went wrong and what to do. The first row that fits counts."""
    constants, errors = hub.constants, hub.errors
    instead = "or give a local file or directory"
    unreachable = f"the hub at {constants.ENDPOINT} gave no answer; try again"
    offline = "HF_HUB_OFFLINE is set; unset it once"
    table: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "its owners let it out only to those who accept its terms on the hub and set HF_TOKEN"),
        (
            errors.RepositoryNotFoundError,
            f"no such repository, or it is private and HF_TOKEN not set; correct the name, {instead}",
        ),
        (errors.RevisionNotFoundError, "it has no such revision; give a branch, a tag or a commit"),
        (
            errors.LocalEntryNotFoundError,
            f"it is not in the cache {constants.HF_HUB_CACHE}, and "
            f"{offline if constants.HF_HUB_OFFLINE else unreachable}, {instead}",
        ),
        (errors.EntryNotFoundError, f"the repository has no such file; give another repository, {instead}"),
    )
    told = [reason for kind, reason in table if isinstance(error, kind)]
    first_line = (str(error).strip().splitlines() or [""])[0].strip()
    return told[0] if told else f"{type(error).__name__}: {first_line}"
