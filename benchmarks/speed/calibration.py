"""What calibration costs, as ratios: the compared variants take turns, on one thread or on one card.

    python -m benchmarks.speed.calibration smollm2  # calibration beside plain passes and the authors' procedure
    python -m benchmarks.speed.calibration block    # the same on blocks of LLaMA-2-7B's shape with random weights
    python -m benchmarks.speed.calibration fisher   # what the statistics of kind fisher cost, and what its sketch holds
    python -m benchmarks.speed.calibration sketches # three streaming sketches: energy their subspaces capture, time
    python -m benchmarks.speed.calibration subspaces   # leading subspaces beside the full SVD at LLaMA-2-7B's width
    python -m benchmarks.speed.calibration peers    # PEFT's data-driven starts beside ours: seconds and peak memory
    python -m benchmarks.speed.calibration slopes   # cost against samples, tokens, width and rank, and `tlora estimate`

Medians are given with the smallest and the largest of the repeats. Time is processor time, which is less disturbed by
what else runs on the machine than the clock is; on a card it is the clock, after all kernels. Two to ten minutes each
on an idle core; ``block`` takes 6 GB. ``benchmarks/gpu.sh`` fills the tables on a card.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

import tlora
from benchmarks.speed import calibration_peers, calibration_slopes
from benchmarks.speed.stopwatch import now
from tlora.calibration.covariance import CovarianceSum
from tlora.models.targets import target_modules
from tlora.models.weights import weight
from tlora.numerics.linalg import leading_right_singular_vectors
from tlora.numerics.sketching import sketching_matrix
from tlora.utils.devices import run_coroutines

Batch = dict[str, Tensor]


def main() -> None:
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    PARTS[arguments.part](arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda; sketches are of the CPU")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128, help="of each sample of the block")
    parser.add_argument("--width", type=int, default=4096, help="of the block, the subspaces and the widest slope")
    parser.add_argument("--layers", type=int, default=1, help="blocks")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for each of the peers")
    parser.add_argument("--measure", help="used by the parts that start processes of their own")
    return parser.parse_args()


def smollm2(arguments: argparse.Namespace) -> None:
    model, batches = _smollm2(arguments.samples, arguments.device)
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    print(f"SmolLM2-135M, {len(lengths)} samples of {min(lengths)} to {max(lengths)} tokens")
    _against_the_floor(model, batches, arguments.repeats)


def block(arguments: argparse.Namespace) -> None:
    ids = torch.randint(3, 512, (arguments.samples, arguments.tokens), device=arguments.device)
    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]
    with torch.device(arguments.device):
        model = transformers.LlamaForCausalLM(calibration_slopes.llama(arguments.width, arguments.layers)).eval()
    shape = f"{arguments.width} wide, {arguments.layers} deep"
    print(f"blocks of a Llama, {shape}, {arguments.samples} samples of {arguments.tokens} tokens, float32")
    _against_the_floor(model, batches, arguments.repeats)
    print("the same in bfloat16")
    half = model.to(torch.bfloat16)
    variants = {
        "plain forward and backward": lambda: _passes(half, batches),
        "calibration": lambda: _calibrate(half, batches),
        "calibration, sketched": lambda: _calibrate(half, batches, covariance="sketch"),
    }
    _take_turns(variants, arguments.repeats, arguments.device)


def fisher(arguments: argparse.Namespace) -> None:
    """Calibration with and without the statistics of kind ``fisher``, and what its directions hold of the gradient."""
    model, tokenizer = tlora.load_model("smollm2-135m", dtype="float32", device=arguments.device)
    task = tlora.load_task("notebooks/data/smart_home", tokenizer)
    ids = torch.tensor([token for row in task.train["input_ids"][:] for token in row], device=arguments.device)
    for tokens in (100, 512):
        samples = ids[: arguments.samples * tokens].view(-1, 4, tokens)
        batches = [{"input_ids": x, "attention_mask": torch.ones_like(x), "labels": x} for x in samples]
        print(f"SmolLM2-135M, {arguments.samples} samples of {tokens} tokens")
        variants = {
            "calibration": lambda batches=batches: _calibrate(model, batches),
            "with fisher=True": lambda batches=batches: _calibrate(model, batches, fisher=True),
        }
        _take_turns(variants, arguments.repeats, arguments.device)
    batches = task.calibration(32)
    sketched, whole = (tlora.calibrate(model, batches, fisher=True, sketch_size=size) for size in (256, 2048))
    kinds = {"fisher": sketched, "fisher, not sketched": whole, "wc": sketched}
    subspaces = {
        label: tlora.task_subspaces(model, each, max_rank=16, kind=label.split(",")[0]) for label, each in kinds.items()
    }
    captured = tlora.gradient_capture(model, batches, subspaces, ranks=(1, 4, 8, 16)).overall()
    print(captured[["kind", "rank", "captured", "best"]].to_string(index=False))


def sketches(arguments: argparse.Namespace) -> None:
    """A Nyström sketch, frequent directions and incremental SVD of the same stream, with as many rows each."""
    model, batches = _smollm2(arguments.samples * 2, "cpu")
    last = model.config.num_hidden_layers - 1
    names = [n for n, t in target_modules(model).items() if t.layer in (0, last // 2, last) and "k_proj" not in n]
    streams = _inputs(model, batches, names)
    size = 2 * arguments.rank
    makers = {"Nyström": _nystrom, "frequent directions": _frequent_directions, "incremental SVD": _incremental_svd}
    print(f"sketches of {size} rows, {len(names)} modules of SmolLM2-135M, {len(streams[names[0]])} samples")
    for label, make in makers.items():
        captured, seconds = [], 0.0
        for name in names:
            exact = _dense(streams[name])
            start = now("cpu")
            c = make(streams[name], size)
            seconds += now("cpu") - start
            w = weight(model.get_submodule(name))
            best = torch.linalg.svdvals((w @ exact).double()).square()[: arguments.rank].sum()
            rows = torch.linalg.svd(w @ c, full_matrices=False).Vh[: arguments.rank]
            captured.append(float((w @ exact @ rows.T).double().square().sum() / best))
        print(
            f"{label}: captured energy of W C at r = {arguments.rank}: {min(captured):.5f} at least, "
            f"{statistics.median(captured):.5f} in the median; {seconds:.1f} s"
        )


def subspaces(arguments: argparse.Namespace) -> None:
    """Singular values of C fall as k^-1, as those of measured covariances do; W is Gaussian."""
    d, rank = arguments.width, arguments.rank
    w = (torch.randn(d, d) / d**0.5).to(arguments.device)
    half = torch.randn(d, d) * torch.arange(1.0, d + 1) ** -0.5 / d**0.5
    c = (half @ half.T).to(arguments.device)
    for label, matrix in (("C falls as 1/k", c), ("C = I, flat", None)):
        m = w if matrix is None else w @ matrix
        start = now(arguments.device)
        best = torch.linalg.svd(m).S.double().square()[:rank].cumsum(0)
        full = now(arguments.device) - start
        start = now(arguments.device)
        steps = leading_right_singular_vectors(
            lambda x, c=matrix: w @ (x if c is None else c @ x),
            lambda y, c=matrix: w.T @ y if c is None else c @ (w.T @ y),
            d,
            rank,
            torch.Generator().manual_seed(0),
            warm=None if matrix is None else matrix.__matmul__,
        )
        found = run_coroutines([steps])[0]
        ours = now(arguments.device) - start
        captured = (m @ found.rows.T).double().square().sum(0).cumsum(0) / best
        print(
            f"{label}, {d} x {d}, rank {rank}: full SVD / ours = {full / ours:.1f} x ({full:.1f} s / {ours:.1f} s), "
            f"{found.iterations} iterations, captured energy {float(captured[-1]):.6f} ({float(captured.min()):.6f} at "
            "the worst rank)"
        )


def _smollm2(samples: int, device: str) -> tuple[Any, list[Batch]]:
    model, tokenizer = tlora.load_model("smollm2-135m", dtype="float32", device=device)
    batches = tlora.load_task("family_relationships", tokenizer).calibration(samples)
    return model, [{name: value.to(device) for name, value in batch.items()} for batch in batches]


def _against_the_floor(model: Any, batches: list[Batch], repeats: int) -> None:
    variants = {
        "plain forward and backward": lambda: _passes(model, batches),
        "calibration": lambda: _calibrate(model, batches),
        "calibration, sketched": lambda: _calibrate(model, batches, covariance="sketch"),
        "the authors' procedure": lambda: _authors(model, batches),
    }
    _take_turns(variants, repeats, model.device.type)


def _take_turns(variants: Mapping[str, Callable[[], object]], repeats: int, device: str) -> None:
    seconds: dict[str, list[float]] = {label: [] for label in variants}
    for turn in range(repeats + 1):
        for label, function in variants.items():
            start = now(device)
            function()
            if turn:  # the first warms up
                seconds[label].append(now(device) - start)
    floor = next(iter(seconds.values()))
    for label, times in seconds.items():
        ratios = [one / other for one, other in zip(times, floor, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"  {label}: {statistics.median(ratios):.2f} x ({spread}); {statistics.median(times):.1f} s", flush=True)


def _calibrate(model: Any, batches: list[Batch], **options: Any) -> None:
    tlora.calibrate(model, batches, progress=False, **options)


def _passes(model: Any, batches: list[Batch]) -> None:
    model.requires_grad_(True)
    for batch in batches:
        model(**batch).loss.backward()
        model.zero_grad()
    model.requires_grad_(False)


def _authors(model: Any, batches: list[Batch]) -> None:
    """One sample at a time: a forward pass for the covariances of all modules, and one with backward for the scores."""
    targets = list(target_modules(model))
    covariances: dict[str, Any] = dict.fromkeys(targets, 0)
    scores: dict[str, Any] = dict.fromkeys(targets, 0)

    def observe(name: str) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            x = inputs[0].detach().float().flatten(0, -2)
            x = x - x.mean(0)
            covariances[name] = covariances[name] + x.T @ x

        return hook

    for batch in batches:
        for n in range(len(batch["input_ids"])):
            length = int(batch["attention_mask"][n].sum())
            sample = {key: value[n : n + 1, :length] for key, value in batch.items()}
            handles = [model.get_submodule(name).register_forward_hook(observe(name)) for name in targets]
            with torch.no_grad():
                model(**sample)
            for handle in handles:
                handle.remove()
            model.requires_grad_(True)
            model(**sample).loss.backward()
            for name in targets:
                w = model.get_submodule(name).weight
                scores[name] = scores[name] + (w.detach() * w.grad).abs().mean()
            model.zero_grad()
            model.requires_grad_(False)


def _inputs(model: Any, batches: list[Batch], names: list[str]) -> dict[str, list[Tensor]]:
    """Real tokens of each sample as the modules read them, centered."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    for batch in batches:
        mask = batch["attention_mask"].bool()

        def keep(name: str, mask: Tensor = mask) -> Callable[..., None]:
            return lambda module, inputs, output: seen[name].extend(
                x[m] - x[m].mean(0) for x, m in zip(inputs[0], mask, strict=True)
            )

        handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
        with torch.no_grad():
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        for handle in handles:
            handle.remove()
    return seen


