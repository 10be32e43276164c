"""Five models that no chapter uses, as somebody writes them who has read the README alone.

Each is compared with a plain loop over tasks. What a first attempt meets stands here, too.
"""
import pytest
import torch
import torch.nn.functional as F
from test_any_model import LR, by_loop, close, found_by, random
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import metalit as ml


class TextCNN(nn.Module):
    "Convolutions of three widths over words, and the largest answer of each (Kim 2014)."
    def __init__(self, words=15, width=6, ways=3):
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, 4, n) for n in (2, 3, 4))
        self.dropout, self.out = nn.Dropout(0.5), nn.Linear(12, ways)

    def forward(self, words):
        x = self.embedding(words).transpose(1, 2)
        found = [torch.relu(convolve(x)).amax(2) for convolve in self.convolutions]
        return self.out(self.dropout(torch.cat(found, 1)))


class Forecaster(nn.Module):
    "A GRU reads a series and says its next values, each from the one before."
    def __init__(self, width=5, ahead=3):
        super().__init__()
        self.read, self.cell = nn.GRU(1, width, batch_first=True), nn.GRUCell(1, width)
        self.out, self.ahead = nn.Linear(width, 1), ahead

    def forward(self, series):
        state, last, said = self.read(series)[1][0], series[:, -1], []
        for _ in range(self.ahead):
            state = self.cell(last, state)
            last = last + self.out(state)
            said.append(last)
        return torch.stack(said, 1)


class ViT(nn.Module):
    "Patches become words, a learned word is put before them, a transformer reads them."
    def __init__(self, size=8, patch=4, width=8, ways=3):
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.first = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(1, 1 + (size // patch) ** 2, width))
        layer = nn.TransformerEncoderLayer(width, 2, 12, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, ways)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.places
        return self.head(self.norm(self.encoder(x)[:, 0]))


def twice(here, there, norm):
    layers = [nn.Conv2d(here, there, 3, padding=1), norm(there), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Conv2d(there, there, 3, padding=1), norm(there),
                         nn.ReLU(inplace=True))


class UNet(nn.Module):
    "Down, through the bottom, up again, and the way around."
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.down, self.bottom = twice(1, 2, norm), twice(2, 4, norm)
        self.pool, self.up = nn.MaxPool2d(2), nn.ConvTranspose2d(4, 2, 2, stride=2)
        self.join, self.out = twice(4, 2, norm), nn.Conv2d(2, 1, 1)

    def forward(self, images):
        here = self.down(images)
        return self.out(self.join(torch.cat([here, self.up(self.bottom(self.pool(here)))], 1)))


class Graph(nn.Module):
    "Messages along edges, summed where they arrive; `write` says how."
    def __init__(self, write="index_add", width=5, ways=2):
        super().__init__()
        self.message, self.update = nn.Linear(2 * width, width), nn.GRUCell(width, width)
        self.into, self.out, self.write = nn.Linear(3, width), nn.Linear(width, ways), write

    def along(self, x, source, target):
        m = torch.relu(self.message(torch.cat([x[source], x[target]], -1)))
        if self.write == "index_add": return torch.zeros_like(x).index_add(0, target, m)
        if self.write == "index_add_": return torch.zeros_like(x).index_add_(0, target, m)
        return torch.zeros(len(x), m.shape[1], dtype=m.dtype).index_add_(0, target, m)

    def forward(self, nodes, edges):
        graphs, count = nodes.shape[:2]
        x = torch.relu(self.into(nodes)).flatten(0, 1)       # all graphs are one, unconnected
        source, target = (edges + count * torch.arange(graphs)[:, None, None]).unbind(-1)
        for _ in range(2):
            x = self.update(self.along(x, source.flatten(), target.flatten()), x)
        return self.out(x.unflatten(0, (graphs, count)).mean(1))


def whole_numbers(*shape, below, seed):
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def task_of(x, y, batch=3):
    "Support and query of four and of five examples; `x` and `y` make them of sizes and a seed."
    return ml.Task(*(ml.Split(x(batch, n, s), y(batch, n, s + 1)) for n, s in ((4, 0), (5, 10))))


def images(b, n, s): return random(b, n, 1, 8, 8, seed=s)
def labels(ways): return lambda b, n, s: whole_numbers(b, n, below=ways, seed=s)


MODELS = {
    "text CNN": (TextCNN, F.cross_entropy, task_of(
        lambda b, n, s: whole_numbers(b, n, 7, below=15, seed=s), labels(3))),
    "GRU forecaster": (Forecaster, F.mse_loss, task_of(
        lambda b, n, s: random(b, n, 6, 1, seed=s), lambda b, n, s: random(b, n, 3, 1, seed=s))),
    "ViT": (ViT, F.cross_entropy, task_of(images, labels(3))),
    "U-Net": (lambda: UNet(lambda width: nn.GroupNorm(1, width)),
              F.binary_cross_entropy_with_logits,
              task_of(images, lambda b, n, s: (images(b, n, s) > 0).double())),
    "graph network": (Graph, F.cross_entropy, task_of(
        lambda b, n, s: {"nodes": random(b, n, 4, 3, seed=s),
                         "edges": whole_numbers(b, n, 6, 2, below=4, seed=s)}, labels(2)))}


def made(name):
    torch.manual_seed(0)
    make, loss, task = MODELS[name]
    model = make().double().eval()                           # without dropout, for the comparison
    return model, loss, task


def agree(J, loss, task, **how):
    value, slopes = found_by(J, task)
    with sdpa_kernel(SDPBackend.MATH): right, right_slopes = by_loop(J.model, loss, task, **how)
    close(value, right, 1e-10)
    for name, slope in slopes.items(): close(slope, right_slopes[name], 1e-10)
    assert sum(slope.abs().max() > 1e-9 for slope in slopes.values()) > len(slopes) / 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 2}], ids=str)
