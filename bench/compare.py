"""Times training steps and encodes of Python libraries beside ours, in turn, and writes a table. Run by compare.sh.

One process holds PyTorch and the peers, another ours (sae_bench_compare); they take turns, one run each, round after round. Figures are
medians; with several threads by the clock, with one thread by processor time, which hardly sees what else the machine does.
"""
import argparse
import json
import statistics
import subprocess
import sys
import time

import torch

B, D, F, K = 1024, 576, 4608, 32
ROWS = (1, 16, 256, 4096)
BATCHES = 8


def make_rows(n):
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(64, D, generator=generator)
    weights = (torch.randn(n, 64, generator=generator) - 1).relu()
    return weights @ basis + 0.1 * torch.randn(n, D, generator=generator)


class Batches:
    """The same batches again and again, as a peer's data loader would give them."""

    def __init__(self, rows):
        self.batches = rows[: BATCHES * B].split(B)
        self.at = 0

    def __next__(self):
        self.at += 1
        return self.batches[self.at % BATCHES]


def saelens(name, batches):
    import sae_lens
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    size = {"d_in": D, "d_sae": F}
    config = {
        "topk": lambda: sae_lens.TopKTrainingSAEConfig(k=K, **size),
        "batchtopk": lambda: sae_lens.BatchTopKTrainingSAEConfig(k=K, **size),
        "matryoshka": lambda: sae_lens.MatryoshkaBatchTopKTrainingSAEConfig(
            k=K, matryoshka_widths=[F // 32, F // 8, F // 2, F], **size),
        "relu": lambda: sae_lens.StandardTrainingSAEConfig(**size),
        "jumprelu": lambda: sae_lens.JumpReLUTrainingSAEConfig(**size),
        "gated": lambda: sae_lens.GatedTrainingSAEConfig(**size),
    }[name]()
    sae = sae_lens.TrainingSAE.from_dict({"architecture": config.architecture(), **config.to_dict()})
    training = SAETrainerConfig(total_training_samples=10**9, train_batch_size_samples=B, lr_end=3e-4)
    trainer = SAETrainer(cfg=training, sae=sae, data_provider=batches)

    def step():
        trainer.step(next(batches))
        trainer.n_training_steps += 1

    return step


def dictionary_learning(name, batches):
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.gdm import GatedSAETrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    common = {"steps": 10**6, "activation_dim": D, "dict_size": F, "layer": 0, "lm_name": "", "device": "cpu"}
    trainer = {
        "topk": lambda: TopKTrainer(k=K, **common),
        "batchtopk": lambda: BatchTopKTrainer(k=K, **common),
        "matryoshka": lambda: MatryoshkaBatchTopKTrainer(
            k=K, group_fractions=[1 / 32, 1 / 16, 1 / 8, 1 / 4, 17 / 32], **common),
        "relu": lambda: StandardTrainer(**common),
        "jumprelu": lambda: JumpReluTrainer(**common),
        "gated": lambda: GatedSAETrainer(**common),
    }[name]()
    at = [0]

    def step():
        trainer.update(at[0], next(batches))
        at[0] += 1

    return step


class Plain(torch.nn.Module):
    """TopK as one writes it by hand."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        start = torch.nn.functional.normalize(torch.randn(F, D, generator=generator), dim=1)
        self.W_enc, self.W_dec = (torch.nn.Parameter(start.clone()) for _ in range(2))
        self.b_enc, self.b_dec = torch.nn.Parameter(torch.zeros(F)), torch.nn.Parameter(torch.zeros(D))

    def pre_activations(self, x):
        return torch.nn.functional.linear(x - self.b_dec, self.W_enc, self.b_enc)


def by_hand(name, batches):
    model = Plain()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=name == "embedding_bag")

    def step():
        x = next(batches)
        values, latents = model.pre_activations(x).relu().topk(K, dim=1, sorted=False)
        if name == "dense":
            codes = torch.zeros(B, F).scatter(1, latents, values)
            out = codes @ model.W_dec
        else:
            out = torch.nn.functional.embedding_bag(latents, model.W_dec, per_sample_weights=values, mode="sum")
        loss = (out + model.b_dec - x).square().sum(1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.W_dec.div_(model.W_dec.norm(dim=1, keepdim=True))

    return step


def encoder(name, x):
    model = Plain()

    @torch.no_grad()
    def by_torch():
        model.pre_activations(x).relu().topk(K, dim=1)

    @torch.no_grad()
    def product():
        torch.nn.functional.linear(x, model.W_enc)

    if name == "topk":
        return by_torch
    if name == "product":
        return product
    if name == "saelens":
        import sae_lens
        from sae_lens import TopKSAE, TopKSAEConfig

        sae = TopKSAE(TopKSAEConfig(d_in=D, d_sae=F, k=K))
        sae.load_state_dict({**sae.state_dict(), "W_enc": model.W_enc.detach().T.contiguous()})
    else:
        from dictionary_learning.trainers.top_k import AutoEncoderTopK

        sae = AutoEncoderTopK(D, F, K)
    return torch.no_grad()(lambda: sae.encode(x))


class Ours:
    """sae_bench_compare, which runs a line at a time."""

    def __init__(self, program, threads):
        self.process = subprocess.Popen(
            [program, f"--threads={threads}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"compare.py: sae_bench_compare ended at: {line}")
        return json.loads(answer)


def run_here(work):
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


ARCHITECTURES = ("topk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated")
# What of ours runs beside an architecture: the peers' own recipes, ours, and where a threshold decides the state of a trained model.
OURS_MORE = {"relu": ("l0_64/relu", "l0_256/relu", "l0_all/relu"), "jumprelu": ("l0_64/jumprelu", "l0_256/jumprelu"),
             "gated": ("l0_64/gated", "l0_256/gated"), "topk": ("topk",), "batchtopk": ("batchtopk",), "matryoshka": ("matryoshka_5",)}


def contestants(x):
    """name -> what runs: a line for ours, a function for the others."""
    all = {"ours unit": "unit", "torch product": encoder("product", x[:B])}
    for name in ARCHITECTURES:
        all[f"SAELens {name}"] = saelens(name, Batches(x))
        all[f"dictionary_learning {name}"] = dictionary_learning(name, Batches(x))
        for training in (f"saelens/{name}", f"dictionary_learning/{name}", *OURS_MORE[name]):
            all[f"ours {training}"] = f"step {training}"
    for name in ("dense", "embedding_bag"):
        all[f"torch {name}"] = by_hand(name, Batches(x))
    for n in ROWS:
        all[f"ours product {n}"] = f"product {n}"
        all[f"ours encode {n}"] = f"encode {n}"
        for name in ("product", "topk", "saelens", "dictionary_learning"):
            all[f"{name} encode {n}"] = encoder(name, x[:n])
    return all


def measure(program, threads, seconds, all):
    """Medians of {wall, cpu} in milliseconds, by name, and the number of rounds."""
    torch.set_num_threads(threads)
    ours = Ours(program, threads)
    samples = {name: [] for name in all}
    began, rounds = time.monotonic(), -2
    while rounds < 5 or (time.monotonic() - began < seconds and rounds < 51):
        for name, work in all.items():
            times = 1 if rounds < 0 or not name.endswith(" 1") else 20
            for _ in range(times):
                took = ours.run(work) if isinstance(work, str) else run_here(work)
                if rounds >= 0:
                    samples[name].append(took)
        rounds += 1
    ours.process.stdin.close()
    ours.process.wait()
    return {name: {key: 1e3 * statistics.median(one[key] for one in taken) for key in ("wall", "cpu")}
            for name, taken in samples.items()}, rounds


def number(value):
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def tables(ms, unit):
    """Two tables of milliseconds and ratios."""
    def cell(name):
        return f"{number(ms[name])} ({number(ms[name] / unit)})"

    def row(title, peer, ours):
        cells = [title, cell(peer) if peer else "", ours, cell(f"ours {ours}"),
                 f"{ms[peer] / ms[f'ours {ours}']:.1f}" if peer else ""]
        return "| " + " | ".join(cells) + " |"

    lines = ["| a step | ms (units) | ours | ms (units) | ratio |", "|---|---|---|---|---|"]
    for name in ARCHITECTURES:
        for library, recipe in (("SAELens", "saelens"), ("dictionary_learning", "dictionary_learning")):
            lines.append(row(f"{library} {name}", f"{library} {name}", f"{recipe}/{name}"))
            if name in ("relu", "jumprelu", "gated"):
                lines.extend(row("", f"{library} {name}", more) for more in OURS_MORE[name][:2])
    for name in ("topk", "batchtopk", "matryoshka_5"):
        lines.append(row("", None, name))
    lines.append(row("PyTorch by hand, TopK, dense", "torch dense", "topk"))
    lines.append(row("PyTorch by hand, TopK, embedding_bag, fused Adam", "torch embedding_bag", "topk"))
    lines.append(row("PyTorch by hand, dense", "torch dense", "l0_all/relu"))
    lines += ["", "| encode, TopK | " + " | ".join(f"{n} rows" for n in ROWS) + " |", "|---|" + "---|" * len(ROWS)]
    for title, name in (("OpenBLAS, the product alone", "ours product"), ("PyTorch, the product alone", "product encode"),
                        ("PyTorch, product, relu, topk", "topk encode"), ("SAELens", "saelens encode"),
                        ("dictionary_learning", "dictionary_learning encode"), ("ours", "ours encode")):
        lines.append(f"| {title} | " + " | ".join(number(ms[f"{name} {n}"]) for n in ROWS) + " |")
    lines.append("| ours in units | " + " | ".join(
        number(ms[f"ours encode {n}"] / ms[f"ours product {n}"]) for n in ROWS) + " |")
    lines.append("| PyTorch's product, relu, topk / ours | " + " | ".join(
        number(ms[f"topk encode {n}"] / ms[f"ours encode {n}"]) for n in ROWS) + " |")
    return lines


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", required=True)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--about", default="")
    parser.add_argument("--out", required=True)
    options = parser.parse_args()
    import importlib.metadata as metadata

    x = make_rows(max(BATCHES * B, ROWS[-1]))
    lines = [options.about, "B 1024, D 576, F 4608, k 32; " + ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "sae-lens", "dictionary-learning")) + ".", ""]
    for threads, key, what in ((options.threads, "wall", "by the clock"), (1, "cpu", "in processor time")):
        medians, rounds = measure(options.program, threads, options.seconds, contestants(x))
        ms = {name: took[key] for name, took in medians.items()}
        unit = ms["ours unit"]
        lines += [f"### {threads} thread{'s' if threads > 1 else ''}, {what}", "",
                  f"Medians of {rounds} rounds; unit (OpenBLAS) {number(unit)} ms, PyTorch's product {number(ms['torch product'])} ms.", "",
                  *tables(ms, unit), ""]
        print("\n".join(lines[-len(tables(ms, unit)) - 5:]), flush=True)
    with open(options.out, "w") as file:
        file.write("\n".join(lines))


main()
