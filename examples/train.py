"""Train a DA-LIF network on a data set that lies on disk, with the paper's hyper-parameters, ready to be exported.

    python examples/train.py fashion-mnist --data /usr/share/datasets/fashion-mnist
    dalif-export --to onnx runs/fashion-mnist/model.pt

docs/training.md says how each data set has to lie, and where each default comes from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from train_augment import Augmentation
from train_data import NAMES, TrainingData, open_data
from train_loop import Options, Training, read_state
from train_recipes import NETWORKS, RECIPES
from train_sequence import SequenceDALIF, repeat_from_first

from dalif_deploy import DALIF, Code, DalifError, save
from dalif_deploy.cli.common import main
from dalif_deploy.networks import calibrate, firing_rates

CALIBRATED_ON = 32
"""Training samples on which an untrained network is made to fire."""


def build(options: Options, data: TrainingData, neuron: Callable[..., nn.Module]) -> nn.Module:
    """The network of `options`, with layers made by `neuron`. Raises `DalifError` (BAD_OPTION)."""
    make: Callable[..., nn.Module] = NETWORKS[options["network"]]
    made = partial(
        neuron, activation=options["activation"], alpha_init=options["alpha_init"], beta_init=options["beta_init"],
        v_threshold=options["v_threshold"], surrogate_width=options["surrogate_width"],
        detach_reset=options["detach_reset"],
    )  # fmt: skip
    extra = {"size": options["size"]} if options["network"] in ("vggsnn", "vgg-small") else {}
    return make(
        num_classes=len(data.class_names), in_channels=data.channels, timesteps=options["timesteps"], neuron=made,
        **extra,
    )  # fmt: skip


def training_network(options: Options, data: TrainingData) -> nn.Module:
    """A fresh network that runs all timesteps at once, firing in every layer unless "calibrate" is off.

    As it is initialised, the last BatchNorm of each block of ResNet-20 hides what comes before; deep layers can then
    be silent, with no potential near a threshold, so that no gradient reaches them and nothing is learned.
    """
    network = build(options, data, partial(SequenceDALIF, timesteps=options["timesteps"]))
    if not data.temporal:
        repeat_from_first(network)
    if options["calibrate"]:
        step = build(options, data, DALIF)
        step.load_state_dict(network.state_dict())
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(options["seed"]))
        batch = torch.stack([data.train[int(index)][0] for index in order[:CALIBRATED_ON]])
        calibrate(step, batch, options["timesteps"], temporal=data.temporal)
        network.load_state_dict(step.state_dict())
    return network


def step_network(training: Training, data: TrainingData) -> nn.Module:
    """The trained network as it is deployed: one timestep a call, on the CPU."""
    network = build(training.options, data, DALIF)
    network.load_state_dict({name: value.cpu() for name, value in training.network.state_dict().items()})
    return network.eval()


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that a recipe has values for; without one, the data set's own value holds."""
    whole, positive, number = click.IntRange(min=0), click.IntRange(min=1), click.FloatRange(min=0.0)
    above = click.FloatRange(min=0.0, min_open=True)
    flags = {"flip": "Mirror half the images.", "autoaugment": "AutoAugment, with torchvision's policy for the data."}
    values: list[tuple[str, Any, str]] = [
        ("network", click.Choice(sorted(NETWORKS)), "Which network."),
        ("timesteps", positive, "T: how many timesteps a sample takes."),
        ("epochs", positive, "Epochs in all."),
        ("batch-size", positive, "Samples a batch."),
        ("size", positive, "Height and width of what the network sees."),
        ("optimizer", click.Choice(["sgd", "adamw"]), "The optimizer."),
        ("lr", above, "Learning rate of the first epoch."),
        ("momentum", click.FloatRange(0.0, 1.0, max_open=True), "Momentum of sgd."),
        ("weight-decay", number, "Weight decay of weights; alpha and beta have none."),
        ("gain-lr", number, "Rate of alpha and beta, as a factor of --lr."),
        ("schedule", click.Choice(["cosine", "step", "constant"]), "How the rate falls."),
        ("loss", click.Choice(["ce", "tet"]), "Cross-entropy of the mean output, or of every timestep (TET)."),
        ("tet-lambda", click.FloatRange(0.0, 1.0), "Weight of TET's second term."),
        ("activation", click.Choice(["tanh", "sigmoid", "identity"]), "What bounds alpha and beta."),
        ("alpha-init", float, "Initial alpha, before the activation."),
        ("beta-init", float, "Initial beta, before the activation."),
        ("v-threshold", float, "Firing threshold."),
        ("surrogate-width", above, "Width a of the rectangular surrogate gradient."),
        ("crop", whole, "Padding of the random crop in pixels, 0 for none; imagenet: any number crops at random."),
        ("cutout", whole, "Side of the blotted-out square, 0 for none."),
        ("roll", whole, "By how many pixels frames of events are shifted at most."),
    ]
    options = [click.option(f"--{name}", type=kind, help=text) for name, kind, text in values]
    options += [click.option(f"--{name}/--no-{name}", default=None, help=text) for name, text in flags.items()]
    for option in reversed(options):
        command = option(command)
    return command


