"""Files to a repository of the hub: all in one commit, and all there afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from vlmoe.errors import UserError
from vlmoe.push.contents import EXPORTED, Files

HTTP_ERROR = HfHubHTTPError.__bases__[0]
"""Of the library that the hub's own asks by; it was another one more than once."""
EMPTY = {".gitattributes"}
"""What the hub itself puts into a new repository."""


def send(files: Files, name: str, *, public: bool, update: bool) -> str:
    """Make the repository, or add a commit to the one that is there.

    Args:
        files: all that it gets; an earlier push's export goes if there is none among them.
        name: ``user/name``.
        public: whether a new one can be seen by everybody.
        update: whether one that holds something already may be changed.

    Returns:
        The address of the commit.

    Raises:
        UserError: it is there already, may not be written, or the hub is out of reach; or it does
            not hold all files afterwards.
    """
    api = HfApi()
    with _asking(name):
        try:
            found = api.model_info(name)
        except RepositoryNotFoundError:
            found = None
        there = {file.rfilename for file in (found.siblings or ())} if found else set()
        if found:
            seen = "private" if found.private else "public"
            if there - EMPTY and not update:
                raise UserError(
                    f"{name} is on the hub already ({seen}): --update adds a commit to it, or "
                    "give another name"
                )
            if public and found.private:
                raise UserError(f"{name} is there and private: make it public on the hub itself")
            if not public and not found.private and not update:
                raise UserError(f"{name} is there and public: say so with --public")
        else:
            api.create_repo(name, private=not public)
            if not public and not api.model_info(name).private:
                raise UserError(f"{name} was made, but not as a private one: nothing was sent")
        stale = sorted(path for path in there if path.startswith(f"{EXPORTED}/"))
        commit = api.create_commit(
            name,
            [
                *(CommitOperationAdd(path, content) for path, content in _as_sent(files).items()),
                *(CommitOperationDelete(path) for path in stale if path not in files),
            ],
            commit_message="Adapter pushed by vlmoe",
            parent_commit=found.sha if found else None,
        )
        missing = files.keys() - set(api.list_repo_files(name, revision=commit.oid))
    if missing:
        raise UserError(f"{name} did not take {', '.join(sorted(missing))}: is there a .gitignore?")
    return str(commit.commit_url)


def _as_sent(files: Files) -> Mapping[str, bytes | str]:
    return {
        path: content if isinstance(content, bytes) else str(content)
        for path, content in files.items()
    }


@contextmanager
def _asking(name: str) -> Iterator[None]:
    """Turn what the hub answers into one message."""
    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled as error:
        raise UserError("the hub is switched off by $HF_HUB_OFFLINE: unset it to push") from error
    except LocalTokenNotFoundError as error:
        raise UserError(_LOG_IN.format(name)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise UserError(_LOG_IN.format(name)) from error
        raise UserError(f"the hub refuses {name}: {_line(error)}") from error
    except ValueError as error:  # of the card, in the hub's words
        raise UserError(f"the hub refuses {name}: {_line(error)}") from error
    except (OSError, HTTP_ERROR) as error:  # type: ignore[misc]  # mypy sees no class in it
        raise UserError(f"the hub cannot be reached: {_line(error)}") from error


_LOG_IN = (
    "the hub does not let you write to {}: log in with `hf auth login`, or set $HF_TOKEN to a "
    "token that may write"
)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
