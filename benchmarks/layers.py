"""Every layer, activation and loss of `torch.nn`, all tasks at once, against a loop over tasks.

The loop is one of `torch.autograd.grad` in float64 over PyTorch's own operations. Where PyTorch has
no second derivative, and where the two differ, a central difference decides. Then the speed of an
LSTM and of attention, against the same loop.
"""
from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

import metalit as ml

from . import measure

TASKS, EXAMPLES, LR, STEPS = 2, 3, 0.1, 1
# What a layer is given, one example; and the settings, as they would stand behind `nn.`
LAYERS: dict[tuple[int, ...], str] = {
    (6,): """Linear(6, 5); Linear(6, 5, bias=False); Identity(); Flatten(); Unflatten(1, (2, 3));
        ELU(); ELU(alpha=0.5); Hardshrink(0.1); Hardsigmoid(); Hardtanh(); Hardswish(); LeakyReLU();
        LogSigmoid(); PReLU(); PReLU(6); ReLU(); ReLU6(); SELU(); CELU(); CELU(0.5); GELU();
        GELU("tanh"); Sigmoid(); SiLU(); Mish(); Softplus(); Softplus(2, 1); Softshrink(0.1);
        Softsign(); Tanh(); Tanhshrink(); Threshold(0.1, 0.5); GLU(); Softmin(1); Softmax(1);
        LogSoftmax(1); LayerNorm(6); LayerNorm(6, bias=False);
        LayerNorm(6, elementwise_affine=False);
        RMSNorm(6); RMSNorm(6, 0.1); BatchNorm1d(6, track_running_stats=False);
        BatchNorm1d(6, affine=False, track_running_stats=False); GroupNorm(2, 6);
        GroupNorm(3, 6, affine=False); Bilinear(6, 6, 4); CosineSimilarity(); PairwiseDistance();
        PairwiseDistance(1); RNNCell(6, 4); RNNCell(6, 4, nonlinearity="relu"); GRUCell(6, 4);
        GRUCell(6, 4, bias=False); LSTMCell(6, 4); LSTMCell(6, 4, bias=False)""",
    (4, 6): """Conv1d(4, 3, 3); Conv1d(4, 4, 3, 2, 2, 2, 2); Conv1d(4, 3, 3, padding="same");
        Conv1d(4, 3, 3, padding=1, padding_mode="circular"); ConvTranspose1d(4, 3, 3);
        ConvTranspose1d(4, 4, 3, 2, 1, 1, 2); MaxPool1d(2); MaxPool1d(3, 1, 1); AvgPool1d(2);
        AvgPool1d(3, 2, 1, True, False); LPPool1d(2, 2); AdaptiveMaxPool1d(4); AdaptiveAvgPool1d(4);
        ReflectionPad1d(2); ReplicationPad1d(2); ZeroPad1d(1); ConstantPad1d(1, 0.5);
        CircularPad1d(2); BatchNorm1d(4, track_running_stats=False); InstanceNorm1d(4);
        InstanceNorm1d(4, affine=True); LayerNorm([4, 6]); LocalResponseNorm(2);
        Upsample(scale_factor=2); Upsample(9, mode="linear"); RNN(6, 3, batch_first=True);
        RNN(6, 3, 2, "relu", bidirectional=True); GRU(6, 3, batch_first=True);
        GRU(6, 3, 2, bias=False, bidirectional=True); LSTM(6, 3, batch_first=True);
        LSTM(6, 3, 2, bidirectional=True, proj_size=2); LSTM(6, 3, bias=False);
        MultiheadAttention(6, 2, batch_first=True);
        MultiheadAttention(6, 2, bias=False, add_bias_kv=True, add_zero_attn=True);
        TransformerEncoderLayer(6, 2, 5, 0.0, batch_first=True);
        TransformerEncoderLayer(6, 2, 5, 0.0, "gelu", norm_first=True);
        TransformerDecoderLayer(6, 2, 5, 0.0, batch_first=True);
        TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 5, batch_first=True), 2).eval();
        TransformerDecoder(nn.TransformerDecoderLayer(6, 2, 5, 0.0, batch_first=True), 2);
        Transformer(6, 2, 1, 1, 5, 0.0, batch_first=True); Dropout1d().eval()""",
    (4, 4, 6): """Conv2d(4, 3, 3); Conv2d(4, 4, 3, 2, 1, 2, 2); Conv2d(4, 3, 3, padding="same");
        Conv2d(4, 3, 3, padding=1, padding_mode="reflect", bias=False); ConvTranspose2d(4, 3, 3);
        ConvTranspose2d(4, 4, 3, 2, 1, 1, 2); Unfold(2); MaxPool2d(2); MaxPool2d(3, 2, 1, 1);
        FractionalMaxPool2d(2, (2, 3), _random_samples=torch.full((EXAMPLES, 4, 2), 0.3).double());
        AvgPool2d(2); AvgPool2d(3, 2, 1, True, False); LPPool2d(2, 2); AdaptiveMaxPool2d(3);
        AdaptiveAvgPool2d(3); AdaptiveAvgPool2d(1); ReflectionPad2d(2); ReplicationPad2d(2);
        ZeroPad2d(1); ConstantPad2d(1, 0.5); CircularPad2d(1);
        BatchNorm2d(4, track_running_stats=False); InstanceNorm2d(4); BatchNorm2d(4).eval();
        InstanceNorm2d(4, affine=True); GroupNorm(2, 4); LayerNorm([4, 4, 6]); LayerNorm(6);
        LocalResponseNorm(2); CrossMapLRN2d(2); PixelShuffle(2); PixelUnshuffle(2);
        ChannelShuffle(2); Upsample(scale_factor=2); Upsample((5, 7), mode="bilinear");
        Upsample(scale_factor=2, mode="bicubic"); UpsamplingNearest2d(scale_factor=2);
        UpsamplingBilinear2d(scale_factor=2); Softmax2d(); Dropout2d().eval();
        FeatureAlphaDropout().eval(); Dropout().eval(); AlphaDropout().eval(); RReLU().eval()""",
    (8, 6): "Fold((3, 4), 2)",
    (2, 4, 4, 4): """Conv3d(2, 3, 3); Conv3d(2, 2, 3, 2, 1, 1, 2); ConvTranspose3d(2, 3, 2);
        MaxPool3d(2); AvgPool3d(2); LPPool3d(2, 2); AdaptiveMaxPool3d(2); AdaptiveAvgPool3d(3);
        FractionalMaxPool3d(2, 2, _random_samples=torch.full((EXAMPLES, 2, 3), 0.3).double());
        ReflectionPad3d(1); ReplicationPad3d(1); ZeroPad3d(1); ConstantPad3d(1, 0.5);
        CircularPad3d(1); BatchNorm3d(2, track_running_stats=False); InstanceNorm3d(2);
        InstanceNorm3d(2, affine=True); Upsample(scale_factor=2, mode="trilinear");
        Dropout3d().eval()"""}
