"""Models that people bring, from the packages that they come from, against a plain loop.

`transformers`, `peft`, `lightning` and `accelerate` are installed for these tests alone; the models
are small, random, in float64, and nothing is downloaded.
"""
import copy
import os
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from test_any_model import LR, LoRA, by_loop, close, found_by, random
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

import metalit as ml

os.environ["HF_HUB_OFFLINE"] = "1"
WORDS, LENGTH = 20, 5


def agree(J, task, loss, **how):
    "J and its gradient are those of a loop, which takes the kernel that has a second derivative."
    value, slopes = found_by(J, task)
    with sdpa_kernel(SDPBackend.MATH): right, right_slopes = by_loop(J.model, loss, task, **how)
    close(value, right, 1e-10)
    assert slopes.keys() == right_slopes.keys()
    for name, slope in slopes.items(): close(slope, right_slopes[name], 1e-10)
    assert sum(slope.abs().max() > 1e-6 for slope in slopes.values()) > len(slopes) / 2


@pytest.fixture(scope="module")
def brought():
    "The packages, which take their time to load."
    import peft
    import transformers
    return SimpleNamespace(peft=peft, transformers=transformers)


@pytest.fixture
def bert(brought):
    "A BERT of one layer with a head for two classes, with the attention it has by default."
    config = brought.transformers.BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=2,
        intermediate_size=12, max_position_embeddings=8)
    torch.manual_seed(0)
    model = brought.transformers.BertForSequenceClassification(config).double().eval()
    assert model.config._attn_implementation == "sdpa"
    for p in model.parameters(): p.data += 0.1 * random(*p.shape, seed=p.numel())
    return model


def texts(mask=None, batch=3):
    "Words, and where they end; `wide` masks say for each pair of words whether one sees the other."
    def split(examples, seed):
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(1, WORDS, (batch, examples, LENGTH), generator=generator)
        there = torch.arange(LENGTH) < torch.randint(2, LENGTH + 1, (batch, examples, 1),
                                                     generator=generator)
        x = {"input_ids": words, "attention_mask": there.long()}
        if mask is None: del x["attention_mask"]
        if mask == "wide":
            x["attention_mask"] = there[:, :, None, None].expand(-1, -1, 1, LENGTH, -1)
        return ml.Split(x, torch.randint(0, 2, (batch, examples), generator=generator))
    return ml.Task(split(3, 1), split(4, 2))


def of_logits(output, y): return F.cross_entropy(output.logits, y)


@pytest.mark.parametrize(("mask", "options"), [
    (None, {}), ("wide", {}), ("wide", {"chunk_size": 2}), ("wide", {"batching": "loop"}),
    ("narrow", {"batching": "loop"})], ids=str)
def test_attention_of_hugging_face_with_a_dictionary_of_inputs(bert, mask, options):
    J = ml.MAML(bert, of_logits, lr=LR, steps=2, **options)
    agree(J, texts(mask), of_logits, steps=2)


def test_a_narrow_mask_is_refused_under_vmap_and_the_loop_is_named(bert):
    J = ml.MAML(bert, of_logits, lr=LR)
    with pytest.raises(ValueError, match=r"looks at a number.*batching='loop'"): J(texts("narrow"))
    loop = ml.MAML(bert, of_logits, lr=LR, batching="loop")
    wide = ml.MAML(bert, of_logits, lr=LR)
    close(loop(texts("narrow")), wide(texts("wide")), 1e-12)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")   # peft's own
def test_lora_of_peft(bert, brought):
    config = brought.peft.LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"],
                                     init_lora_weights=False, modules_to_save=["classifier"])
    model = brought.peft.get_peft_model(bert, config).double().eval()
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    assert len(learns) == 6 and all("lora" in name or "classifier" in name for name in learns)
    kept = copy.deepcopy(model.state_dict())
    J = ml.MAML(model, of_logits, lr=LR, steps=2)
    agree(J, texts("wide"), of_logits, steps=2)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    task = texts("wide")
    one = J.adapted({name: x[0] for name, x in task.support.x.items()}, task.support.y[0])
    changed = ml.adapted.delta(one, model)
    assert sorted(changed) == sorted(learns)


def test_lora_by_hand(bert):
    bert.requires_grad_(False)
    attention = bert.bert.encoder.layer[0].attention.self
    attention.query, attention.value = LoRA(attention.query), LoRA(attention.value)
    J = ml.MAML(bert, of_logits, lr=LR, steps=2)
    assert len(J.theta()) == 4
    agree(J, texts("wide"), of_logits, steps=2)


