"""A tiny language model in an export folder, compiled whole; and a tokenizer for it, one token for each character."""

from __future__ import annotations

from pathlib import Path

import tokenizers
import torch
from llm import tiny

import tosaic
from tosaic.llm.checkpoint import open_checkpoint
from tosaic.llm.manifest import CacheRecord, Manifest, ProgramRecord, write_manifest
from tosaic.llm.tokenizer import Tokenizer, save_tokenizer
from tosaic.tosa.link import Part, link

P, S = 8, 32
SPECIAL = ("<pad>", "<s>", "</s>")
TEMPLATE = "{% for m in messages %}{{ m.role[0] + ':' + m.content }}{% endfor %}{% if add_generation_prompt %}a:{% endif %}"


def tokenizer() -> Tokenizer:
    """Ids of the tiny models: three special tokens, then characters from the blank on."""
    words = (*SPECIAL, *(chr(32 + i) for i in range(tiny.VOCABULARY - len(SPECIAL))))
    model = tokenizers.Tokenizer(tokenizers.models.BPE({word: i for i, word in enumerate(words)}, []))
    model.decoder = tokenizers.decoders.Fuse()
    model.add_special_tokens([tokenizers.AddedToken(word, normalized=False) for word in SPECIAL])
    return Tokenizer(model, frozenset({2}), 1, TEMPLATE, {"bos_token": "<s>", "eos_token": "</s>"})


def export(checkpoint: Path, folder: Path, full_logits: bool = False) -> Path:
    """Write the export folder of a checkpoint, in float."""
    opened, programs, layers = open_checkpoint(checkpoint), {}, range(tiny.LAYERS)
    caches = [f"{kind}_{layer}" for layer in layers for kind in ("keys", "values")]
    folder.mkdir(parents=True)
    for name, tokens in (("prefill", P), ("decode", 1)):
        decoder = opened.decoder(tokens, S, one=not full_logits)
        made = tosaic.compile(decoder, (torch.zeros(1, tokens, dtype=torch.int64), *torch.zeros(2, 1).long(), *decoder.empty_caches()))
        inputs = dict(zip((v.name for v in made.graph.inputs), ("ids", "position", "last", *caches), strict=True))
        outputs = dict(zip((v.name for v in made.graph.outputs), ("logits", *(f"{c}_out" for c in caches)), strict=True))
        graph = link(name, [Part(made.graph, "", inputs, outputs)], list(outputs.values()))
        ports = {
            kind: [port.model_copy(update={"name": names[port.name]}) for port in getattr(made.passport, kind)]
            for kind, names in (("inputs", inputs), ("outputs", outputs))
        }
        artifact = tosaic.Artifact(graph, made.passport.model_copy(update=ports))
        path = artifact.save(folder / f"{name}.vgf")
        programs[name] = ProgramRecord(file=path.name, sha256=artifact.passport.sha256, tokens=tokens)
    save_tokenizer(tokenizer(), folder)
    records = [CacheRecord(input=c, output=f"{c}_out", dtype="f32", shape=[tiny.KV_HEADS, S, tiny.HIDDEN // tiny.HEADS]) for c in caches]
    manifest = Manifest(
        name="tiny",
        architecture="llama",
        vocabulary=tiny.VOCABULARY,
        max_seq_length=S,
        full_logits=full_logits,
        **programs,
        caches=records,
        tokenizer="tokenizer.json",
        end_tokens=[2],
        checkpoint=str(checkpoint),
    )
    write_manifest(manifest, folder)
    return folder