WORDS = """Embedding(7, 4); Embedding(7, 4, padding_idx=2); Embedding(7, 4, max_norm=1.0);
    EmbeddingBag(7, 4); EmbeddingBag(7, 4, mode="sum", padding_idx=2);
    EmbeddingBag(7, 4, mode="max")"""
LOSSES = {
    "numbers": """L1Loss(); MSELoss(); MSELoss(reduction="sum"); HuberLoss(); HuberLoss(delta=0.3);
        SmoothL1Loss(); SmoothL1Loss(beta=0.3); PoissonNLLLoss(); GaussianNLLLoss();
        MarginRankingLoss(margin=0.1); CosineEmbeddingLoss(); TripletMarginLoss();
        TripletMarginLoss(p=1, swap=True); TripletMarginWithDistanceLoss()""",
    "classes": """CrossEntropyLoss(); CrossEntropyLoss(label_smoothing=0.1);
        CrossEntropyLoss(torch.arange(1.0, 6).double()); CrossEntropyLoss(ignore_index=1);
        NLLLoss(); NLLLoss(torch.arange(1.0, 6).double());
        MultiMarginLoss(); MultiMarginLoss(p=2)""",
    "shares": """CrossEntropyLoss(); KLDivLoss(reduction="batchmean"); BCELoss();
        BCEWithLogitsLoss();
        BCEWithLogitsLoss(pos_weight=torch.arange(1.0, 6).double()); MultiLabelSoftMarginLoss()""",
    "signs": "HingeEmbeddingLoss(); SoftMarginLoss()",
    "labels": "MultiLabelMarginLoss()", "pictures": "NLLLoss2d()", "sounds": "CTCLoss()",
    "clusters": "AdaptiveLogSoftmaxWithLoss(5, 5, [2])"}
# What of torch.nn is no layer by itself, or cannot be run here.
LEFT_OUT = {"Module": "what layers are made of", "Sequential": "a container",
            "ModuleList": "a container", "ModuleDict": "a container", "Container": "a container",
            "ParameterList": "a container", "ParameterDict": "a container",
            "DataParallel": "several devices", "SyncBatchNorm": "several processes",
            "MaxUnpool1d": "needs places", "MaxUnpool2d": "needs places",
            "MaxUnpool3d": "needs places", "RNNBase": "what RNN, GRU and LSTM are made of",
            "RNNCellBase": "what the cells are made of", "LinearCrossEntropyLoss": "a newer loss"}