class Block(nn.Module):
    "A basic block of a ResNet."
    def __init__(self, here, there, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(here, there, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(there, there, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(there), nn.BatchNorm2d(there)
        short = [nn.Conv2d(here, there, 1, stride, bias=False), nn.BatchNorm2d(there)]
        self.downsample = nn.Sequential(*(short if stride > 1 else []))

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.downsample(x))


def resnet(ways=3):
    "A ResNet of two blocks, in float64, with statistics of something it has seen."
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 3, 3, 1, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU(inplace=True)]
    body = [*stem, nn.MaxPool2d(2), Block(3, 3, 1), Block(3, 4, 2), nn.AdaptiveAvgPool2d(1)]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(4, ways)).double()
    with torch.no_grad(): model(3 * random(30, 1, 8, 8, seed=5) + 1)
    return model.eval()


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("options", [{}, {"batching": "loop"}, {"chunk_size": 2}], ids=str)
def test_a_resnet_with_trained_statistics(frozen, options):
    model = resnet()
    model[:-1].requires_grad_(not frozen)
    kept = copy.deepcopy(model.state_dict())
    labels = torch.arange(6).remainder(3).expand(3, -1)
    task = ml.Task(*(ml.Split(random(3, 6, 1, 8, 8, seed=s), labels) for s in (0, 1)))
    J = ml.MAML(model, F.cross_entropy, lr=LR, steps=2, **options)
    agree(J, task, F.cross_entropy, steps=2)
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    model.train()
    with pytest.raises(ValueError, match=r"layer '1' \(BatchNorm2d\).*put it into eval mode"):
        J(task)


BATCHES = [ml.tasks.Sinusoids(shots=4).batch(4, seed=7, step=i) for i in range(5)]


def maml(): return ml.MAML(ml.models.mlp(1, 8, 1), F.mse_loss)


def loader(): return DataLoader(BATCHES, batch_size=None)


def by_hand(epochs):
    "A plain loop with plain SGD and clipping."
    J = maml()
    optimizer = torch.optim.SGD(J.parameters(), lr=0.02)
    for task in BATCHES * epochs:
        optimizer.zero_grad()
        J(task).backward()
        torch.nn.utils.clip_grad_norm_(J.parameters(), 0.5)
        optimizer.step()
    return J


def assert_same(J, expected):
    for p, q in zip(J.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")                        # Lightning has much to say
def test_lightning():
    import lightning

    class Meta(lightning.LightningModule):
        def __init__(self, J):
            super().__init__()
            self.J = J

        def training_step(self, task, number): return self.J(task)

        def validation_step(self, task, number):
            self.log("validation", self.J.curve(task).mean(), batch_size=task.batch_size)

        def configure_optimizers(self): return torch.optim.SGD(self.J.parameters(), lr=0.02)

    trainer = lightning.Trainer(max_epochs=2, gradient_clip_val=0.5, accelerator="cpu",
                                logger=False, enable_checkpointing=False,
                                enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Meta(J := maml()), loader(), loader())
    assert_same(J, by_hand(epochs=2))
    right = torch.stack([J.curve(task).mean() for task in BATCHES]).mean()
    close(trainer.callback_metrics["validation"], right, 1e-6)


@pytest.mark.filterwarnings("ignore")
def test_accelerate():
    from accelerate import Accelerator
    accelerator, J = Accelerator(cpu=True), maml()
    ours, optimizer, batches = accelerator.prepare(
        J, torch.optim.SGD(J.parameters(), lr=0.02), loader())
    for _ in range(2):
        for task in batches:
            optimizer.zero_grad()
            accelerator.backward(ours(task))
            accelerator.clip_grad_norm_(ours.parameters(), 0.5)
            optimizer.step()
    assert_same(accelerator.unwrap_model(ours), by_hand(epochs=2))


def test_float16_with_a_loss_scale_in_a_plain_loop():
    "The scale goes out again; what float16 loses inside the inner loop, it loses."
    def gradient(half, scale):
        J, scaler = maml(), torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(J.parameters(), lr=0.02)
        with torch.autocast("cpu", torch.float16, enabled=half): value = J(BATCHES[0])
        scaler.scale(value).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        return torch.cat([p.grad.flatten() for p in J.parameters()])
    exact, half = gradient(False, 1.0), gradient(True, 256.0)
    assert 0 < (half - exact).norm() < 5e-3 * exact.norm()
