"""Train a small DA-LIF network on real handwritten digits and save it, ready to be exported.

    python examples/train_digits.py                         # writes examples/models/digits.pt
    dalif-export --to onnx examples/models/digits.pt

Needs scikit-learn for the images: pip install "dalif_deploy[examples]".
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from digits_data import Codes, Labels, load_split
from digits_net import DigitsNet
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from dalif_deploy import DALIF, Encoding, reset, save

TIMESTEPS = 4
ENCODING = Encoding(kind="uint8", scale=1 / 16)  # pixel codes 0..16 become 0..1
BATCH = 64
DEFAULT_OUTPUT = Path(__file__).parent / "models" / "digits.pt"


def to_input(codes: Codes) -> Tensor:
    """What the network takes, float32 [N, 1, 8, 8], from pixel codes."""
    return torch.from_numpy(ENCODING.module_input(codes, feature_axis=1))


def predict(net: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, 10]: the same images at every timestep (direct encoding), the output averaged over time."""
    reset(net)
    return torch.stack([net(images) for _ in range(TIMESTEPS)]).mean(dim=0)


def train(net: nn.Module, codes: Codes, labels: Labels, *, epochs: int) -> Iterator[float]:
    """Train `net` in place; after every epoch yields its mean loss.

    SGD with momentum 0.9 and an initial rate of 0.1, as in the paper; the rate falls to 0 along a cosine.
    Alpha and beta learn at a tenth of it. (At the full rate beta falls below 0 on this task: a potential
    that changes sign from step to step, which some simulators cannot hold.)
    """
    images, targets = to_input(codes), torch.from_numpy(labels)
    decays = [p for module in net.modules() if isinstance(module, DALIF) for p in module.parameters()]
    weights = [p for p in net.parameters() if not any(p is decay for decay in decays)]
    optimizer = torch.optim.SGD([{"params": weights}, {"params": decays, "lr": 0.01}], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        net.train()
        losses = []
        for batch in torch.randperm(len(images)).split(BATCH):
            loss = nn.functional.cross_entropy(predict(net, images[batch]), targets[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        yield float(np.mean(losses))


@torch.no_grad()
def accuracy(net: nn.Module, codes: Codes, labels: Labels) -> float:
    """The share of images that `net`, in evaluation, classifies rightly."""
    net.eval()
    return float((predict(net, to_input(codes)).argmax(dim=1).numpy() == labels).mean())


@torch.no_grad()
def firing_rates(net: nn.Module, codes: Codes) -> dict[str, float]:
    """By neuron layer, the share of neuron-steps that fire."""
    spikes: dict[str, list[Tensor]] = {}
    hooks = []
    for name, layer in net.named_modules():
        if isinstance(layer, DALIF):
            record = spikes.setdefault(name, [])
            hooks.append(layer.register_forward_hook(lambda _module, _inputs, out, record=record: record.append(out)))
    net.eval()
    predict(net, to_input(codes))
    for hook in hooks:
        hook.remove()
    return {name: torch.stack(steps).mean().item() for name, steps in spikes.items()}


@click.command()
@click.option("--epochs", type=click.IntRange(min=1), default=40, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output", type=click.Path(dir_okay=False, path_type=Path), default=DEFAULT_OUTPUT, show_default="models/digits.pt"
)
def main(epochs: int, seed: int, output: Path) -> None:
    """Train on 1,437 digits, test on the 360 held out, and save the last epoch's network."""
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    x_train, y_train, x_test, y_test = load_split()
    net = DigitsNet()

    console = Console(stderr=True)
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=epochs)
        for loss in train(net, x_train, y_train, epochs=epochs):
            progress.update(task, advance=1, description=f"loss {loss:.4f}")

    click.echo(f"accuracy on the 360 held-out digits: {accuracy(net, x_test, y_test):.2%}")
    for name, rate in firing_rates(net, x_test).items():
        layer = net.get_submodule(name)
        click.echo(f"{name}: fires on {rate:.1%} of neuron-steps, alpha {layer.alpha:.4f}, beta {layer.beta:.4f}")

    notes = save(
        net,
        output,
        example_input=to_input(x_train[:2]),
        timesteps=TIMESTEPS,
        encoding=ENCODING,
        class_names=tuple("0123456789"),
        samples=x_test,
    )
    for note in notes:  # what was inferred of the network: its layout, its readout
        click.echo(note, err=True)
    click.echo(f"saved {output} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