class Around(nn.Module):
    """A layer behind a scale and an offset, which each task learns, and a number."""
    def __init__(self, layer: nn.Module, shape: tuple[int, ...] | None):
        super().__init__()
        self.layer, self.words = layer, shape is None
        self.scale = nn.Parameter(torch.ones(shape or ()))
        self.offset = nn.Parameter(torch.zeros(shape or ()))

    def forward(self, x: Tensor) -> Tensor:
        """One number for each example."""
        if not self.words: x = x * self.scale + self.offset
        inputs = {nn.Bilinear: 2, nn.CosineSimilarity: 2, nn.PairwiseDistance: 2,
                  nn.MultiheadAttention: 3, nn.TransformerDecoder: 2, nn.TransformerDecoderLayer: 2,
                  nn.Transformer: 2}.get(type(self.layer), 1)
        y = self.layer(x, *(x.roll(n, 0).sin() for n in range(1, inputs)))
        while isinstance(y, tuple): y = y[0]
        y = y.flatten(1) if y.ndim > 1 else y[:, None]
        return y @ torch.cos(torch.arange(y.shape[1], dtype=y.dtype)) + self.scale.sum()


class Predicting(nn.Module):
    """Predictions (S, 5), to be judged by a loss."""
    def __init__(self, loss: nn.Module):
        super().__init__()
        self.first, self.layer = nn.Linear(6, 5), nn.Tanh()
        if isinstance(loss, nn.AdaptiveLogSoftmaxWithLoss): self.loss = loss

    def forward(self, x: Tensor) -> Tensor:
        """What a small net makes of x."""
        y = self.layer(self.first(x))
        return self.loss.log_prob(y) if hasattr(self, "loss") else y


def settings(text: str) -> list[str]:
    """The single settings of a list."""
    return [re.sub(r"\s+", " ", part).strip() for part in text.split(";")]


def made(setting: str) -> nn.Module:
    """The layer that a setting says."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return eval(f"nn.{setting}", {"nn": nn, "torch": torch, "EXAMPLES": EXAMPLES})


def of_pairs(name: str, loss: nn.Module) -> Callable[[Any, Any], Tensor]:
    """The loss as a function of a prediction and y."""
    calls = {
        "GaussianNLLLoss": lambda p, y: loss(p, y, p.square() + 0.1),
        "MarginRankingLoss": lambda p, y: loss(p, p.roll(1, 0).sin(), y.sign()),
        "CosineEmbeddingLoss": lambda p, y: loss(p, y, torch.tensor([1.0, -1, 1]).double()),
        "TripletMarginLoss": lambda p, y: loss(p, y, p.roll(1, 0)),
        "TripletMarginWithDistanceLoss": lambda p, y: loss(p, y, p.roll(1, 0)),
        "NLLLoss": lambda p, y: loss(p.log_softmax(1), y),
        "KLDivLoss": lambda p, y: loss(p.log_softmax(1), y),
        "BCELoss": lambda p, y: loss(p.sigmoid(), y),
        "NLLLoss2d": lambda p, y: loss(p[:, :, None, None].log_softmax(1), y[:, None, None]),
        "CTCLoss": lambda p, y: loss(p[:, None].log_softmax(2), y[None, :2] % 4 + 1,
                                     torch.tensor([EXAMPLES]), torch.tensor([2])),
        "AdaptiveLogSoftmaxWithLoss": F.nll_loss}
    return calls.get(name, loss)


def targets(kind: str, generator: torch.Generator) -> Tensor:
    """Some y of a kind, for all tasks."""
    shape, float64 = (TASKS, EXAMPLES, 5), {"generator": generator, "dtype": torch.float64}
    if kind == "numbers": return torch.randn(shape, **float64)
    if kind == "shares": return torch.rand(shape, **float64).softmax(-1)
    if kind == "signs": return torch.randn(shape, **float64).sign()
    if kind == "labels": return torch.tensor([1, 3, -1, 0, 2]).expand(shape).clone()
    return torch.randint(0, 5, shape[:2], generator=generator)


Case = tuple[str, Callable[[], tuple[nn.Module, Callable[[Any, Any], Tensor], ml.Task]]]


def drawn(model: nn.Module, x: Callable[[torch.Generator], Tensor],
          y: Callable[[torch.Generator], Tensor]) -> tuple[nn.Module, ml.Task]:
    """The model with parameters of its own in float64, and tasks."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.double().parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / 3)
    return model, ml.Task(*(ml.Split(x(generator), y(generator)) for _ in range(2)))


