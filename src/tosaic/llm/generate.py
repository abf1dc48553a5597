"""Text from an exported language model: sampling, streaming, chat."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tosaic.errors import InputError
from tosaic.llm.session import Session
from tosaic.llm.tokenizer import Tokenizer, open_tokenizer

_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoding gives for a part of a character


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen from its logits. Filters apply in the order of the fields.

    Attributes:
        temperature: logits are divided by it; 0: the most likely token, always.
        top_k: only so many of the most likely tokens; None: all.
        top_p: only the most likely tokens that together have this probability (Holtzman et al. 2020, arXiv:1904.09751).
        seed: of the generator; None: another one each time.

    Raises:
        InputError: a value that means nothing.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise InputError(f"temperature is {self.temperature}, expected 0 or more")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top-k is {self.top_k}, expected at least 1")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top-p is {self.top_p}, expected more than 0 and at most 1")

    def generator(self) -> np.random.Generator:
        """A generator that begins at the seed."""
        return np.random.default_rng(self.seed)

    def choose(self, logits: np.ndarray, generator: np.random.Generator) -> int:
        """A token id from logits, float32 [V]."""
        if self.temperature == 0 or self.top_k == 1:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[: self.top_k]
        # the greatest logit is 0 before the division, so that no temperature is too low for it
        weights = np.exp((logits[order].astype(np.float64) - logits[order[0]]) / self.temperature)
        shares = np.cumsum(weights) / weights.sum()
        kept = int(np.searchsorted(shares, self.top_p)) + 1
        return int(generator.choice(order[:kept], p=weights[:kept] / weights[:kept].sum()))


class Stream:
    """Token ids to text as it comes: a character that several tokens make is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._ids = tokenizer, list[int]()
        self._shown = 0  # ids whose text is out
        self._before = 0  # from here on ids are decoded, some of which are out: what a token's text is depends on the one before

    def add(self, token: int) -> str:
        """The text that this token completes, maybe none."""
        self._ids.append(token)
        text = self._text()
        if text.endswith(_BROKEN):
            return ""
        self._before, self._shown = self._shown, len(self._ids)
        return text

    def end(self) -> str:
        """What was held back."""
        return self._text() if self._shown < len(self._ids) else ""

    def _text(self) -> str:
        out = self._tokenizer.decode(self._ids[self._before : self._shown])
        return self._tokenizer.decode(self._ids[self._before :])[len(out) :]


@dataclass
class Generation:
    """What was generated, and how fast.

    Attributes:
        ids: of the generated tokens, without the one that ended the text.
        prompt_tokens: how many the prompt has.
        stopped: "end": the model ended its text; "length": as many tokens as were asked for; "cache": no more positions.
        prefill_seconds, decode_seconds: of the prompt, and of the steps behind it (the first token comes with the prompt).
    """

    text: str = ""
    ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    stopped: str = "length"
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    steps: int = 0

    @property
    def prefill_speed(self) -> float:
        """Tokens of the prompt per second."""
        return self.prompt_tokens / self.prefill_seconds

    @property
    def decode_speed(self) -> float:
        """Tokens per second behind the prompt; 0 where no step was made."""
        return self.steps / self.decode_seconds if self.steps else 0.0


def generate(
    model: Session | Path | str,
    prompt: str,
    *,
    raw: bool = False,
    system: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = Sampling(),
    on: str = "simulator",
    write: Callable[[str], object] | None = None,
) -> Generation:
    """Continue a prompt, or answer it.

    Args:
        model: an export folder, or a session, which begins anew.
        prompt: what the user says, by the chat template; or with `raw` the beginning of the text itself.
        raw: no chat template.
        system: a message in front of the user's.
        max_new_tokens: None: until the model ends its text or the caches are full.
        on: executor, where `model` is a folder.
        write: called with each piece of text as it comes.

    Raises:
        InputError: no export, no tokenizer in it, no chat template, a prompt that does not fit into the caches.
        ExecuteError: the executor is missing or failed.
    """
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"max-new-tokens is {max_new_tokens}, expected at least 1")
    if raw and system is not None:
        raise InputError("a raw prompt has no system message", remedy="leave one of them out")
    session = model if isinstance(model, Session) else Session(model, on)
    tokenizer = session_tokenizer(session)
    ids = _encoded(tokenizer, prompt, raw, system)
    session.reset()
    made, stream, generator = Generation(prompt_tokens=len(ids)), Stream(tokenizer), sampling.generator()
    ends = tokenizer.end | set(session.manifest.end_tokens)

    def show(piece: str) -> None:
        made.text += piece
        if write is not None and piece:
            write(piece)

    start = time.perf_counter()
    logits = session.prefill(ids)
    made.prefill_seconds = time.perf_counter() - start
    while True:
        token = sampling.choose(logits, generator)
        if token in ends:
            made.stopped = "end"
            break
        made.ids.append(token)
        show(stream.add(token))
        if len(made.ids) == max_new_tokens or not session.left:
            made.stopped = "cache" if len(made.ids) != max_new_tokens else "length"
            break
        start = time.perf_counter()
        logits = session.step(token)
        made.decode_seconds += time.perf_counter() - start
        made.steps += 1
    show(stream.end())
    return made


def session_tokenizer(session: Session) -> Tokenizer:
    """The tokenizer in a session's folder.

    Raises:
        InputError: the model was exported without one.
    """
    if session.manifest.tokenizer is None:
        raise InputError(f"{session.folder} has no tokenizer", remedy="export with --tokenizer")
    return open_tokenizer(session.folder / session.manifest.tokenizer)


def _encoded(tokenizer: Tokenizer, prompt: str, raw: bool, system: str | None) -> Sequence[int]:
    if raw:
        return tokenizer.encode(prompt)
    messages = [{"role": "system", "content": system}] if system is not None else []
    # the template has the token that begins a text itself, where there is one
    return tokenizer.encode(tokenizer.chat([*messages, {"role": "user", "content": prompt}]), start=False)
