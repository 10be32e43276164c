"""Words become an experiment."""
import pytest
import torch

import metalit as ml
from metalit.data.glyphs import glyphs
from metalit.judging.recipes import RECIPES, build, complete, schedule

WORDS = {"seed": 0, "filters": 4, "queries": 2, "batch_size": 2, "steps": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    glyphs(folder)
    return folder


def words(family, method, **more):
    images = WORDS if family != "sinusoids" else WORDS | {"filters": None}
    return complete(images | {"family": family, "method": method} | more)


OF_IMAGES = [name for name, recipe in RECIPES.items() if not recipe.numbers]


@pytest.mark.parametrize("method", OF_IMAGES)
def test_every_method_learns_images(method, root):
    J, train, validation, test, optimizer, scheduler, metric, steps = build(words("glyphs", method),
                                                                            root)
    before = {name: p.detach().clone() for name, p in J.named_parameters()}
    ml.meta_train(J, train, steps=3, batch_size=2, optimizer=optimizer, scheduler=scheduler,
                  progress=False)
    moved = {name for name, p in J.named_parameters() if not torch.equal(p, before[name])}
    assert "model.convolutions.0.weight" in moved
    table = ml.evaluate(J, test, n_tasks=4, steps=steps[:2], metric=metric)
    assert table.metric == "accuracy"
    assert all(0 <= mean <= 1 for mean in table.mean)
    classes = [set(family.labels.tolist()) for family in (train, validation, test)]
    assert [len(c) for c in classes] == [train.classes.numel(), validation.classes.numel(),
                                         test.classes.numel()]


@pytest.mark.parametrize("method", [name for name, recipe in RECIPES.items() if not recipe.classes])
def test_every_method_but_prototypes_learns_sinusoids(method):
    experiment = build(words("sinusoids", method))
    before = [p.detach().clone() for p in experiment.J.parameters()]
    ml.meta_train(experiment.J, experiment.train, steps=2, batch_size=2,
                  optimizer=experiment.optimizer, scheduler=experiment.scheduler, progress=False)
    assert any(not torch.equal(p, q)
               for p, q in zip(experiment.J.parameters(), before, strict=True))
    assert experiment.metric is None


def test_open_settings_take_the_values_of_family_and_method():
    assert words("sinusoids", "maml")["inner_lr"] == 0.01
    assert words("glyphs", "maml")["inner_lr"] == 0.4
    assert words("glyphs", "maml", inner_lr=0.1)["inner_lr"] == 0.1
    assert words("sinusoids", "reptile")["inner_steps"] == 5
    assert complete({"family": "sinusoids", "method": "maml", "seed": 0,
                     "shots": None})["shots"] == 5


def test_a_recipe_has_numbers_for_sinusoids_and_for_images():
    cavia = RECIPES["cavia"]
    assert (cavia.lr, cavia.lr_for(False), cavia.lr_images, cavia.lr_for(True)) == (1, 1, 10, 10)
    assert (cavia.context_for(False), cavia.context_for(True)) == (5, 100)
    assert build(words("sinusoids", "cavia")).J.model.context.shape == (5,)
    assert words("sinusoids", "cavia")["inner_lr"] == 1
    assert words("glyphs", "cavia")["inner_lr"] == 10


def test_settings_reach_what_they_name(root):
    J, train, _, test, optimizer, *_ = build(words("glyphs", "maml", ways=3, shots=2, inner_lr=0.07,
                                                   inner_steps=4, meta_lr=0.5, pool="max"), root)
    assert (J.inner.lr, J.inner.steps, J.model.pool) == (0.07, 4, "max")
    assert (train.ways, train.shots, train.queries, test.ways) == (3, 2, 2, 3)
    assert optimizer(J.parameters()).param_groups[0]["lr"] == 0.5
    assert J.model(torch.zeros(6, 1, 28, 28)).shape == (6, 3)


def test_reptile_trains_with_more_shots_and_is_judged_with_those_asked_for(root):
    _, train, _, test, *_ = build(words("glyphs", "reptile", shots=1), root)
    assert (train.shots, test.shots) == (10, 1)


def test_a_folder_of_images_is_a_family(tmp_path):
    from PIL import Image
    for c in range(30):
        (tmp_path / f"class{c:02}").mkdir()
        for i in range(3):
            Image.new("L", (20, 20), 8 * c + i).save(tmp_path / f"class{c:02}" / f"{i}.png")
    J, train, validation, test, *_ = build(words(str(tmp_path), "maml", ways=2, queries=1, size=16))
    assert (len(train.classes), len(validation.classes), len(test.classes)) == (21, 3, 6)
    assert train.images.shape[1:] == (1, 16, 16)
    assert torch.isfinite(J(train.batch(2)))


def test_the_same_picture_in_two_class_folders_is_said(tmp_path):
    from PIL import Image
    for c in range(30):
        (tmp_path / f"class{c:02}").mkdir()
        for i in range(2):
            Image.linear_gradient("L").rotate(90 * c).save(tmp_path / f"class{c:02}" / f"{i}.png")
    with pytest.raises(ValueError, match="the split leaks"):
        build(words(str(tmp_path), "maml", ways=2, queries=1, size=16))


@pytest.mark.parametrize(("family", "method", "lesson"),
                         [("cosinusoids", "maml", r"no family \(did you mean sinusoids\?\)"),
                          ("sinusoids", "mammal", r"'mammal' \(did you mean maml\?\); there are"),
                          ("sinusoids", "protonet", "protonet needs classes"),
                          ("glyphs", "ridge", "ridge fits numbers, and images have classes"),
                          ("sinusoids", "protomaml", "protomaml needs classes")])
def test_what_cannot_be_is_refused(family, method, lesson):
    with pytest.raises(ValueError, match=lesson): words(family, method)


def test_the_formulas_of_the_article_take_one_step():
    with pytest.raises(ValueError, match="inner_steps=2: the article's formulas take exactly 1"):
        build(words("sinusoids", "as-written-reptile", inner_steps=2))


def test_schedules():
    def rates(name):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        make = schedule(name, 4)
        if make is None: return None
        scheduler, found = make(optimizer), []
        for _ in range(5):
            found.append(round(optimizer.param_groups[0]["lr"], 4))
            optimizer.step()
            scheduler.step()
        return found
    assert rates("constant") is None
    assert rates("linear") == [1.0, 0.7502, 0.5005, 0.2507, 0.001]
    assert rates("cosine") == [1.0, 0.8536, 0.5, 0.1464, 0.0]
    with pytest.raises(ValueError, match="schedule='exponential': one of constant, linear, cosine"):
        schedule("exponential", 4)


def test_a_schedule_of_the_recipe_is_taken_where_none_is_asked_for():
    assert words("sinusoids", "reptile")["schedule"] == "linear"
    assert words("sinusoids", "reptile", schedule="constant")["schedule"] == "constant"
    assert build(words("sinusoids", "reptile")).scheduler is not None
    assert build(words("sinusoids", "reptile", schedule="constant")).scheduler is None
    assert build(words("sinusoids", "maml")).scheduler is None


@pytest.mark.parametrize(("family", "method", "more", "lesson"), [
    ("sinusoids", "maml", {"ways": 5}, "ways=5 does not go with sinusoids and maml: they take"),
    ("sinusoids", "maml", {"filters": 64}, "filters=64 does not go with"),
    ("glyphs", "maml", {"size": 28}, "size=28 does not go with glyphs and maml"),
    ("glyphs", "maml", {"init": "finn"}, "init='finn' does not go with"),
    ("glyphs", "maml", {"protocol": "finn"}, "protocol='finn' does not go with"),
    ("glyphs", "protonet", {"inner_lr": 0.1}, "inner_lr=0.1 does not go with glyphs and protonet"),
    ("sinusoids", "maml", {"colour": "red"}, "colour='red' does not go with"),
    ("sinusoids", "maml", {"shots": 2.5}, r"shots=2\.5: a whole number from 1"),
    ("sinusoids", "maml", {"shots": True}, "shots=True: a whole number from 1"),
    ("sinusoids", "maml", {"steps": -1}, "steps=-1: a whole number from 0"),
    ("sinusoids", "maml", {"batch_size": 10**12}, "batch_size=1000000000000: a whole number from"),
    ("sinusoids", "maml", {"seed": 2**63}, "seed=9223372036854775808: a whole number from 0 to"),
    ("sinusoids", "maml", {"seed": "0"}, "seed='0': a whole number"),
    ("sinusoids", "maml", {"meta_lr": float("inf")}, "meta_lr=inf: a finite number above 0"),
    ("sinusoids", "maml", {"meta_lr": "0.1"}, "meta_lr='0.1': a finite number above 0"),
    ("sinusoids", "maml", {"init": "he"}, "init='he': one of uniform, finn"),
    ("sinusoids", ["maml"], {}, r"method=\['maml'\]: a name is needed"),
    ("", "maml", {}, "'' is no family"),
])
def test_a_setting_of_no_use_or_without_sense_is_refused_by_name(family, method, more, lesson):
    settings = {"family": family, "method": method, "seed": 0} | more
    with pytest.raises(ValueError, match=lesson): build(settings)


def test_a_missing_setting_is_named():
    with pytest.raises(ValueError, match="method is missing"): complete({"family": "sinusoids"})


def test_halves_of_a_support_set_need_two_examples_of_each_class():
    assert words("glyphs", "triplet-maml")["shots"] == 2 and words("glyphs", "maml")["shots"] == 1
    with pytest.raises(ValueError, match="shots=1: triplet-maml needs 2 or more"):
        words("glyphs", "triplet-maml", shots=1)
    assert words("sinusoids", "triplet-maml", shots=1)["shots"] == 1
