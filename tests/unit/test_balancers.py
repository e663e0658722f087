"""Balancers against closed forms, hand-made steps, torchjd's aggregators on whole Jacobians, and what they promise."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torchjd.aggregation import IMTLG, MGDA, AlignedMTL, DualProj, PCGrad, UPGrad

from visionkit.errors import UserError
from visionkit.plugins import PluginManager
from visionkit.train import balance
from visionkit.train.aggregation import Cone, bargained, conflict_averse, nonnegative_minimum, shortest
from visionkit.train.balance import Balancer

HEADS = {"a": ("x",), "b": ("y", "z"), "c": ("w",)}
AT_LOSSES = ("uncertainty", "imtl_l", "dwa", "random", "geometric_mean")
AT_FEATURES = ("pcgrad", "cagrad", "mgda", "nash_mtl", "aligned_mtl", "imtl_g", "upgrad", "dualproj")
ALL = ("fixed", *AT_LOSSES, "gradnorm", *AT_FEATURES)
PLUGINS = PluginManager()


def make(name: str, heads: dict[str, tuple[str, ...]] | None = None, **options) -> Balancer:
    balancer = PLUGINS.load("balancer", name)(heads or HEADS, **options)
    assert isinstance(balancer, Balancer)
    return balancer


def losses_of(parameters: Tensor) -> dict[str, dict[str, Tensor]]:
    a, b, c = parameters
    return {"a": {"x": a}, "b": {"y": b / 2, "z": b / 2}, "c": {"w": c}}


def step(balancer: Balancer, values: list[float], labelled: dict[str, int] | None = None) -> tuple[float, list[float]]:
    """The balanced loss, and its derivative by the loss of each head."""
    parameters = torch.tensor(values, requires_grad=True)
    loss = balancer(losses_of(parameters), labelled or {"a": 1, "b": 1, "c": 1})
    loss.backward()
    return loss.item(), parameters.grad.tolist()


def jacobians(heads: int, count: int = 20, seed: int = 0) -> list[Tensor]:
    """Random gradients, some of which conflict."""
    draw = torch.Generator().manual_seed(seed)
    found = [torch.randn(heads, 6, generator=draw, dtype=torch.float64) for _ in range(count)]
    return [j * torch.rand(heads, 1, generator=draw, dtype=torch.float64).add(0.2) for j in found]


def weights_of(name: str, jacobian: Tensor, **options) -> Tensor:
    names = [f"h{i}" for i in range(len(jacobian))]
    gramian = (jacobian @ jacobian.T).float()
    return make(name, dict.fromkeys(names, ("l",)), **options).weigh(gramian, names).double()


# -- all of them


@pytest.mark.parametrize("name", ALL)
def test_state_survives_a_checkpoint_and_goes_on_alike(name):
    options = {"period": 2} if name == "dwa" else {}
    first, second = make(name, **options), make(name, **options)
    jacobian = jacobians(3)[0]
    gramian = (jacobian @ jacobian.T).float()

    def run(balancer: Balancer, steps: range) -> list[float]:
        found = []
        for i in steps:
            loss, gradient = step(balancer, [1.0 + i, 2.0, 3.0 / (i + 1)])
            found += [loss, *gradient, *balancer.weigh(gramian, list(HEADS)).tolist()]
            for parameter in balancer.parameters():
                parameter.data -= 0.1 * parameter.grad
                parameter.grad = None
        return found

    run(first, range(5))
    second.load_state_dict(first.state_dict())
    assert run(first, range(5, 8)) == run(second, range(5, 8))


@pytest.mark.parametrize("name", ALL)
def test_a_head_that_learnt_nothing_stays_in_the_graph_and_counts_for_nothing(name):
    whole, part = make(name), make(name, {"a": ("x",), "c": ("w",)})
    for i in range(3):
        values = [1.0 + i, 0.0, 2.0]
        loss, gradient = step(whole, values, {"a": 2, "b": 0, "c": 1})
        parameters = torch.tensor([values[0], values[2]], requires_grad=True)
        alone = part({"a": {"x": parameters[0]}, "c": {"w": parameters[1]}}, {"a": 2, "c": 1})
        if name != "random":
            assert loss == pytest.approx(alone.item(), rel=1e-6)
        assert math.isfinite(gradient[1])
    for key, value in whole.named_parameters():
        assert (value.grad is None) == key.endswith(".1"), key


@pytest.mark.parametrize("name", ALL)
def test_base_weights_come_first(name):
    weighted, plain = make(name, weights={"b": 3.0, "b/z": 0.5}), make(name)
    totals = weighted.totals(losses_of(torch.tensor([1.0, 4.0, 2.0])))
    assert [totals[h].item() for h in HEADS] == [1.0, 3.0 * (2.0 + 0.5 * 2.0), 2.0]
    assert step(weighted, [1.0, 4.0, 2.0])[0] == pytest.approx(step(plain, [1.0, 9.0, 2.0])[0], rel=1e-6)
    with pytest.raises(UserError, match="no head or loss 'd'"):
        make(name, weights={"d": 1.0})


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_drawn_from_the_global_generator(name):
    before = torch.get_rng_state()
    step(make(name), [1.0, 2.0, 3.0])
    weights_of(name, jacobians(4)[0])
    assert torch.equal(before, torch.get_rng_state())


# -- weights of losses


def test_uncertainty_is_the_formula_of_the_paper():
    balancer = make("uncertainty", classification=["c"])
    with torch.no_grad():
        for s, value in zip(balancer.log_variances, (0.0, 0.4, -0.2)):
            s.copy_(torch.tensor(value))
    loss, gradient = step(balancer, [1.0, 2.0, 3.0])
    expected = [0.5, 0.5 * math.exp(-0.4), math.exp(0.2)]
    assert gradient == pytest.approx(expected)
    assert loss == pytest.approx(expected[0] + 2 * expected[1] + 3 * expected[2] + (0.0 + 0.4 - 0.2) / 2)
    # At its minimum s is the logarithm of the loss: of a variance.
    assert balancer.log_variances[0].grad.item() == pytest.approx(-0.5 * 1.0 + 0.5)
    with pytest.raises(UserError, match="no head 'q'"):
        make("uncertainty", classification=["q"])


def test_imtl_l_brings_every_scaled_loss_to_one():
    balancer = make("imtl_l")
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        step(balancer, [0.1, 1.0, 7.0])
        optimizer.step()
    _, gradient = step(balancer, [0.1, 1.0, 7.0])
    assert gradient == pytest.approx([1 / 0.1, 1.0, 1 / 7.0], rel=1e-3)


def test_dwa_weighs_by_the_ratio_of_the_last_two_periods():
    balancer = make("dwa", {"a": ("x",), "b": ("y",)}, period=2)

    def run(a: float, b: float) -> tuple[float, float]:
        parameters = torch.tensor([a, b], requires_grad=True)
        balancer({"a": {"x": parameters[0]}, "b": {"y": parameters[1]}}, {"a": 1, "b": 1}).backward()
        return tuple(parameters.grad.tolist())

    for losses in [(0.5, 2.0), (1.5, 4.0), (1.0, 1.0), (0.8, 2.6)]:  # means (1, 3), then (0.9, 1.8): ratios .9, .6
        assert run(*losses) == (1.0, 1.0)
    for _ in range(2):
        assert run(1.0, 1.0) == pytest.approx((1.07486, 0.92514), abs=1e-5)


def test_dwa_leaves_heads_alone_that_it_does_not_know_yet():
    balancer = make("dwa", period=1)
    for values in ([1.0, 0.0, 2.0], [0.9, 0.0, 1.2]):
        step(balancer, values, {"a": 1, "b": 0, "c": 1})
    _, gradient = step(balancer, [1.0, 5.0, 1.0])
    assert gradient == pytest.approx([1.07486, 1.0, 0.92514], abs=1e-5)


def test_random_weights_are_a_softmax_of_normal_numbers_that_depend_on_seed_and_step():
    first = make("random")
    drawn = [step(first, [1.0, 1.0, 1.0])[1] for _ in range(300)]
    again = make("random")
    assert drawn[:3] == [step(again, [1.0, 1.0, 1.0])[1] for _ in range(3)]
    assert drawn[0] != step(make("random", seed=1), [1.0, 1.0, 1.0])[1]
    drawn = torch.tensor(drawn)
    torch.testing.assert_close(drawn.sum(1), torch.full((300,), 3.0))
    scores = drawn.log() - drawn.log().mean(1, keepdim=True)
    assert scores.mean(0).abs().max() < 0.2
    assert scores.std().item() == pytest.approx(math.sqrt(2 / 3), abs=0.08)  # of normal numbers less their mean of 3


def test_the_geometric_mean_and_its_gradient():
    parameters = torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    parameters.prod().pow(1 / 3).backward()
    loss, gradient = step(make("geometric_mean"), [1.0, 2.0, 4.0])
    assert loss == pytest.approx(2.0)
    assert gradient == pytest.approx(parameters.grad.tolist())
    loss, gradient = step(make("geometric_mean"), [4.0, 0.0, 9.0])
    assert loss == pytest.approx(6.0)
    with pytest.raises(UserError, match=r"head 'b' is -2\b"):
        step(make("geometric_mean"), [1.0, -2.0, 4.0])


def test_gradnorm_takes_the_step_of_the_paper_by_hand():
    balancer = make("gradnorm", alpha=1.5, lr=0.1)
    step(balancer, [1.0, 2.0, 4.0])  # the first losses
    _, gradient = step(balancer, [0.5, 2.0, 1.0])
    assert gradient == [1.0, 1.0, 1.0]
    norms = torch.tensor([3.0, 2.0, 1.0])
    assert balancer.weigh(torch.diag(norms**2), ["a", "b", "c"]).tolist() == [1.0, 1.0, 1.0]
    ratios = torch.tensor([0.5, 1.0, 0.25])
    target = 2.0 * (ratios / ratios.mean()) ** 1.5
    logs = torch.zeros(3, requires_grad=True)  # G_i = w_i g_i
    ((logs.exp() * norms - target).abs() / 2.0).sum().backward()
    weights = torch.exp(-0.1 * logs.grad)
    weights = weights / weights.sum() * 3
    _, gradient = step(balancer, [0.5, 2.0, 1.0])
    assert gradient == pytest.approx(weights.tolist())
    assert weights[0] < weights[2] < weights[1]  # much gradient, little, and slow to train


def test_gradnorm_moves_only_heads_that_learnt_and_skips_what_overflowed():
    balancer = make("gradnorm")
    step(balancer, [1.0, 0.0, 1.0], {"a": 1, "b": 0, "c": 1})
    balancer.weigh(torch.tensor([[9.0, 0.0], [0.0, 1.0]]), ["a", "c"])
    a, b, c = balancer.factors.tolist()
    assert (a < 1 < c, b) == (True, 1.0)
    assert a + b + c == pytest.approx(3.0)
    assert balancer.first.isnan().tolist() == [False, True, False]
    balancer.weigh(torch.tensor([[math.inf, 0.0], [0.0, 1.0]]), ["a", "c"])
    assert balancer.factors.tolist() == [a, b, c]


def test_gradnorm_brings_norms_to_balance():
    balancer = make("gradnorm", {"a": ("x",), "b": ("y",)}, alpha=0.0)
    for _ in range(400):
        balancer({"a": {"x": torch.tensor(1.0)}, "b": {"y": torch.tensor(1.0)}}, {"a": 1, "b": 1})
        balancer.weigh(torch.diag((balancer.factors * torch.tensor([5.0, 0.1])) ** 2), ["a", "b"])
    large, small = (balancer.factors * torch.tensor([5.0, 0.1])).tolist()
    assert large / small == pytest.approx(1.0, abs=0.1)


# -- weights of gradients


REFERENCES = {
    "aligned_mtl": AlignedMTL(torch.ones(4, dtype=torch.float64)),
    "imtl_g": IMTLG(),
    "mgda": MGDA(epsilon=1e-9, max_iters=8000),
    "upgrad": UPGrad(torch.ones(4, dtype=torch.float64), Cone()),
    "dualproj": DualProj(torch.ones(4, dtype=torch.float64), Cone()),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_the_step_equals_torchjds_on_the_whole_jacobian(name):
    for jacobian in jacobians(4, count=3 if name == "mgda" else 10):
        ours = weights_of(name, jacobian) @ jacobian
        atol = 5e-3 if name == "mgda" else 1e-4  # Frank and Wolfe's iteration creeps
        torch.testing.assert_close(ours, REFERENCES[name](jacobian), atol=atol, rtol=1e-3)


def test_pcgrad_equals_torchjds_where_order_does_not_matter_and_the_mean_over_orders_else():
    for jacobian in jacobians(2):
        torch.testing.assert_close(weights_of("pcgrad", jacobian) @ jacobian, PCGrad()(jacobian), atol=1e-5, rtol=1e-4)
    jacobian = jacobians(3, seed=3)[0]
    names = list(HEADS)
    balancer = make("pcgrad")
    gramian = (jacobian @ jacobian.T).float()
    seen = {tuple(round(w, 4) for w in balancer.weigh(gramian, names).tolist()) for _ in range(60)}
    assert seen == _all_orders(jacobian)


def _all_orders(jacobian: Tensor) -> set[tuple[float, ...]]:
    """PCGrad's weights on explicit gradients, for every order of every head."""
    by_head = []
    for i in range(len(jacobian)):
        found = []
        for order in itertools.permutations([j for j in range(len(jacobian)) if j != i]):
            gradient = jacobian[i]
            for j in order:
                conflict = min(float(gradient @ jacobian[j]), 0.0)
                gradient = gradient - conflict / float(jacobian[j] @ jacobian[j]) * jacobian[j]
            found.append(torch.linalg.lstsq(jacobian.T, gradient[:, None]).solution[:, 0])
        by_head.append(found)
    return {tuple(round(w, 4) for w in sum(chosen).tolist()) for chosen in itertools.product(*by_head)}


