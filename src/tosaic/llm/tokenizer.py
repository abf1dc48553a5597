"""Text to token ids and back: tokenizer.json of Hugging Face folders, or what a GGUF file has inside; chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tosaic.emit.files import atomic_write_all
from tosaic.errors import InputError
from tosaic.llm.checkpoint import Checkpoint, read_config
from tosaic.llm.values import Values

try:
    import tokenizers
    from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
except ImportError:
    raise InputError("language models need the package tokenizers", remedy="pip install 'tosaic[llm]'") from None

_NAME_IT = "name one with --tokenizer or base.tokenizer_path"
_CONTROL, _USER_DEFINED = 3, 4  # token types of GGUF
_LONGEST = 1024  # characters of a piece that is looked at for merges; a damaged file may hold one of millions
# how text is split before byte-pair encoding, by GGUF's name for it; {n} is how many digits go together
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {"llama-bpe": _WORDS % "{1,3}", "llama3": _WORDS % "{1,3}", "smaug-bpe": _WORDS % "{1,3}", "qwen2": _WORDS % ""}
_SINGLE_DIGITS = ("smollm", "refact", "starcoder", "command-r")


@dataclass
class Tokenizer:
    """A tokenizer with what generation needs beside it.

    Attributes:
        end: ids of tokens that end a text or a turn.
        start: a token that stands in front of each text, where the tokenizer does not put it there itself.
        template: the chat template (Jinja), if there is one.
        names: bos_token and eos_token as the template names them.
    """

    model: tokenizers.Tokenizer
    end: frozenset[int]
    start: int | None = None
    template: str | None = None
    names: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many ids there are."""
        return self.model.get_vocab_size()

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Token ids of a text; `start` puts what the model expects at the beginning in front."""
        ids = self.model.encode(text, add_special_tokens=start).ids
        return [self.start, *ids] if start and self.start is not None and ids[:1] != [self.start] else ids

    def decode(self, ids: Sequence[int], special: bool = False) -> str:
        """The text of token ids; `special` shows control tokens."""
        return self.model.decode(list(ids), skip_special_tokens=not special)

    def chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages ({"role": ..., "content": ...}) as one text that ends where the assistant speaks.

        Raises:
            InputError: there is no chat template, or it refuses the messages.
        """
        if self.template is None:
            raise InputError("the checkpoint has no chat template", remedy="give the text as it is, with --raw")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

        def refuse(why: str) -> None:
            raise TemplateError(why)

        environment.globals["raise_exception"] = refuse
        try:
            return environment.from_string(self.template).render(messages=list(messages), add_generation_prompt=True, **self.names)
        except TemplateError as error:
            raise InputError(f"the checkpoint's chat template fails: {error}") from None