@click.command("train.py")
@click.argument("dataset", type=click.Choice(NAMES), metavar="DATASET")
@click.option("--data", "folder", type=click.Path(path_type=Path), required=True, help="Folder that holds the data.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Folder for last.pt and model.pt.  [runs/DATASET]"
)
@click.option("--resume", is_flag=True, help="Go on from last.pt in the output folder, exactly.")
@click.option("--stop-after", type=click.IntRange(min=1), help="End after this many epochs; --resume goes on.")
@click.option("--force", is_flag=True, help="Start again although last.pt exists.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", help="Such as cpu or cuda:1.  [cuda where there is one]")
@click.option("--workers", type=click.IntRange(min=0), default=0, show_default=True, help="Processes that load data.")
@click.option("--samples", type=click.IntRange(min=1), default=8, show_default=True,
              help="Test samples stored in model.pt with the spikes fired on them.")  # fmt: skip
@click.option("--amp/--no-amp", default=False, help="Mixed precision: float16 on cuda, bfloat16 elsewhere.")
@click.option("--calibrate/--no-calibrate", default=True, help="Make every layer fire before the first epoch.")
@click.option("--detach-reset/--no-detach-reset", default=False, help="No gradient through the reset.")
@click.option("--split", type=click.Choice(["events", "time"]), default="events", show_default=True,
              help="Frames of the same number of events, or of the same duration.")  # fmt: skip
@_options
@click.pass_context
def command(
    context: click.Context, /, dataset: str, folder: Path, output: Path | None, resume: bool, stop_after: int | None,
    force: bool, device: str | None, workers: int, samples: int, **given: Any,
) -> None:  # fmt: skip
    """Train on DATASET, test after every epoch, and write OUTPUT/last.pt (the training) and OUTPUT/model.pt.

    DATASET is cifar10, cifar100, fashion-mnist, imagenet, cifar10-dvs or dvs128-gesture.

    An option that is not given has the data set's value in docs/training.md. The network of the last epoch is saved,
    not the one that did best on the test samples.
    """
    place = output or Path("runs") / dataset
    last, model = place / "last.pt", place / "model.pt"
    options: Options = {"dataset": dataset, **dataclasses.asdict(RECIPES[dataset])}
    options |= {name: value for name, value in given.items() if value is not None}
    content = None
    if resume:
        content = read_state(last)
        if not isinstance(content.get("options"), dict) or content["options"].keys() != options.keys():
            raise DalifError(Code.FOREIGN_FILE, f"{last}: has other options than this version of train.py; start again")
        named = [name for name in ("dataset", *given) if _was_given(context, name)]
        _same(content["options"], {name: options[name] for name in named}, last)
        options = content["options"]
    elif last.exists() and not force:
        raise DalifError(
            Code.OUTPUT_EXISTS, f"{last}: exists; give --resume to go on, --force to start again, or another -o"
        )
    on = _device(device)
    _make_folder(place)
    console = Console(stderr=True, highlight=False)

    torch.manual_seed(options["seed"])
    with _bar(console) as bar:
        task = bar.add_task("", total=None, visible=False)

        def reading(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total, visible=done < total)

        augmentation = Augmentation(**{f.name: options[f.name] for f in dataclasses.fields(Augmentation)})
        data = open_data(
            dataset, folder, size=options["size"], timesteps=options["timesteps"], augmentation=augmentation,
            split=options["split"], told=reading,
        )  # fmt: skip
    training = Training(
        training_network(options, data).to(on), (data.train, data.test), options, temporal=data.temporal, device=on,
        workers=workers,
    )  # fmt: skip
    if content is not None:
        training.restore(content, last)
    _introduce(console, options, data, training, on)

    epochs = options["epochs"]
    until = epochs if stop_after is None else min(epochs, training.epoch + stop_after)
    while training.epoch < until:
        _one_epoch(console, training, until)
        training.save(last)
    if training.epoch < epochs:
        click.echo(f"stopped after epoch {training.epoch} of {epochs}: {last}; go on with --resume")
        return
    _finish(console, training, data, model, samples)
    click.echo(f"test accuracy {training.history[-1]['test_accuracy']:.2%}")
    click.echo(f"saved {model}")


