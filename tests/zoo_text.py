"""English text for the language models of `zoo_models.py`, and the tokenizer of MiniLM, in plain Python."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

SENTENCES = (
    "The train to the coast leaves at seven, and if the fog holds it will be late again.",
    "She opened the window, looked at the sea for a long while, and said nothing at all.",
    "A compiler translates a program into instructions that a machine can carry out.",
    "Prices of copper rose by four percent in March after two mines in Chile had closed.",
    "Mix the flour with cold butter, add a pinch of salt, and let the dough rest for an hour.",
    "Our flight was cancelled, so we slept at the airport and ate dry sandwiches from a machine.",
    "The committee rejected the proposal, although nobody could name a better one.",
    "Neurons that fire together wire together, or so the old saying goes.",
    "Can you tell me how to reset the password of my account? The link in your mail is broken.",
    "In 1969 two astronauts walked on the moon while a third circled it alone.",
    "The patient was given ten milligrams of the drug twice a day for six weeks.",
    "Tomatoes need sun, water and patience; slugs need only the first dark night.",
    "He scored twice in the second half, but the match was lost by then.",
    "Energy is conserved: what the brake takes from the wheel, it gives to the air as heat.",
    "The contract ends on 31 December unless either party objects in writing.",
    "Her third novel is slower than the others, and it is by far the best.",
    "Turn left behind the church, follow the river for two miles, and ask at the mill.",
    "The camera has a wide lens, a bright screen, and a battery that never lasts the day.",
    "Most of the city was rebuilt after the fire, with wider streets and houses of stone.",
    "Large language models predict the next token; everything else is built upon that.",
    "The violin was made in Cremona around 1720 and has been repaired at least five times.",
    "If interest rates fall, bonds that were issued earlier become more valuable.",
    "My grandmother kept bees, and she talked to them as if they were children.",
    "Antibiotics do not help against viruses, however often they are prescribed.",
    "The bridge sways in strong wind, which frightens visitors and amuses the engineers.",
    "Whales sing for hours, and their songs change slowly from one year to the next.",
    "We tested the new tyres on ice, on gravel, and on a road full of holes.",
    "The minister denied the report, then resigned on Friday morning.",
    "To sort a list of names, compare neighbours and swap them until nothing moves.",
    "It rained for nine days; on the tenth the children ran into the street and cheered.",
    "A cheap umbrella breaks in the first storm, an expensive one is left in a taxi.",
    "Light needs eight minutes from the sun to us, and four hours to reach Neptune.",
)


def passages(count: int, longer: bool = False) -> list[str]:
    """`count` texts of two to seven sentences (ten if `longer`); the first two thirds of them share no sentence with the rest."""
    split, texts = len(SENTENCES) * 5 // 8, []
    for index in range(count):
        known = index < count * 2 // 3
        pool = SENTENCES[:split] if known else SENTENCES[split:]
        length = 10 if longer else 2 + (index * 5) % 6
        texts.append(" ".join(pool[(index * 3 + k) % len(pool)] for k in range(length)))
    return texts


def word_pieces(text: str, vocabulary: dict[str, int]) -> list[int]:
    """Token ids of BERT's uncased tokenizer for ASCII text: words and punctuation, then the longest known piece first."""
    ids = []
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            end = next(e for e in range(len(word), start, -1) if prefix + word[start:e] in vocabulary)
            ids.append(vocabulary[prefix + word[start:end]])
            start = end
    return ids


def bert_inputs(vocabulary_file: Path, count: int, length: int, full: bool = False) -> list[tuple[Tensor, Tensor]]:
    """`count` pairs of token ids and attention mask, both int64 [1,length]; `full` fills every place with text."""
    vocabulary = {piece: index for index, piece in enumerate(vocabulary_file.read_text().splitlines())}
    start, end, pad = (vocabulary[piece] for piece in ("[CLS]", "[SEP]", "[PAD]"))
    samples = []
    for text in passages(count, longer=full):
        ids = [start, *word_pieces(text, vocabulary)[: length - 2], end]
        blank = length - len(ids)
        samples.append((torch.tensor([ids + [pad] * blank]), torch.tensor([[1] * len(ids) + [0] * blank])))
    return samples
