"""VAEs on the Hugging Face hub: fetched file by file into the hub's cache, or found there.

Only what is needed is fetched: a repository may hold other models and tens of gigabytes of them. The hub's client
respects `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_TOKEN`, and takes what is in the cache when
the hub cannot be reached. A commit that is in the cache, with weights under diffusers' names, is used without asking.
The client tries six times in half a minute and tells of each; so what is not in the cache is asked for once before.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipelines.quiet import quiet_log
from pipelines.vae_files import (
    CONFIG_FILE,
    INDEX_FILE,
    PIPELINE_FOLDER,
    WEIGHTS_FILE,
    choose_weights,
    indexed_files,
)
from schemas.errors import UserError


def fetch_vae(repository: str, folder: str | None, revision: str | None) -> tuple[Path, str, str]:
    """Have the config and the weights of a VAE in the cache.

    Args:
        repository: `org/name`.
        folder: of the VAE in the repository; None for its root, or `vae` when the root has no config.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        The directory in the cache, the folder in the repository ("" for its root), the commit.

    Raises:
        UserError: no such repository, revision or VAE, no way to reach it, or no safetensors in it.
    """
    label = repository + (f" at revision {revision}" if revision else "")
    configs = [_within(folder, CONFIG_FILE)] if folder else [CONFIG_FILE, _within(PIPELINE_FOLDER, CONFIG_FILE)]
    with _told_in_one_line(label, " and no ".join(configs)), quiet_log(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config, folder = _fetch_config(repository, folder, revision)
        commit = config.parents[len(PurePosixPath(folder).parts)].name
        _fetch_weights(repository, folder, commit, config.parent)
    return config.parent, folder, commit


def _fetch_config(repository: str, folder: str | None, revision: str | None) -> tuple[Path, str]:
    """The config in the cache and its folder in the repository."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    first = _within(folder or "", CONFIG_FILE)
    try:
        _see_hub(repository, first, revision)
        return Path(hf_hub_download(repository, first, revision=revision)), folder or ""
    except EntryNotFoundError as error:
        if folder is not None:
            raise
        # Neither fetched nor found: whether the hub was asked in vain once is enough to know.
        only_here = isinstance(error, LocalEntryNotFoundError)
        inner = _within(PIPELINE_FOLDER, CONFIG_FILE)
        try:
            found = hf_hub_download(repository, inner, revision=revision, local_files_only=only_here)
        except LocalEntryNotFoundError:
            raise error from None
        return Path(found), PIPELINE_FOLDER


def _fetch_weights(repository: str, folder: str, commit: str, directory: Path) -> None:
    """Have the weight files beside the config; the hub is asked only for what is missing."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import OfflineModeIsEnabled

    if (directory / WEIGHTS_FILE).is_file():
        return
    if (directory / INDEX_FILE).is_file():
        chosen = INDEX_FILE
    else:
        here = [path.name for path in directory.iterdir()]
        try:
            _see_hub(repository, _within(folder, WEIGHTS_FILE), commit)
            listed = [PurePosixPath(file) for file in HfApi().list_repo_files(repository, revision=commit)]
        except OfflineModeIsEnabled:
            choose_weights(here, f"{directory} (HF_HUB_OFFLINE is set)")
            return
        names = [file.name for file in listed if file.parent == PurePosixPath(folder)]
        chosen = choose_weights(names, _within(repository, folder))
        hf_hub_download(repository, _within(folder, chosen), revision=commit)
    if chosen == INDEX_FILE:
        for name in indexed_files(directory / INDEX_FILE):
            hf_hub_download(repository, _within(folder, name), revision=commit)


def _see_hub(repository: str, file: str, revision: str | None) -> None:
    """Ask the hub once whether it is there, unless the file is in the cache or the client is told to stay offline.

    Raises:
        LocalEntryNotFoundError: it gave no answer.
    """
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(repository, file, revision=revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(repository, file, revision=revision))
    except errors.HfHubHTTPError:
        pass  # an answer; what it means, and whether it is worth another try, the client says
    except Exception as error:  # of the HTTP library, which is not the same in all releases of the client
        raise errors.LocalEntryNotFoundError(str(error)) from error


def _within(folder: str, name: str) -> str:
    return str(PurePosixPath(folder) / name)


@contextmanager
def _told_in_one_line(label: str, configs: str) -> Iterator[None]:
    """Everything that the hub's client raises, as one line for the user. The first row that fits counts."""
    try:
        from huggingface_hub import constants, errors
    except ImportError:
        raise UserError(
            f"the VAE {label} is no local directory, and fetching it needs `pip install huggingface_hub`"
        ) from None
    offline = "HF_HUB_OFFLINE is set; unset it once to fetch the VAE"
    unreachable = f"the hub at {constants.ENDPOINT} gave no answer; try again"
    instead = (
        "or give a directory (none has that name); `--vae embedded` and `--vae none` of preprocess need no network"
    )
    table: tuple[tuple[type[Exception], str], ...] = (
        (errors.GatedRepoError, "its owners let it out only to those who accept its terms on the hub and set HF_TOKEN"),
        (
            errors.RepositoryNotFoundError,
            f"the hub has no such repository, or it is private and HF_TOKEN not set; correct the name, {instead}",
        ),
        (errors.RevisionNotFoundError, "it has no such revision; give a branch, a tag or a commit"),
        (
            errors.LocalEntryNotFoundError,
            f"it is not in the cache {constants.HF_HUB_CACHE}, and "
            f"{offline if constants.HF_HUB_OFFLINE else unreachable}, {instead}",
        ),
        (errors.EntryNotFoundError, f"the repository has no {configs}; name the folder of its VAE as org/name:folder"),
    )
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # besides its own errors, the client lets through those of its HTTP library and the OS
        told = [reason for kind, reason in table if isinstance(error, kind)]
        first_line = (str(error).strip().splitlines() or [""])[0].strip()
        reason = told[0] if told else f"{type(error).__name__}: {first_line}"
        raise UserError(f"cannot get the VAE {label} from the hub: {reason}") from error
