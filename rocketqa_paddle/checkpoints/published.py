"""The published models: what there is, and a cache of what was downloaded.

The cache is the folder `ROCKETQA_HOME`, by default `~/.rocketqa`. The RocketQA toolkit uses the same folder,
so models that it has downloaded are found here.
"""

import gzip
import hashlib
import os
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import httpx
from tqdm import tqdm

from rocketqa_paddle.runtime.folders import Contents, replacing
from rocketqa_paddle.runtime.storage import locked

BASE_URL = "https://rocketqa.bj.bcebos.com/RocketQAModels"
ATTEMPTS = 5
WAIT_SECONDS = 1.0  # before the second attempt; twice as long before each later one
TIMEOUT_SECONDS = 30.0  # how long the server may send nothing
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Published:
    """A released model.

    `lengths` are the numbers of tokens that the released training scripts give a query, a passage or a pair.
    If the configuration in the archive says otherwise, it counts.
    """

    name: str  # the name that `load_model` takes
    kind: Literal["dual_encoder", "cross_encoder"]
    language: Literal["en", "zh"]
    lengths: dict[str, int]
    trained_on: str  # the data set
    system: str  # the system whose paper describes the model
    md5: str  # the archive's digest, as the toolkit states it
    url: str  # the archive's address


_DIGESTS = {
    "v1_marco_de": "d8210e4080935bd7fdad7a394cd60b66",
    "v1_marco_ce": "caec5aedc46f22edd7107ecd793fc7fb",
    "v1_nq_de": "cfeb70f82087b8a47bb0d6d6cfcd61c5",
    "v1_nq_ce": "15aac78d70cc25994016b8a30d80f12c",
    "pair_marco_de": "b4080ffa2999525e5ba2aa1f4e03a9e8",
    "pair_nq_de": "d770bc379ec6def7e0588ec02c80ace2",
    "v2_marco_de": "4ce64ff35d1d831f0ca989e49abde227",
    "v2_marco_ce": "915ea7ff214a4a92a3a1e1d56c3fb469",
    "v2_nq_de": "8f177aa75cadaad6656dcd981edc983b",
    "zh_dureader_de": "39811675289c311236c667ad57ebd2d2",
    "zh_dureader_ce": "11caeb179febc5f0a55fa10ae3f2d123",
    "zh_dureader_de_v2": "889e62b0091bc350622549b57a2616ec",
    "zh_dureader_ce_v2": "552675c98c546e798a33cc84325921f6",
}
_SYSTEMS = {"v1": "RocketQA", "zh": "RocketQA", "pair": "PAIR", "v2": "RocketQAv2"}
_DATA = {"marco": "MS MARCO", "nq": "Natural Questions", "dureader": "DuReader"}


def _published(name: str, md5: str) -> Published:
    """Describe a model by its name: the system or `zh`, the data, and `de` or `ce` for the kind."""
    system, data, kind = name.split("_")[:3]
    language, passage, pair = ("zh", 384, 384) if system == "zh" else ("en", 128, 160)
    dual = kind == "de"
    lengths = {"query": 32, "passage": passage} if dual else {"pair": pair}
    kind, url = "dual_encoder" if dual else "cross_encoder", f"{BASE_URL}/{name}.tar.gz"
    return Published(name, kind, language, lengths, _DATA[data], _SYSTEMS[system], md5, url)


MODELS = {name: _published(name, md5) for name, md5 in _DIGESTS.items()}


def available_models() -> list[str]:
    """Return the names of the published models."""
    return list(MODELS)


def home() -> Path:
    """Return the cache folder."""
    return Path(os.environ.get("ROCKETQA_HOME") or "~/.rocketqa").expanduser()


def is_fetched(name: str) -> bool:
    """Tell whether a published model is in the cache."""
    return (home() / name / "config.json").is_file()


def fetch(name: str) -> Path:
    """Return the folder of a published model, which is downloaded and unpacked if it is not in the cache.

    Processes that need a model at once download it once. An interrupted download goes on where it stopped.

    Raises:
        ValueError: there is no such model, or its archive is damaged or would write outside its folder.
        OSError: the server cannot be reached. The message says where to put the archive by hand.
        RuntimeError: this Python cannot unpack archives safely.
    """
    if name not in MODELS:
        raise ValueError(f"no published model {name!r}, expected one of {', '.join(MODELS)}")
    folder = home() / name
    if not is_fetched(name):
        _prepare_home()
        with locked(folder, wait=True):
            if not is_fetched(name):  # another process may have done it while this one waited
                _fill_cache(MODELS[name], folder)
    return folder


def _prepare_home() -> None:
    """Check that archives can be unpacked safely, and make the cache folder."""
    if not hasattr(tarfile, "data_filter"):
        version = sys.version.split()[0]
        raise RuntimeError(f"Python {version} cannot unpack archives safely: use at least 3.10.12 or 3.11.4")
    try:
        home().mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{home()}: {error.strerror}; set ROCKETQA_HOME to a folder for models") from None


