"""The published models: what there is, and a cache of what was fetched.

The cache is the folder `ROCKETQA_HOME`, by default `~/.rocketqa`, which the RocketQA toolkit uses, too:
what it has fetched already is found.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import httpx
from filelock import FileLock
from tqdm import tqdm

from rocketqa_paddle.runtime.storage import replacing

BASE_URL = "https://rocketqa.bj.bcebos.com/RocketQAModels"
ATTEMPTS = 5
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before each later one
TIMEOUT_SECONDS = 30.0  # without a byte
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Published:
    """A released model.

    `lengths` are the tokens that the released training scripts give a query, a passage or a pair; the
    configuration in the archive has the last word. `md5` is of the archive, as the toolkit states it.
    """

    name: str
    kind: Literal["dual_encoder", "cross_encoder"]
    language: Literal["en", "zh"]
    lengths: dict[str, int]
    trained_on: str
    system: str
    md5: str
    url: str = ""

    def __post_init__(self) -> None:
        if not self.url:
            object.__setattr__(self, "url", f"{BASE_URL}/{self.name}.tar.gz")


def _dual(name: str, language: str, passage: int, trained_on: str, system: str, md5: str) -> Published:
    return Published(
        name, "dual_encoder", language, {"query": 32, "passage": passage}, trained_on, system, md5
    )


def _cross(name: str, language: str, pair: int, trained_on: str, system: str, md5: str) -> Published:
    return Published(name, "cross_encoder", language, {"pair": pair}, trained_on, system, md5)


_MARCO, _NQ, _DUREADER = "MS MARCO", "Natural Questions", "DuReader"
MODELS: dict[str, Published] = {
    model.name: model
    for model in (
        _dual("v1_marco_de", "en", 128, _MARCO, "RocketQA", "d8210e4080935bd7fdad7a394cd60b66"),
        _cross("v1_marco_ce", "en", 160, _MARCO, "RocketQA", "caec5aedc46f22edd7107ecd793fc7fb"),
        _dual("v1_nq_de", "en", 128, _NQ, "RocketQA", "cfeb70f82087b8a47bb0d6d6cfcd61c5"),
        _cross("v1_nq_ce", "en", 160, _NQ, "RocketQA", "15aac78d70cc25994016b8a30d80f12c"),
        _dual("pair_marco_de", "en", 128, _MARCO, "PAIR", "b4080ffa2999525e5ba2aa1f4e03a9e8"),
        _dual("pair_nq_de", "en", 128, _NQ, "PAIR", "d770bc379ec6def7e0588ec02c80ace2"),
        _dual("v2_marco_de", "en", 128, _MARCO, "RocketQAv2", "4ce64ff35d1d831f0ca989e49abde227"),
        _cross("v2_marco_ce", "en", 160, _MARCO, "RocketQAv2", "915ea7ff214a4a92a3a1e1d56c3fb469"),
        _dual("v2_nq_de", "en", 128, _NQ, "RocketQAv2", "8f177aa75cadaad6656dcd981edc983b"),
        _dual("zh_dureader_de", "zh", 384, _DUREADER, "RocketQA", "39811675289c311236c667ad57ebd2d2"),
        _cross("zh_dureader_ce", "zh", 384, _DUREADER, "RocketQA", "11caeb179febc5f0a55fa10ae3f2d123"),
        _dual("zh_dureader_de_v2", "zh", 384, _DUREADER, "RocketQA", "889e62b0091bc350622549b57a2616ec"),
        _cross("zh_dureader_ce_v2", "zh", 384, _DUREADER, "RocketQA", "552675c98c546e798a33cc84325921f6"),
    )
}


def available_models() -> list[str]:
    """The names of the published models."""
    return list(MODELS)


def home() -> Path:
    """The cache folder."""
    return Path(os.environ.get("ROCKETQA_HOME") or "~/.rocketqa").expanduser()


def is_fetched(name: str) -> bool:
    """Whether a published model is in the cache."""
    return (home() / name / "config.json").is_file()


def fetch(name: str) -> Path:
    """The folder of a published model; it is downloaded and unpacked first if it is not there.

    Processes that ask at the same time fetch once. A download that breaks off goes on where it stopped.

    Raises:
        ValueError: no such model; or the archive has another digest, or would write outside its folder.
        OSError: the server cannot be reached; says where to put the file by hand.
    """
    if name not in MODELS:
        raise ValueError(f"no published model {name!r}, expected one of {', '.join(MODELS)}")
    model, folder = MODELS[name], home() / name
    if is_fetched(name):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"{folder.parent}: {error.strerror}; set ROCKETQA_HOME to a folder for models"
        ) from None
    with FileLock(folder.parent / f".{name}.lock"):
        if not is_fetched(name):
            if folder.is_dir() and any(folder.iterdir()):
                raise ValueError(f"{folder} holds other files and no config.json: move it away")
            archive = folder.parent / f"{name}.tar.gz"
            if not archive.is_file():
                _download(model, archive)
            elif _digest(archive) != model.md5:
                raise ValueError(f"{archive} has not the digest {model.md5}: it is damaged, remove it")
            _unpack(archive, folder)
            archive.unlink()
            _partial(archive).unlink(missing_ok=True)
    return folder


# Download ---------------------------------------------------------------------------------------


def _download(model: Published, archive: Path) -> None:
    """Fetch into a partial file, which takes the archive's name once it is whole and has the digest."""
    partial = _partial(archive)
    for attempt in range(ATTEMPTS):
        try:
            _go_on(model, partial)
            break
        except httpx.HTTPError as error:
            if attempt == ATTEMPTS - 1 or _is_final(error):
                raise OSError(_by_hand(model, archive, error)) from None
            wait = WAIT_SECONDS * 2**attempt
            tqdm.write(f"{model.name}: {_reason(error)}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    if (digest := _digest(partial)) != model.md5:
        partial.unlink()
        raise ValueError(
            f"{model.name}: what {model.url} gave has the digest {digest}, expected {model.md5}. "
            "It is damaged or another file, and was removed: try again"
        )
    partial.replace(archive)


def _partial(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.part")


def _go_on(model: Published, partial: Path) -> None:
    """Fetch what a partial file lacks, or all of it if the server does not give parts."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with httpx.stream(
        "GET", model.url, headers=headers, follow_redirects=True, timeout=TIMEOUT_SECONDS
    ) as answer:
        if have and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # all of it is here already; the digest will tell
        answer.raise_for_status()
        goes_on = answer.status_code == httpx.codes.PARTIAL_CONTENT
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, desc=model.name, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, open(partial, "ab" if goes_on else "wb") as file:
            for block in answer.iter_raw():  # as they come: a cut loses nothing
                file.write(block)
                bar.update(len(block))


def _is_final(error: Exception) -> bool:
    """An answer that another attempt will not change: the file is not there, or not for us."""
    passing = (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)
    return (
        isinstance(error, httpx.HTTPStatusError)
        and error.response.is_client_error
        and error.response.status_code not in passing
    )


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]


def _by_hand(model: Published, archive: Path, error: Exception) -> str:
    config, reason = archive.parent / model.name / "config.json", _reason(error)
    return (
        f"{model.name}: {model.url} could not be fetched ({reason}). On a machine without internet, fetch "
        f"that file elsewhere and put it at {archive}, or unpack it so that {config} is there. Set "
        "ROCKETQA_HOME to keep models elsewhere"
    )


def _digest(file: Path) -> str:
    state = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as content:
        while block := content.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


# Unpack -----------------------------------------------------------------------------------------


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack into a new folder that takes its name once it is whole.

    Raises:
        ValueError: a member is no file or folder below the model's own; nothing is written then.
    """
    try:
        with tarfile.open(archive) as tar:
            members = tar.getmembers()
            for member in members:
                _check_member(member, archive, folder.name)
            files = {str(_inside(member, folder.name)) for member in members if member.isreg()}
            if "config.json" not in files:
                raise ValueError(f"{archive} holds no {folder.name}/config.json")
            with replacing(folder, marker="config.json") as new:
                for member in members:
                    _extract(tar, member, new / _inside(member, folder.name))
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive}: not a whole archive ({error})") from None


def _check_member(member: tarfile.TarInfo, archive: Path, name: str) -> None:
    path = PurePosixPath(member.name.replace("\\", "/"))
    below = member.isdir() or (member.isreg() and _inside(member, name).parts)
    if path.is_absolute() or ".." in path.parts or not below:
        raise ValueError(
            f"{archive}: the member {member.name!r} is not a file or folder below the model's own; "
            "nothing was unpacked"
        )


def _inside(member: tarfile.TarInfo, name: str) -> PurePosixPath:
    """A member's path below the folder of the model's name, which all of them are in."""
    parts = PurePosixPath(member.name.replace("\\", "/")).parts
    return PurePosixPath(*(parts[1:] if parts[:1] == (name,) else parts))


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    assert source is not None, member
    with source, open(path, "wb") as file:
        shutil.copyfileobj(source, file, _BLOCK)
