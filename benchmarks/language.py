"""Language models: perplexity of export folders of SmolLM2-135M-Instruct beside the float model, and tokens per second.

    python benchmarks/language.py FOLDER ... [--chunks 16] [--novel sensesensibility]

The folders are those that `tosaic llm export` wrote. Scores are of whole chunks of 512 tokens, of a novel that was not calibrated on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tosaic import zoo
from tosaic.llm.generate import generate
from tosaic.llm.score import perplexity
from tosaic.llm.session import Session

QUESTION = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--novel", default="sensesensibility", choices=sorted(zoo.NOVELS))
    options = parser.parse_args()
    text = zoo.novel(options.novel)
    print("| export | perplexity | to float | KL | top-1 | tokens | prefill, tokens/s | decode, tokens/s | answer |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for folder in options.folders:
        scores = perplexity(folder, text, checkpoint=zoo.smollm2(), limit=options.chunks)
        base, made = scores["float"], scores["artifacts"]
        session = Session(folder)
        generate(session, QUESTION, max_new_tokens=2)  # compiles kernels
        said = generate(session, QUESTION, max_new_tokens=48)
        cells = (
            f"{made.perplexity:.2f} ± {made.standard_error:.2f} (float {base.perplexity:.2f})",
            f"{made.change:+.2%} ± {made.change_error:.2%}",
            f"{made.kl:.4f}",
            f"{made.top1:.1%}",
            f"{made.tokens}",
            f"{said.prefill_speed:.1f}",
            f"{said.decode_speed:.1f}",
            said.text.strip().replace("\n", " ")[:80],
        )
        print(f"| {folder.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