def _one_epoch(console: Console, training: Training, until: int) -> None:
    started = time.monotonic()
    epochs = training.options["epochs"]
    with _bar(console) as bar:
        task = bar.add_task(f"epoch {training.epoch + 1}/{epochs}")
        entry = training.run_epoch(
            lambda done, total, loss: bar.update(
                task, completed=done, total=total,
                description=f"epoch {training.epoch + 1}/{epochs}  loss {loss:.4f}" if done < total else "testing",
            )
        )  # fmt: skip
    taken = time.monotonic() - started
    left = f", {_duration(taken * (until - training.epoch))} to go" if training.epoch < until else ""
    console.print(
        f"epoch {training.epoch:>{len(str(epochs))}}/{epochs}  loss {entry['loss']:.4f}  "
        f"train {entry['train_accuracy']:6.2%}  test {entry['test_accuracy']:6.2%}  lr {entry['lr']:.4g}  "
        f"{_duration(taken)}{left}",
        markup=False, soft_wrap=True,
    )  # fmt: skip


def _finish(console: Console, training: Training, data: TrainingData, model: Path, samples: int) -> None:
    """Write model.pt, and show what the neurons became."""
    network = step_network(training, data)
    timesteps = training.options["timesteps"]
    stored = data.stored_form(samples)
    inputs = torch.from_numpy(data.encoding.module_input(stored, feature_axis=2 if data.temporal else 1))
    for name, rate in firing_rates(network, inputs, timesteps, temporal=data.temporal).items():
        layer = network.get_submodule(name)
        assert isinstance(layer, DALIF)
        console.print(
            f"{name}: fires on {rate:.1%} of neuron-steps, alpha {layer.alpha:.4f}, beta {layer.beta:.4f}",
            markup=False, soft_wrap=True,
        )  # fmt: skip
    save(
        network, model, example_input=inputs[:2], timesteps=timesteps, layout="step", readout="mean",
        temporal=data.temporal, encoding=data.encoding, class_names=data.class_names, samples=stored,
    )  # fmt: skip


def _introduce(
    console: Console, options: Options, data: TrainingData, training: Training, device: torch.device
) -> None:
    parameters = sum(p.numel() for p in training.network.parameters())
    shown = ("dataset", "network", "timesteps")
    console.print(
        f"{options['dataset']}: {len(data.train)} training and {len(data.test)} test samples, "
        f"{len(data.class_names)} classes",
        f"{options['network']}: {parameters:,} parameters, T = {options['timesteps']}, on {device}",
        "options: " + ", ".join(f"{name} {value}" for name, value in options.items() if name not in shown),
        sep="\n", markup=False, soft_wrap=not console.is_terminal,
    )  # fmt: skip
    if training.epoch:
        console.print(f"going on after epoch {training.epoch}", markup=False)


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _was_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _same(stored: Options, wanted: Options, path: Path) -> None:
    for name, value in wanted.items():
        if stored.get(name) != value:
            raise DalifError(
                Code.BAD_OPTION,
                f"{_written(name, value)}: {path} was trained with {_written(name, stored.get(name))}, and --resume "
                "goes on as it began; leave the option out, or start again elsewhere with -o",
            )


def _written(name: str, value: object) -> str:
    """An option as it is given."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value}"


def _device(name: str | None) -> torch.device:
    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DalifError(Code.BAD_OPTION, f"--device {wanted}: torch cannot use it here ({reason})") from error
    return device


def _make_folder(place: Path) -> None:
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DalifError(
            Code.NO_FOLDER, f"{place}: cannot be made ({error.strerror or error}); give another with -o"
        ) from error


if __name__ == "__main__":
    main(command)()