def _dense(stream: list[Tensor]) -> Tensor:
    total = CovarianceSum(stream[0].shape[1])
    total.update(stream)
    return total.finish(1).dense()


def _nystrom(stream: list[Tensor], size: int) -> Tensor:
    omega = sketching_matrix(stream[0].shape[1], size)
    total = CovarianceSum(stream[0].shape[1], omega=omega)
    for sample in stream:
        total.update([sample])
    return total.finish(1, omega).dense()


def _frequent_directions(stream: list[Tensor], size: int) -> Tensor:
    """Liberty (2013), in the fast variant of Ghashami et al. (2016): shrink by the middle of 2 x size rows."""
    return _streamed(stream, size, shrink=True)


def _incremental_svd(stream: list[Tensor], size: int) -> Tensor:
    return _streamed(stream, size, shrink=False)


def _streamed(stream: list[Tensor], size: int, shrink: bool) -> Tensor:
    kept = torch.zeros(0, stream[0].shape[1])
    for sample in stream:
        kept = torch.cat([kept, sample])
        if len(kept) >= 2 * size:
            kept = _compressed(kept, size, shrink)
    kept = _compressed(kept, size, shrink)
    return kept.T @ kept


def _compressed(rows: Tensor, size: int, shrink: bool) -> Tensor:
    values, vectors = torch.linalg.eigh((rows @ rows.T).double())
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    keep = min(size, len(rows))
    taken = values[keep] if shrink and len(rows) > keep else values.new_zeros(())
    scale = ((values[:keep] - taken).clamp(min=0) / values[:keep].clamp(min=1e-30)).sqrt()
    return (vectors[:, :keep] * scale).T.float() @ rows


PARTS = {
    "fisher": fisher,
    "smollm2": smollm2,
    "block": block,
    "sketches": sketches,
    "subspaces": subspaces,
    "peers": calibration_peers.peers,
    "slopes": calibration_slopes.slopes,
}


if __name__ == "__main__":
    main()