def save_tokenizer(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write a tokenizer as the files of a Hugging Face folder; `open_tokenizer` of the folder gives it back."""
    config: dict[str, Any] = {**tokenizer.names, "chat_template": tokenizer.template}
    if tokenizer.start is not None:
        config |= {"add_bos_token": True, "bos_token": tokenizer.model.id_to_token(tokenizer.start)}
    folder = Path(folder)
    files = {
        "tokenizer.json": tokenizer.model.to_str(),
        "tokenizer_config.json": json.dumps({key: value for key, value in config.items() if value is not None}, indent=1),
        "generation_config.json": json.dumps({"eos_token_id": sorted(tokenizer.end)}),
    }
    atomic_write_all({folder / name: text.encode() for name, text in files.items()})


def open_tokenizer(source: Path | str | Checkpoint) -> Tokenizer:
    """The tokenizer of a checkpoint: a folder or file with tokenizer.json, or a .gguf file; of one that is open nothing is read again.

    Raises:
        InputError: there is none, or it is of a kind that is not known.
    """
    path = _path(source)
    if path.suffix == ".gguf":
        return from_gguf(_gguf_fields(source))
    file = _tokenizer_file(path)
    if not file.is_file():
        remedy = f"{_NAME_IT}; it is the tokenizer.json that Hugging Face's tokenizers write"
        raise InputError(f"no tokenizer: {file} does not exist", remedy=remedy)
    return _from_folder(file)


def has_tokenizer(source: Path | str | Checkpoint) -> bool:
    """Whether a checkpoint has a tokenizer of a form that is known, be it a good one or not."""
    path = _path(source)
    return "tokenizer.ggml.tokens" in _gguf_fields(source) if path.suffix == ".gguf" else _tokenizer_file(path).is_file()


def _path(source: Path | str | Checkpoint) -> Path:
    return source.path if isinstance(source, Checkpoint) else Path(source)


def _gguf_fields(source: Path | str | Checkpoint) -> Mapping[str, Any]:
    from tosaic.llm.gguf_file import GgufCheckpoint

    return (source if isinstance(source, GgufCheckpoint) else GgufCheckpoint(_path(source))).fields


def _tokenizer_file(path: Path) -> Path:
    return path if path.name.endswith(".json") else (path if path.is_dir() else path.parent) / "tokenizer.json"


def _from_folder(file: Path) -> Tokenizer:
    try:
        model = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises this class itself
        raise InputError(f"{file} is no usable tokenizer: {error}") from None
    config, generation = (_values(file.with_name(name)) for name in ("tokenizer_config.json", "generation_config.json"))
    jinja = file.with_name("chat_template.jinja")
    template = jinja.read_text(errors="replace") if jinja.is_file() else config.get("chat_template", None)
    if isinstance(template, list):  # several by name
        template = next((t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"), None)
    names = {key: _content(config.get(key)) for key in ("bos_token", "eos_token") if key in config}
    ends = generation.get("eos_token_id", [])
    ids = {*(ends if isinstance(ends, list) else [ends]), model.token_to_id(names["eos_token"]) if "eos_token" in names else None}
    start = model.token_to_id(names["bos_token"]) if config.flag("add_bos_token") and "bos_token" in names else None
    return Tokenizer(model, frozenset(i for i in ids if isinstance(i, int)), start, None if template is None else str(template), names)


def _values(file: Path) -> Values:
    return Values(read_config(file) if file.is_file() else {}, str(file))


def _content(token: Any) -> str:
    return str(token.get("content") if isinstance(token, dict) else token)


def from_gguf(fields: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in the metadata of a GGUF file.

    Raises:
        InputError: the file has none, or one of a kind that is not known.
    """
    values = Values(fields, "the GGUF file")
    kind, tokens = values.get("tokenizer.ggml.model", None), values.items("tokenizer.ggml.tokens")
    if not tokens:
        raise InputError("the GGUF file has no tokenizer", remedy=_NAME_IT)
    if not all(isinstance(token, str) for token in tokens):
        raise InputError("the GGUF file's tokenizer is damaged: its tokens are not text")
    if kind == "gpt2":
        model = _byte_level(values, tokens)
    elif kind == "llama":
        model = _sentence_piece(values, tokens)
    else:
        raise InputError(f"the GGUF file's tokenizer is of kind '{kind}'; known are gpt2 and llama", remedy=_NAME_IT)
    types = values.items("tokenizer.ggml.token_type") or []
    model.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=False) if k == _CONTROL])
    model.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=False) if k == _USER_DEFINED])
    keys = {name: f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "eom")}
    ids = {name: values.whole(key, least=0, largest=len(tokens) - 1) for name, key in keys.items() if key in values}
    names = {f"{name}_token": tokens[ids[name]] for name in ("bos", "eos") if name in ids}
    add_start = values.flag("tokenizer.ggml.add_bos_token", kind == "llama")
    end = frozenset(ids[name] for name in ("eos", "eot", "eom") if name in ids)
    template = values.get("tokenizer.chat_template", None)
    return Tokenizer(model, end, ids.get("bos") if add_start else None, None if template is None else str(template), names)


def _pairs(vocabulary: dict[str, int], merges: list[Any], **options: Any) -> tokenizers.Tokenizer:
    """Byte-pair encoding."""
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary, merges, **options))
    except Exception as error:  # the library raises this class itself
        raise InputError(f"the GGUF file's tokenizer is damaged: {error}") from None


def _byte_level(fields: Values, tokens: list[str]) -> tokenizers.Tokenizer:
    """Byte-pair encoding of bytes, as GPT-2 has it."""
    merges = [tuple(str(merge).split(" ", 1)) for merge in fields.items("tokenizer.ggml.merges") or []]
    model = _pairs({token: i for i, token in enumerate(tokens)}, merges)
    how = str(fields.get("tokenizer.ggml.pre", "default"))
    if how in _SPLITS:
        split = [pre_tokenizers.Split(Regex(_SPLITS[how]), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    elif how in _SINGLE_DIGITS:
        split = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    elif how in ("default", "gpt-2"):
        split = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        known = ", ".join((*_SPLITS, *_SINGLE_DIGITS, "gpt-2"))
        raise InputError(f"the GGUF file's tokenizer splits text the way of '{how}'; known are {known}", remedy=_NAME_IT)
    model.pre_tokenizer = pre_tokenizers.Sequence(split)
    model.decoder = decoders.ByteLevel()
    return model


def _sentence_piece(fields: Values, tokens: list[str]) -> tokenizers.Tokenizer:
    """SentencePiece's byte-pair encoding: the pair whose piece has the best score is merged first."""
    ids = {token: i for i, token in enumerate(tokens)}
    scores = fields.items("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens) or not all(isinstance(score, float) for score in scores):
        raise InputError(f"the GGUF file's tokenizer is damaged: {len(scores)} scores for {len(tokens)} tokens, expected a number for each")
    merges = []
    for token, i in ids.items():
        cuts = range(1, len(token) if len(token) <= _LONGEST else 1)
        pairs = [(token[:k], token[k:]) for k in cuts if token[:k] in ids and token[k:] in ids]
        merges += [(-scores[i], ids[a], ids[b], (a, b)) for a, b in pairs]
    unknown = tokens[fields.whole("tokenizer.ggml.unknown_token_id", 0, least=0, largest=len(tokens) - 1)]
    model = _pairs(ids, [m[-1] for m in sorted(merges)], unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = [normalizers.Prepend("▁")] if fields.flag("tokenizer.ggml.add_space_prefix", True) else []
    model.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    model.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return model
