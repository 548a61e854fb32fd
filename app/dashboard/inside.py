"""What a page may read: the store, folders opened by whoever serves, and what has a name.

A page is used by people who may not read this machine's files. What they type is a name
(an embedded model, one of a hub, a known prompt set); a path is refused, whether or not
there is anything at it, unless it lies where pages may read.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from analysis.requests import Request
from app.dashboard.data import aligned, mask_choices, model_choices, studies
from app.jobs.folder import list_jobs
from app.settings import read_settings
from toolkit.errors import SafeNeuronError
from toolkit.home import home
from toolkit.known_prompts import KNOWN
from toolkit.models.sources import EMBEDDED
from toolkit.prompts import parts_of, slice_of
from toolkit.train.tables import KINDS, kind_of

# Fields of requests by what they name; others name nothing on a disk.
MODELS = ("model", "target", "base", "rejected_from")
PROMPTS = (
    *("harmful", "harmless", "find_harmful", "find_harmless", "topics", "over_refusal"),
    *("held_harmful", "held_harmless", "attacked", "attacked_harmless", "leave_out", "utility"),
)
PAIRS = ("safety", "general")
JUDGES = ("harm_judge",)
LONGEST = 1000  # letters of a name


def folders() -> list[Path]:
    """Where pages may read: the store, and the folders of the setting ``folders``."""
    return [home().resolve(), *(part.expanduser().resolve() for part in read_settings().folders)]


def is_inside(path: Path) -> bool:
    """Whether a path lies where pages may read, links and ``..`` followed to their end."""
    try:
        real = path.expanduser().resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, no such user, a NUL
        return False
    return any(real.is_relative_to(folder) for folder in folders())


def require_inside(request: Request) -> None:
    """Refuse a request that reads what a page may not.

    Raises:
        SafeNeuronError: one of its fields is a path outside.
    """
    for field, value in _outside(request):
        raise SafeNeuronError(
            f"{field.replace('_', '-')} {value[:60]!r} lies outside what pages may read: use the "
            "command line, or name its folder in 'safeneuron settings set folders'"
        )


def _outside(request: Request) -> Iterator[tuple[str, str]]:
    vouched = _vouched()
    for field in type(request).model_fields:
        value = getattr(request, field)
        if value is None or str(value) in vouched:
            continue
        reads = _reader(field)
        if isinstance(value, Path):
            outside = not is_inside(value)
        elif reads is None:
            outside = False
        else:
            outside = len(value) > LONGEST or reads(value)
        if outside:
            yield field, str(value)


def _vouched() -> set[str]:
    """What the store or an earlier job names was put there by whoever may read it."""
    vouched = {choice.value for choice in (*model_choices(), *mask_choices())}
    vouched |= {str(job.folder.resolve()) for job in aligned()}
    for study in studies():
        asked = study.summary.get("asked")
        if isinstance(asked, dict):  # what its neurons are measured on
            vouched |= {str(asked[field]) for field in PROMPTS if field in asked}
    for job in list_jobs():
        vouched |= {str(job.request.get(field)) for field in ("model", "mask")}
    return vouched


def _reader(field: str) -> Callable[[str], bool] | None:
    """How a field is asked whether it leads outside; None where it names nothing."""
    kinds = ((MODELS, _model), (PROMPTS, _prompts), (PAIRS, _pairs), (JUDGES, _judge))
    return next((leads for fields, leads in kinds if field in fields), None)


def _model(source: str) -> bool:
    return source not in EMBEDDED and _is_path(source) and not is_inside(Path(source))


def _prompts(spec: str) -> bool:
    names = [_whole(part) for part in parts_of(spec)]
    return any(name not in KNOWN and _is_file(name) and not is_inside(Path(name)) for name in names)


def _pairs(source: str) -> bool:
    path = Path(source)
    return (_is_path(source) or kind_of(path) in KINDS) and not is_inside(path)


def _judge(spec: str) -> bool:
    """A judge's model is one of the others; an address would be asked in the server's name."""
    source = spec.partition(":")[2].partition("#")[0]
    return "://" in source or _model(source)


def _whole(spec: str) -> str:
    """The name or path in a spec, without its slices and its category."""
    while True:
        name, part = slice_of(spec)
        if part is None and "#" in name and not _is_there(name):
            name = name.rpartition("#")[0]
        if name == spec:
            return name
        spec = name


def _is_path(source: str) -> bool:
    """Whether a model source names something on the disk and not one of a hub."""
    return source.startswith((".", "~", "/")) or source.count("/") > 1 or _is_there(source)


def _is_file(name: str) -> bool:
    """Whether a prompt source is a file's name and not, say, a misspelt set's."""
    return "/" in name or bool(Path(name).suffix) or name.startswith("~") or _is_there(name)


def _is_there(name: str) -> bool:
    try:
        return "\0" in name or Path(name).exists()
    except (OSError, ValueError):  # too long for a path
        return True