def _fill_cache(model: Published, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds other files and no config.json: move it away")
    archive = folder.parent / f"{model.name}.tar.gz"
    if not archive.is_file():
        _download(model, archive)
    elif _md5(archive) != model.md5:
        raise ValueError(f"{archive} has not the digest {model.md5}: it is damaged, remove it")
    _unpack(archive, folder)
    archive.unlink()
    archive.with_name(f"{archive.name}.part").unlink(missing_ok=True)


def _download(model: Published, archive: Path) -> None:
    """Download to a partial file, which takes the archive's name when its digest is right."""
    partial = archive.with_name(f"{archive.name}.part")
    for attempt in range(ATTEMPTS):
        try:
            _continue_download(model, partial)
            break
        except httpx.HTTPError as error:
            if attempt == ATTEMPTS - 1 or _is_final(error):
                raise OSError(_by_hand(model, archive, error)) from None
            wait = WAIT_SECONDS * 2**attempt
            tqdm.write(f"{model.name}: {_reason(error)}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
    if (digest := _md5(partial)) != model.md5:
        partial.unlink()
        problem = f"the file at {model.url} has the digest {digest}, expected {model.md5}"
        raise ValueError(
            f"{model.name}: {problem}. It is damaged or another file, and was removed: try again"
        )
    partial.replace(archive)


def _continue_download(model: Published, partial: Path) -> None:
    """Download what the partial file lacks, or everything if the server does not send parts of files."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    how = {"headers": headers, "follow_redirects": True, "timeout": TIMEOUT_SECONDS}
    with httpx.stream("GET", model.url, **how) as answer:
        if have and answer.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # the partial file has all bytes already; the digest decides whether they are right
        answer.raise_for_status()
        have = have if answer.status_code == httpx.codes.PARTIAL_CONTENT else 0
        total = have + int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        bar = tqdm(total=total, initial=have, desc=model.name, unit="B", unit_scale=True, unit_divisor=1024)
        with bar, open(partial, "ab" if have else "wb") as file:
            for block in answer.iter_raw():  # blocks are written as they come, so an interruption loses none
                file.write(block)
                bar.update(len(block))


def _is_final(error: Exception) -> bool:
    """Tell whether another attempt would fail in the same way: the file is missing, or access is denied."""
    if not isinstance(error, httpx.HTTPStatusError) or not error.response.is_client_error:
        return False
    return error.response.status_code not in (httpx.codes.REQUEST_TIMEOUT, httpx.codes.TOO_MANY_REQUESTS)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).split("\n")[0]


def _by_hand(model: Published, archive: Path, error: Exception) -> str:
    config = archive.parent / model.name / "config.json"
    return (
        f"{model.name}: {model.url} could not be fetched ({_reason(error)}). On a machine without internet, "
        f"fetch that file elsewhere and put it at {archive}, or unpack it so that {config} is there. Set "
        "ROCKETQA_HOME to keep models elsewhere"
    )


def _md5(file: Path) -> str:
    state = hashlib.md5(usedforsecurity=False)
    with open(file, "rb") as content:
        while block := content.read(_BLOCK):
            state.update(block)
    return state.hexdigest()


_EMPTY = Contents("model", names=(), markers=())
"""The folder of a model that is not in the cache: it takes the place of nothing."""
_BROKEN = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, KeyError)
"""What `tarfile` raises for archives that are cut off, damaged or contradict themselves."""


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive into a new folder, which takes its name when it is complete.

    Every member is checked before the first one is written, and once more when it is written, because a
    link that was just written may lead elsewhere.

    Raises:
        ValueError: the archive is cut off or damaged, has no `config.json`, or has a member that would be
            written outside the folder, a link that leaves it, or a device.
    """
    try:
        with tarfile.open(archive) as tar:
            members = [tarfile.data_filter(_below(member, folder.name), str(folder)) for member in tar]
            if not any(member.isreg() and member.name == "config.json" for member in members):
                raise ValueError(f"{archive} holds no {folder.name}/config.json")
            with replacing(folder, _EMPTY) as new:
                try:
                    tar.extractall(new, members, filter="data")
                except FileExistsError as error:
                    raise tarfile.ExtractError(f"two members of one name: {error}") from error
    except tarfile.FilterError as error:
        raise ValueError(f"{archive}: {error}; nothing was unpacked") from None
    except _BROKEN as error:
        raise ValueError(f"{archive}: not a whole archive ({error})") from None


def _below(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """Return a member under its path below the folder of the model's name, which some archives leave out."""
    parts = PurePosixPath(member.name).parts
    if parts[:1] == (name,) and (member.isdir() or len(parts) > 1):
        parts = parts[1:]
    return member.replace(name=str(PurePosixPath(*parts)), deep=False)
