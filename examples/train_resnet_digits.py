"""Train a narrow ResNet-20 on real handwritten digits at 32 x 32 pixels and save it, ready to be exported.

    python examples/train_resnet_digits.py                  # writes examples/models/resnet20_digits.pt
    dalif-export --to onnx examples/models/resnet20_digits.pt

The network is the paper's ResNet-20 with stages of 16, 32 and 64 channels: 19 neuron layers, real-valued and spiking
shortcuts. Data, split and encoding are those of train_digits.py. A few minutes on one core.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from digits_data import Codes, Labels, load_split
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from train_digits import BATCH, ENCODING, TIMESTEPS, accuracy, predict, to_input

from dalif_deploy import DALIF, save
from dalif_deploy.networks import calibrate, firing_rates, resnet20

WIDTHS = (16, 32, 64)
SIZE = 32
CALIBRATED_ON = 256  # training images from which the BatchNorm statistics of the second phase are measured
BUSY = 0.3  # layers that fire on more than this share of neuron-steps are held back
STORED = 8  # samples in the saved file, with the spikes of all 90,112 neurons
DEFAULT_OUTPUT = Path(__file__).parent / "models" / "resnet20_digits.pt"


def enlarged(codes: Codes) -> Codes:
    """Pixel codes [N, 1, 8, 8] at 32 x 32, bilinear, rounded to whole codes again.

    Every product is a multiple of 1/64 below 17, exact in float32: the codes are the same on every machine.
    """
    images = torch.from_numpy(codes.astype(np.float32))
    larger = nn.functional.interpolate(images, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    return larger.round().numpy().astype(np.uint8)


def build(codes: Codes) -> nn.Module:
    """The untrained network, calibrated on `codes`: images [B, 1, 32, 32] with values 0..1 in, logits [B, 10] out.

    As it is initialised, the last BatchNorm of each block hides what comes before; most layers are then silent, no
    potential is near the threshold, and the surrogate's gradient is 0 everywhere: it would learn nothing.
    """
    net = resnet20(num_classes=10, in_channels=1, timesteps=TIMESTEPS, widths=WIDTHS)
    calibrate(net, to_input(codes), TIMESTEPS)
    return net


def train(net: nn.Module, codes: Codes, labels: Labels, *, epochs: int, settling: int) -> Iterator[float]:
    """Train `net` in place, in two phases; after every epoch yields its mean loss.

    For `epochs` epochs BatchNorm normalises each timestep by itself, as usual. The running statistics that this
    leaves suit no timestep well, and over 19 layers of spikes that costs much accuracy. So the statistics are then
    measured once over all timesteps, and for `settling` more epochs the network is trained as it will run.
    """
    yield from _phase(net, codes, labels, epochs, rate=5e-3, normalising=True)
    if settling:
        calibrate(net, to_input(codes[:CALIBRATED_ON]), TIMESTEPS)
        yield from _phase(net, codes, labels, settling, rate=1e-3, normalising=False)


def _phase(
    net: nn.Module, codes: Codes, labels: Labels, epochs: int, *, rate: float, normalising: bool
) -> Iterator[float]:
    images, targets = to_input(codes), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        net.train(normalising)
        losses = []
        for batch in torch.randperm(len(images)).split(BATCH):
            logits, busy = _predict_and_watch(net, images[batch])
            loss = nn.functional.cross_entropy(logits, targets[batch])
            optimizer.zero_grad()
            (loss + busy).backward()
            optimizer.step()
            losses.append(loss.item())
        schedule.step()
        yield float(np.mean(losses))


def _predict_and_watch(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and ten times the sum, over the layers that fire more often than BUSY, of the excess."""
    spikes: dict[nn.Module, list[Tensor]] = {}
    hooks = [
        layer.register_forward_hook(lambda module, _inputs, out: spikes.setdefault(module, []).append(out.mean()))
        for layer in net.modules()
        if isinstance(layer, DALIF)
    ]
    logits = predict(net, images)
    for hook in hooks:
        hook.remove()
    rates = torch.stack([torch.stack(steps).mean() for steps in spikes.values()])
    return logits, 10 * nn.functional.relu(rates - BUSY).sum()


@click.command()
@click.option("--epochs", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--settling", type=click.IntRange(min=0), default=5, show_default=True, help="Epochs after these.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=DEFAULT_OUTPUT,
    show_default="models/resnet20_digits.pt",
)
def main(epochs: int, settling: int, seed: int, output: Path) -> None:
    """Train on 1,437 digits, test on the 360 held out, and save the last epoch's network."""
    started = time.monotonic()
    output.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    x_train, y_train, x_test, y_test = load_split()
    x_train, x_test = enlarged(x_train), enlarged(x_test)
    net = build(x_train[:BATCH])

    console = Console(stderr=True)
    columns = (TextColumn("epoch"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=epochs + settling)
        for loss in train(net, x_train, y_train, epochs=epochs, settling=settling):
            progress.update(task, advance=1, description=f"loss {loss:.4f}")

    click.echo(f"accuracy on the 360 held-out digits: {accuracy(net, x_test, y_test):.2%}")
    for name, rate in firing_rates(net, to_input(x_test), TIMESTEPS).items():
        layer = net.get_submodule(name)
        click.echo(f"{name}: fires on {rate:.1%} of neuron-steps, alpha {layer.alpha:.4f}, beta {layer.beta:.4f}")

    notes = save(
        net,
        output,
        example_input=to_input(x_train[:2]),
        timesteps=TIMESTEPS,
        encoding=ENCODING,
        class_names=tuple("0123456789"),
        samples=x_test[:STORED],
    )
    for note in notes:  # what was inferred of the network: its layout, its readout
        click.echo(note, err=True)
    click.echo(f"saved {output} after {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