def test_it_is_what_a_loop_gives(name, options):
    model, loss, task = made(name)
    agree(ml.MAML(model, loss, lr=LR, steps=2, **options), loss, task, steps=2)


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_and_is_taken_away(name):
    model, loss, task = made(name)
    J = ml.MAML(model.train(), loss, lr=LR)                  # with dropout
    log = ml.meta_train(J, [task], steps=3, log_every=1, progress=False)
    assert len(log) == 3
    x, y = task.select(0).support
    one = J.adapted(*(ml.tasks.task.mapped(lambda part: part[0], tree) for tree in (x, y)))
    answer = one(**{k: v[0] for k, v in x.items()}) if isinstance(x, dict) else one(x[0])
    assert answer.isfinite().all() and not one.training


def test_a_unet_with_batch_normalisation_learns_what_to_do():
    torch.manual_seed(0)
    J = ml.MAML(UNet().double(), MODELS["U-Net"][1], lr=LR)
    with pytest.raises(ValueError, match=r"layer 'down.1' \(BatchNorm2d\) keeps running statistics"
                       r".*eval mode.*track_running_stats=False.*GroupNorm"):
        J(MODELS["U-Net"][2])
    torch.func.replace_all_batch_norm_modules_(J.model)
    agree(J, *MODELS["U-Net"][1:])


def test_messages_that_are_written_in_place():
    torch.manual_seed(0)
    _, loss, task = made("graph network")
    agree(ml.MAML(Graph("index_add_").double(), loss, lr=LR), loss, task)
    into_zeros = Graph("zeros").double()
    with pytest.raises(ValueError, match=r"writes what belongs to one task into what all share.*"
                       r"batching='loop'"):
        ml.MAML(into_zeros, loss, lr=LR)(task)
    agree(ml.MAML(into_zeros, loss, lr=LR, batching="loop"), loss, task)