def cases() -> list[Case]:
    """All settings by name, each with what makes its model, its loss and its tasks."""
    found: list[Case] = []
    shapes = [*LAYERS.items(), (None, WORDS)]
    for shape, text in shapes:
        for setting in settings(text):
            def of_layer(setting: str = setting, shape: tuple[int, ...] | None = shape) -> Any:
                def x(g: torch.Generator) -> Tensor:
                    if shape is None: return torch.randint(0, 7, (TASKS, EXAMPLES, 5), generator=g)
                    return torch.randn(TASKS, EXAMPLES, *shape, generator=g, dtype=torch.float64)
                def y(g: torch.Generator) -> Tensor:
                    return torch.randn(TASKS, EXAMPLES, generator=g, dtype=torch.float64)
                with torch.random.fork_rng(devices=()):
                    torch.manual_seed(0)
                    model, task = drawn(Around(made(setting), shape), x, y)
                return model, F.mse_loss, task
            known = {name for name, _ in found}
            found.append((f"{setting} of {shape}" if setting in known else setting, of_layer))
    for kind, text in LOSSES.items():
        for setting in settings(text):
            def of_loss(setting: str = setting, kind: str = kind) -> Any:
                with torch.random.fork_rng(devices=()):
                    torch.manual_seed(0)
                    loss = made(setting).double()
                    model, task = drawn(Predicting(loss), lambda g: torch.randn(
                        TASKS, EXAMPLES, 6, generator=g, dtype=torch.float64),
                        lambda g: targets(kind, g))
                return model, of_pairs(setting.partition("(")[0], loss), task
            known = {name for name, _ in found}
            found.append((f"{setting} of {kind}" if setting in known else setting, of_loss))
    return found


def by_loop(model: nn.Module, loss: Callable[[Any, Any], Tensor], task: ml.Task,
            first_order: bool) -> list[Tensor]:
    """Value and meta-gradient by `torch.autograd.grad`, one task after another."""
    names, theta = zip(*model.named_parameters(), strict=True)
    values = []
    for b in range(TASKS):
        def measured(phi: Any, split: ml.Split, b: int = b) -> Tensor:
            phi = dict(zip(names, phi, strict=True))
            return loss(functional_call(model, phi, (split.x[b],)), split.y[b])
        phi = theta
        for _ in range(STEPS):
            at = [p.detach().requires_grad_() for p in phi] if first_order else phi
            slopes = torch.autograd.grad(measured(at, task.support), at, allow_unused=True,
                                         create_graph=not first_order)
            phi = [p if g is None else p - LR * g for p, g in zip(phi, slopes, strict=True)]
        values.append(measured(phi, task.query))
    value = torch.stack(values).mean()
    return [value.detach(), *torch.autograd.grad(value, theta, allow_unused=True,
                                                 materialize_grads=True)]


def by_metalit(model: nn.Module, loss: Callable[[Any, Any], Tensor], task: ml.Task,
               first_order: bool, batching: str = "vmap") -> list[Tensor]:
    """The same by metalit."""
    J = ml.MetaLoss(model, loss, inner=ml.SGD(LR, STEPS), batching=batching,
                    gradient=ml.FirstOrder() if first_order else ml.Exact())
    value = J(task)
    return [value.detach(), *torch.autograd.grad(value, list(model.parameters()), allow_unused=True,
                                                 materialize_grads=True)]