@pytest.mark.parametrize("name", ["mgda", "upgrad", "dualproj", "nash_mtl"])
@pytest.mark.parametrize("heads", [2, 3, 6])
def test_no_loss_rises_along_the_step(name, heads):
    for jacobian in jacobians(heads):
        gains = jacobian @ (weights_of(name, jacobian) @ jacobian)
        assert gains.min() > -1e-4


def test_no_loss_rises_along_pcgrads_step_with_two_heads():
    for jacobian in jacobians(2, count=50):
        assert (jacobian @ (weights_of("pcgrad", jacobian) @ jacobian)).min() > -1e-5


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "aligned_mtl", "upgrad", "dualproj"])
def test_heads_that_agree_give_the_plain_sum(name):
    gradient = torch.rand(1, 6, dtype=torch.float64)
    jacobian = gradient.repeat(3, 1)
    torch.testing.assert_close(weights_of(name, jacobian) @ jacobian, jacobian.sum(0), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["mgda", "imtl_g"])
def test_heads_that_agree_give_a_mean_where_weights_add_up_to_one(name):
    jacobian = torch.rand(1, 6, dtype=torch.float64).repeat(3, 1)
    torch.testing.assert_close(weights_of(name, jacobian) @ jacobian, jacobian[0], rtol=1e-3, atol=1e-5)
    for jacobian in jacobians(4):
        assert weights_of(name, jacobian).sum().item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", AT_FEATURES)
