"""Products in another order: the same value to rounding, and no stack where none is needed."""
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import metalit as ml
from metalit.batching import products
from metalit.batching.products import BMM, MM, Products, products_pass

SHARED, LEFT, RIGHT, QUERY = (30, 20), (3, 30, 2), (3, 2, 20), (3, 5, 20)


def drawn(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def changed(function, inputs, change=None, **options):
    "The graph of a function after a change, which must not change what comes out."
    traced = make_fx(function, tracing_mode="fake", **options)(*inputs)
    (change or Products())(traced.graph)
    traced.graph.lint()
    traced.recompile()
    torch.testing.assert_close(traced(*inputs), function(*inputs), rtol=1e-11, atol=1e-11)
    return traced.graph


def built(graph, *size):
    "How many operations give a tensor of this size, turning it and so on left out."
    same = {products.PERMUTE, products.EXPAND}
    return sum(node.op == "call_function" and node.target not in same
               and tuple(node.meta["val"].shape) == size for node in graph.nodes)


def turned(x): return x.permute(0, 2, 1)


USES = {
    "x W": lambda W, x: torch.bmm(x, turned(W)),
    "W x": lambda W, x: torch.bmm(W, turned(x)),
    "x W, twice": lambda W, x: torch.bmm(x, turned(W)) + torch.bmm(2 * x, turned(W)),
    "there and back": lambda W, x: torch.bmm(torch.bmm(x, turned(W)).relu(), W),
    "a multiple": lambda W, x: torch.bmm(x, turned(-3 * W / 2)),
    "a sum": lambda W, x: torch.bmm(x, turned(W + 0.5 * W)),
}
MAKERS = {
    "one step": lambda W, A, B: W - 0.1 * torch.bmm(A, B),
    "decay": lambda W, A, B: W - 0.1 * (torch.bmm(A, B) + 0.5 * W),
    "nothing shared": lambda W, A, B: 0.1 * torch.bmm(A, B),
    "turned": lambda W, A, B: turned(turned(torch.bmm(A, B)) + W.permute(1, 0)),
    "expanded": lambda W, A, B: W.expand(3, 30, 20) + torch.bmm(A, B),
    "of one": lambda W, A, B: torch.bmm(A, B) - W[None],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("maker", MAKERS)
def test_what_is_only_multiplied_is_never_built(maker, use):
    def function(W, A, B, x): return USES[use](MAKERS[maker](W, A, B), x)
    graph = changed(function, drawn(SHARED, LEFT, RIGHT, QUERY))
    assert built(graph, 3, 30, 20) == built(graph, 3, 20, 30) == 0


def test_a_sum_over_tasks_is_one_product():
    def function(A, B): return (-torch.bmm(A, B)).sum(0), torch.bmm(A, B).sum([0], True)
    graph = changed(function, drawn(LEFT, RIGHT))
    assert built(graph, 3, 30, 20) == 0
    assert [tuple(node.meta["val"].shape) for node in graph.nodes if node.target is MM] == [
        (30, 20), (30, 20)]


def test_a_sum_of_another_type_is_left():
    def function(A, B): return torch.bmm(A, B).sum(0, dtype=torch.float64)
    graph = changed(function, drawn(LEFT, RIGHT, dtype=torch.float32))
    *_, out = graph.nodes
    assert out.args[0].meta["val"].dtype == torch.float64


@pytest.mark.parametrize("number", [0.0, float("inf"), float("nan")])
def test_a_factor_that_is_none_is_left(number):
    for function in (lambda M, x: torch.bmm(x, turned(M / number)),
                     lambda M, x: torch.bmm(x, turned(number * M))):
        inputs = drawn((3, 8, 9), (3, 2, 9))
        traced = make_fx(function, tracing_mode="fake")(*inputs)
        Products()(traced.graph)
        traced.recompile()
        torch.testing.assert_close(traced(*inputs), function(*inputs), equal_nan=True)


@pytest.mark.parametrize("look", [
    lambda W: W.square().sum(), lambda W: W[0], lambda W: W.sum(1), lambda W: W * W, lambda W: W])
def test_what_is_looked_at_is_built_once(look):
    def function(W, A, B, x):
        weights = W - 0.1 * torch.bmm(A, B)
        return torch.bmm(x, turned(weights)), look(weights)
    inputs = drawn(SHARED, LEFT, RIGHT, QUERY)
    before = make_fx(function, tracing_mode="fake")(*inputs).graph
    graph = changed(function, inputs)
    now, then = (built(each, 3, 30, 20) + built(each, 3, 20, 30) for each in (graph, before))
    assert now == then > 0
    assert len(graph.find_nodes(op="call_function", target=BMM)) == 2


@pytest.mark.parametrize(("rank", "parts"), [(5, True), (6, True), (7, False)])
def test_parts_have_half_as_many_numbers_at_most_where_stacks_are_small(rank, parts):
    "30 · 20 / 2 = 300 numbers, and 50 for each column."
    inputs = drawn((3, 30, rank), (3, rank, 20), QUERY)
    graph = changed(lambda A, B, x: torch.bmm(x, turned(torch.bmm(A, B))), inputs)
    assert (built(graph, 3, 30, 20) + built(graph, 3, 20, 30) == 0) == parts


def test_large_stacks_are_left_in_parts_up_to_their_own_numbers():
    assert 3 * 300 * 200 >= products.LARGE > 3 * 30 * 20
    inputs = drawn((3, 300, 110), (3, 110, 200), (3, 5, 200))
    graph = changed(lambda A, B, x: torch.bmm(x, turned(torch.bmm(A, B))), inputs)
    assert built(graph, 3, 300, 200) == built(graph, 3, 200, 300) == 0


def test_a_product_of_two_such_stacks_is_left():
    def function(A, B): return torch.bmm(torch.bmm(A, B), turned(torch.bmm(A, B)))
    changed(function, drawn(LEFT, RIGHT))


def test_pairs_are_compared_once():
    "x Bᵀ, and B xᵀ on the way back, are one product."
    def function(A, B, x, y):
        there, back = torch.bmm(A, B), torch.bmm(turned(y), x)
        return torch.bmm(x, turned(there)), torch.bmm(B, turned(back))
    graph = changed(function, drawn(LEFT, RIGHT, QUERY, (3, 5, 30)))
    assert len(graph.find_nodes(op="call_function", target=BMM)) == 3

    def same(A, B, C):
        return torch.bmm(A, torch.bmm(B, C)), torch.bmm(turned(torch.bmm(B, C)), turned(A))
    graph = changed(same, drawn((3, 4, 30), (3, 30, 2), (3, 2, 20)))
    assert len(graph.find_nodes(op="call_function", target=BMM)) == 2


def test_a_factor_goes_to_the_small_result():
    def function(M, x): return torch.bmm(x, turned(-0.5 * M)), torch.bmm(M / 4, turned(x))
    graph = changed(function, drawn((3, 8, 9), (3, 2, 9)))
    assert built(graph, 3, 8, 9) == built(graph, 3, 9, 8) == 0

    def small(A, B): return torch.bmm(2 * A, B)
    graph = changed(small, drawn((3, 8, 2), (3, 2, 9)), products.factors_last)
    assert built(graph, 3, 8, 2) == 1


def test_what_is_only_used_turned_is_computed_turned():
    def function(A, B, C): return turned(turned(torch.bmm(A, B)) - 2 * turned(C)) + 1
    graph = changed(function, drawn((3, 9, 8), (3, 8, 9), (3, 9, 9)), products.upright)
    assert [node.target for node in graph.nodes if node.target is BMM] == [BMM]
    assert sum(products.is_turned(node) for node in graph.nodes) <= 4
    graph = changed(function, drawn((3, 9, 8), (3, 8, 9), (3, 9, 9)))
    assert not any(products.is_turned(node) for node in graph.nodes)


@pytest.mark.parametrize(("a", "b"), [
    ((4, 1), (1, 5)), ((4, 5), (5, 1)), ((1, 5), (5, 4)), ((1, 1), (1, 1)), ((1, 5), (5, 1)),
    ((3, 4, 1), (3, 1, 5)), ((3, 4, 5), (3, 5, 1)), ((3, 1, 5), (3, 5, 4)), ((3, 4, 1), (3, 1, 1))])
def test_thin_products_are_products_of_numbers(a, b):
    graph = changed(torch.matmul if len(a) == 2 else torch.bmm, drawn(a, b))
    assert not [node for node in graph.nodes if node.target in (MM, BMM)]


def test_wide_products_turn_narrow_ones_only():
    def several(a, b, c): return torch.bmm(torch.bmm(a, b), c), torch.bmm(turned(b), b)
    inputs = drawn((3, 8, 4), (3, 4, 2), (3, 2, 16))
    graph = changed(several, inputs, products.wide)
    assert [tuple(node.meta["val"].shape[1:]) for node in graph.nodes if node.target is BMM] == [
        (2, 8), (8, 16), (2, 2)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_coarse_numbers_are_left_alone(dtype):
    def function(W, A, B, x): return torch.bmm(x, turned(W - torch.bmm(A, B)))
    inputs = [each.to(dtype) for each in drawn(SHARED, LEFT, RIGHT, QUERY)]
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    before = str(traced.graph)
    Products()(traced.graph)
    assert str(traced.graph) == before


def test_sizes_that_are_not_known_are_left_alone():
    def function(W, A, B, x): return torch.bmm(x, turned(W - torch.bmm(A, B)))
    traced = make_fx(function, tracing_mode="symbolic")(*drawn(SHARED, LEFT, RIGHT, QUERY))
    before = str(traced.graph)
    Products()(traced.graph)
    assert str(traced.graph) == before


UNKNOWN = {
    "one step": (lambda W, A, B, x: torch.bmm(x, turned(W - torch.bmm(A, B))),
                 (SHARED, LEFT, RIGHT, QUERY)),
    "a sum over tasks": (lambda A, B: torch.bmm(A, B).sum(0), (LEFT, RIGHT)),
    "factors": (lambda M, x: torch.bmm(x, turned(-0.5 * M)), ((3, 8, 9), (3, 2, 9))),
    "turned": (lambda A, B, C: turned(torch.bmm(A, B) - 2 * C), ((3, 9, 8), (3, 8, 9), (3, 9, 9))),
    "tall": (torch.bmm, ((3, 8, 4), (3, 4, 2))), "thin": (torch.bmm, ((3, 8, 4), (3, 4, 1))),
    "thin, of one": (torch.mm, ((1, 4), (4, 5)))}


@pytest.mark.parametrize(("name", "which"), [
    (name, which) for name, (_, shapes) in UNKNOWN.items() for which in range(len(shapes))])
def test_where_the_sizes_of_one_thing_are_not_known(name, which):
    "As where only the number of tasks, or of examples, is a variable of the graph."
    function, shapes = UNKNOWN[name]
    inputs = drawn(*shapes)
    traced = make_fx(function, tracing_mode="fake")(*inputs)
    del traced.graph.find_nodes(op="placeholder")[which].meta["val"]
    Products()(traced.graph)
    traced.graph.lint()
    traced.recompile()
    torch.testing.assert_close(traced(*inputs), function(*inputs), rtol=1e-11, atol=1e-11)


def test_what_has_no_use_and_may_do_something_is_left():
    def function(A, B):
        torch.rand(3)
        return torch.bmm(A, B)
    graph = changed(function, drawn(LEFT, RIGHT), products.without_detours)
    assert any("rand" in str(node.target) for node in graph.nodes)


INNER = {"SGD": lambda steps: ml.SGD(0.1, steps), "momentum": lambda steps: ml.SGD(
    0.1, steps, momentum=0.9), "Adam": lambda steps: ml.Adam(0.1, steps)}


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("inner", INNER)
def test_a_whole_meta_step(inner, steps):
    "In the compiler's own operations, against the same operations as they were."
    from torch._inductor.decomposition import select_decomp_table
    J = ml.MetaLoss(ml.models.mlp(1, 24, 24, 1, seed=0).double(), F.mse_loss,
                    inner=INNER[inner](steps))
    names = [name for name, _ in J.named_parameters()]
    task = ml.tasks.Sinusoids(shots=2).batch(4, seed=0).to(dtype=torch.float64)

    def step(x, y, query_x, query_y, *values):
        def value(theta):
            return torch.func.functional_call(J, theta, (((x, y), (query_x, query_y)),))
        return torch.func.grad_and_value(value)(dict(zip(names, values, strict=True)))
    examples = task.support.x, task.support.y, task.query.x, task.query.y
    graph = changed(step, [*examples, *(p.detach() for p in J.parameters())],
                    decomposition_table=select_decomp_table())
    if inner == "SGD": assert (built(graph, 4, 24, 24) == 0) == (steps < 3)


def test_the_pass_is_one_of_the_compilers():
    from torch._inductor.custom_graph_pass import CustomGraphPass
    found = products_pass()["post_grad_custom_pre_pass"]
    assert isinstance(found, Products) and isinstance(found, CustomGraphPass)
    assert pickle.dumps(Products().uuid())
    from metalit.batching.compiled import cpu_options
    assert isinstance(cpu_options()["post_grad_custom_pre_pass"], Products)