def off(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, against the length of all that is expected."""
    length = torch.cat([part.flatten() for part in expected]).norm()
    return float(max((a - b).abs().max() for a, b in zip(found, expected, strict=True)) / length)


def slope_is_right(model: nn.Module, loss: Callable[[Any, Any], Tensor], task: ml.Task,
                   found: list[Tensor], h: float = 1e-5) -> bool:
    """Whether a meta-gradient is that of the value, by a central difference."""
    generator = torch.Generator().manual_seed(1)
    theta = [p.detach().clone() for p in model.parameters()]
    along = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in theta]
    ends = []
    for t in (h, -h, 0.0):
        with torch.no_grad():
            for p, s, d in zip(model.parameters(), theta, along, strict=True): p.copy_(s + t * d)
        ends.append(float(by_metalit(model, loss, task, True)[0]))
    slope = float(sum((g * d).sum() for g, d in zip(found[1:], along, strict=True)))
    return abs((ends[0] - ends[1]) / (2 * h) - slope) < 1e-5 * (1 + abs(slope))


def first_line(error: Exception) -> str:
    """What an error says first; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def outcome(case: Callable[[], Any], first_order: bool) -> dict[str, str]:
    """What became of one setting: right, wrong, refused, by a loop only; and why."""
    model, loss, task = case()
    expected, no_loop = None, ""
    with sdpa_kernel(SDPBackend.MATH):
        try: expected = by_loop(model, loss, task, first_order)
        # what PyTorch itself cannot differentiate: the list says so, in its words
        except RuntimeError as error: no_loop = first_line(error)
    try: found = by_metalit(model, loss, task, first_order)
    except Exception as error:  # it may fail in any way, and the list says in which
        why = first_line(error).partition(" PyTorch says")[0]
        if expected is None:
            often = "" if first_order else " twice"
            return {"outcome": f"not differentiable{often} by PyTorch", "why": no_loop}
        try: found = by_metalit(*case(), first_order, "loop")
        except Exception as second: return {"outcome": "refused", "why": str(second)[:200]}
        return {"outcome": "by a loop only" if off(found, expected) < 1e-9 else "wrong", "why": why}
    if expected is not None and off(found, expected) < 1e-9: return {"outcome": "right", "why": ""}
    if not first_order and slope_is_right(model, loss, task, found):
        return {"outcome": "right", "why": "by a central difference: " + (
            "PyTorch's own second derivative differs" if expected is not None
            else no_loop)}
    why = no_loop if expected is None else f"off by {off(found, expected):.1e}"
    return {"outcome": "wrong", "why": why}


def sweep() -> list[dict[str, Any]]:
    """What became of every setting, for the exact gradient and for first order."""
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, case in cases():
            found.append({"name": name, "exact": outcome(case, False),
                          "first_order": outcome(case, True)})
    return found


def nets() -> dict[str, tuple[nn.Module, ml.Task]]:
    """An LSTM and a layer of attention over sixteen steps, for sixteen tasks."""
    class Last(nn.Module):
        """The last output of a layer, and a number."""
        def __init__(self, layer: nn.Module):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(16, 1)

        def forward(self, x: Tensor) -> Tensor:
            """One number for each series."""
            y = self.layer(*[x] * 3) if isinstance(self.layer, nn.MultiheadAttention) else (
                self.layer(x))
            return self.head((y[0] if isinstance(y, tuple) else y)[:, -1])
    torch.manual_seed(0)
    def split() -> ml.Split: return ml.Split(torch.randn(16, 5, 16, 16), torch.randn(16, 5, 1))
    task = ml.Task(split(), split())
    encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    return {"LSTM": (Last(nn.LSTM(16, 16, batch_first=True)), task),
            "attention": (Last(nn.MultiheadAttention(16, 2, batch_first=True)), task),
            "transformer layer": (Last(encoder), task)}


def speed(rounds: int = 5, budget: float = 0.3) -> dict[str, Any]:
    """Milliseconds of value and meta-gradient, at once and by a loop over PyTorch's operations."""
    global TASKS
    before, TASKS, found = TASKS, 16, {}
    for name, (model, task) in nets().items():
        with sdpa_kernel(SDPBackend.MATH):
            times = measure.in_turns({
                "at once": lambda m=model, t=task: by_metalit(m, F.mse_loss, t, False),
                "loop": lambda m=model, t=task: by_loop(m, F.mse_loss, t, False)}, rounds, budget)
        spreads = {way: measure.spread(ms) for way, ms in times.items()}
        found[name] = {"ms": spreads,
                       "times": spreads["loop"]["median"] / spreads["at once"]["median"]}
        print(f"{name:18} {found[name]['times']:.1f} × the loop's speed")
    TASKS = before
    return found


def main() -> None:
    """Try everything, print what is not right, and write `results/layers.json`."""
    arguments = measure.begin(measure.parser(__doc__ or "", 5, 0.3))
    if arguments is None: return
    start, layers = time.perf_counter(), sweep()
    for layer in layers:
        for rule in ("exact", "first_order"):
            if layer[rule]["outcome"] != "right" or layer[rule]["why"]:
                print(layer["name"], rule, *layer[rule].values(), sep=" | ")
    print(Counter(layer["exact"]["outcome"] for layer in layers),
          f"{time.perf_counter() - start:.0f} s")
    measure.write_json("layers", {
        "machine": measure.machine(), "versions": measure.versions("metalit", "torch"),
        "layers": layers, "speed": speed(arguments.rounds, arguments.budget)})


if __name__ == "__main__":
    main()