def test_weights_do_not_depend_on_the_common_scale_of_gradients(name):
    jacobian = jacobians(3)[1]
    ours = weights_of(name, jacobian)
    for scale in (1e-6, 1e5):
        torch.testing.assert_close(weights_of(name, jacobian * scale), ours, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", AT_FEATURES)
def test_one_head_alone_and_gradients_that_overflowed_are_left_as_they_are(name):
    balancer = make(name)
    assert balancer.weigh(torch.tensor([[4.0]]), ["b"]).tolist() == [1.0]
    assert balancer.weigh(torch.full((2, 2), math.inf), ["a", "b"]).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", AT_FEATURES)
@pytest.mark.parametrize("opposed", [True, False])
def test_gradients_that_depend_on_one_another_give_a_finite_step(name, opposed):
    jacobian = torch.tensor([[1.0, 0.0, 0.0], [-1.0 if opposed else 2.0, 0.0, 0.0], [0.0, 0.5, 0.0]]).double()
    direction = weights_of(name, jacobian) @ jacobian
    assert torch.isfinite(direction).all()
    assert direction.norm() < 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_imtl_g_of_dependent_gradients_is_torchjds_of_exact_ones(dtype):
    """Small integers are exact in every precision. Divided by 7 they are not, and neither is their dependence."""
    draw = torch.Generator().manual_seed(0)
    checked = 0
    for _ in range(30):
        rows = torch.randint(-4, 5, (2, 6), generator=draw)
        mixture = torch.randint(-2, 3, (4, 2), generator=draw)
        jacobian = (torch.cat((rows, mixture @ rows))).double()
        jacobian = jacobian[jacobian.any(1)]
        expected = IMTLG()(jacobian)
        inexact = (jacobian / 7).float().to(dtype)
        gramian = inexact @ inexact.T
        names = [f"h{i}" for i in range(len(jacobian))]
        weights = make("imtl_g", dict.fromkeys(names, ("l",))).weigh(gramian, names).double()
        if expected.norm() < 100:  # else the weights' sum is near 0, and they are badly conditioned
            checked += 1
            torch.testing.assert_close(weights @ jacobian, expected, rtol=1e-3, atol=1e-3)
    assert checked > 20


@pytest.mark.parametrize(("factor", "expected"), [(2.0, [1 / 3, 2 / 3]), (-1.0, [0.0, 0.0]), (-3.0, [-0.5, 1.5])])
def test_imtl_g_of_two_parallel_gradients_has_a_closed_form(factor, expected):
    """``G`` has rank 1, so its pseudo-inverse is ``G`` over the square of its trace."""
    gradient = torch.randn(1, 5000, generator=torch.Generator().manual_seed(0)) / 3
    levels = [{0: value} for value in torch.cat((gradient, gradient * factor))]
    found = balance.gramian(dict(zip("ab", levels)))
    weights = make("imtl_g", {"a": ("l",), "b": ("l",)}).weigh(found, ["a", "b"])
    assert weights.tolist() == pytest.approx(expected, abs=1e-5)


def test_imtl_g_with_a_tiny_gradient_that_is_independent():
    jacobian = torch.tensor([[1.0, 0.0], [1e-7, 1e-7]], dtype=torch.float64)
    step = make("imtl_g", {"a": ("l",), "b": ("l",)}).weigh(jacobian @ jacobian.T, ["a", "b"]).double() @ jacobian
    projections = jacobian @ step / jacobian.norm(dim=1)
    torch.testing.assert_close(projections[0], projections[1], rtol=1e-2, atol=0.0)


def test_the_shortest_vector_of_two_has_a_closed_form():
    for jacobian in jacobians(2):
        one, other = jacobian
        share = float((other - one) @ other / ((one - other) @ (one - other)))
        share = min(max(share, 0.0), 1.0)
        assert weights_of("mgda", jacobian).tolist() == pytest.approx([share, 1 - share], abs=1e-4)


@pytest.mark.parametrize("heads", [3, 5])
def test_the_shortest_vector_is_the_one_that_all_gradients_reach_beyond(heads):
    for jacobian in jacobians(heads):
        gramian = jacobian @ jacobian.T
        gramian = gramian / gramian.diagonal().mean()
        a = shortest(gramian)
        assert a.min() >= 0
        # A point x of a convex hull is its shortest if and only if g.x >= x.x for all of its corners.
        assert (gramian @ a - a @ gramian @ a).min() > -1e-4


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
def test_cagrads_step_has_the_largest_smallest_gain_in_its_ball(c):
    draw = torch.Generator().manual_seed(1)
    for heads in (2, 3, 4):
        for jacobian in jacobians(heads, count=5):
            jacobian = jacobian / (jacobian @ jacobian.T).diagonal().mean().sqrt()
            mean = jacobian.mean(0)
            ours = conflict_averse(jacobian @ jacobian.T, c) @ jacobian
            radius = c * mean.norm()
            assert (ours - mean).norm() <= radius * (1 + 1e-4)
            others = torch.randn(3000, jacobian.shape[1], generator=draw, dtype=torch.float64)
            others = mean + radius * others / others.norm(dim=1, keepdim=True)
            best = (others @ jacobian.T).min(1).values.max()
            assert (jacobian @ ours).min() > best - 1e-3
            # And the dual of the paper, on a grid, bounds it from above.
            share = torch.rand(20000, heads, generator=draw, dtype=torch.float64).log().neg()
            mixed = share / share.sum(1, keepdim=True) @ jacobian
            bound = (mixed @ mean + radius * mixed.norm(dim=1)).min()
            assert (jacobian @ ours).min() < bound + 1e-3
            assert bound - (jacobian @ ours).min() < 0.05


def test_cagrad_with_no_radius_is_the_plain_sum():
    assert weights_of("cagrad", jacobians(3)[0], c=0.0).tolist() == pytest.approx([1.0] * 3)
    with pytest.raises(UserError, match="must not be negative"):
        make("cagrad", c=-1.0)


def test_nash_weights_solve_the_equation_of_the_paper():
    for heads in (2, 3, 6):
        for jacobian in jacobians(heads):
            gramian = jacobian @ jacobian.T
            gramian = gramian / gramian.diagonal().mean()
            a = bargained(gramian)
            assert a.min() > 0
            torch.testing.assert_close(gramian @ a, 1 / a, rtol=1e-2, atol=1e-3)
            norm = (weights_of("nash_mtl", jacobian) @ jacobian).norm()
            root_mean_square = jacobian.norm(dim=1).square().mean().sqrt()
            torch.testing.assert_close(norm, math.sqrt(heads) * root_mean_square, rtol=1e-3, atol=0)


def test_the_direction_of_nash_does_not_depend_on_the_scale_of_a_loss():
    jacobian = jacobians(3)[2]
    scaled = jacobian * torch.tensor([[1.0], [7.0], [0.2]], dtype=torch.float64)
    one, other = weights_of("nash_mtl", jacobian) @ jacobian, weights_of("nash_mtl", scaled) @ scaled
    assert nn.functional.cosine_similarity(one, other, dim=0) > 0.9999


def test_projection_onto_the_cone_of_two_has_a_closed_form():
    jacobian = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    # Each gradient loses its part against the other: (1/2, 1/2) and (0, 1).
    assert (weights_of("upgrad", jacobian) @ jacobian).tolist() == pytest.approx([0.5, 1.5], abs=1e-4)
    # The sum (0, 1) harms nobody.
    assert (weights_of("dualproj", jacobian) @ jacobian).tolist() == pytest.approx([0.0, 1.0], abs=1e-4)


@pytest.mark.parametrize("heads", [2, 4, 7])
def test_the_solver_finds_the_minimum_that_trying_all_supports_finds(heads):
    draw = torch.Generator().manual_seed(heads)
    for _ in range(10):
        half = torch.randn(heads, heads + 1, generator=draw, dtype=torch.float64)
        matrix = (half @ half.T).numpy() + 1e-3 * torch.eye(heads).double().numpy()
        target = torch.randn(heads, generator=draw, dtype=torch.float64).numpy()
        found = nonnegative_minimum(matrix, target)
        assert found.min() >= 0
        best = 0.0
        for size in range(1, heads + 1):
            for support in map(list, itertools.combinations(range(heads), size)):
                part = torch.linalg.solve(
                    torch.from_numpy(matrix[support][:, support]), torch.from_numpy(target[support])
                ).numpy()
                if part.min() >= 0:
                    best = min(best, -0.5 * float(part @ target[support]))
        assert 0.5 * found @ matrix @ found - target @ found == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("name", ["gradnorm", *AT_FEATURES])
def test_weights_are_what_reaches_the_shared_features(name):
    """Through the node where heads branch off: one backward pass, heads' own parameters untouched."""
    torch.manual_seed(0)
    balancer = make(name)
    features = torch.randn(2, 3, 4, 4, requires_grad=True)
    own = {head: nn.Conv2d(3, 1, 1) for head in HEADS}
    shared = features * 1.0
    branches = balancer.branch({head: {"c1": shared} for head in HEADS})
    totals = {head: own[head](branches[head]["c1"]).square().mean() for head in HEADS}
    plain = {head: own[head](features).square().mean() for head in HEADS}
    alone = torch.stack([torch.autograd.grad(plain[head], features)[0].flatten() for head in HEADS])
    kernels = {head: torch.autograd.grad(own[head](features).square().mean(), own[head].weight)[0] for head in HEADS}
    losses = {h: {n: totals[h] / len(names) for n in names} for h, names in HEADS.items()}
    balancer(losses, dict.fromkeys(HEADS, 1)).backward()
    expected = make(name)
    expected(losses, dict.fromkeys(HEADS, 1))
    weights = expected.weigh(alone @ alone.T, list(HEADS))
    torch.testing.assert_close(features.grad.flatten(), weights @ alone, rtol=1e-3, atol=1e-6)
    for head in HEADS:
        torch.testing.assert_close(own[head].weight.grad, kernels[head], rtol=1e-4, atol=1e-6)
