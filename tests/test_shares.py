"""Ways to share a sparsity out: exact totals, examples by hand, degenerate layers, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpfast
from mpfast import masks, reconstruct
from mpfast.masks import ScoreCounts, cut_shares, mapped_shares, row_counts, spread
from mpfast.models import METHODS, Budget, share_out
from mpfast.models.layer_data import LayerData, block_of, depths_of
from mpfast.spectra import fixed_aspect_hill
from mpfast.support.checks import floor_count
from mpfast.support.errors import InvalidValueError

RNG = np.random.default_rng(0)
SHAPES = {"attn.q": (48, 32), "mlp.up": (96, 32), "mlp.down": (32, 96)}


def moment_of(inputs, rng=RNG, scales=None):
    x = rng.standard_normal((4 * inputs, inputs)) * (np.ones(inputs) if scales is None else scales)
    return x.T @ x / len(x)


@pytest.fixture(scope="module")
def known():
    """Weights of four blocks, moments and gradients of all their layers."""
    rng = np.random.default_rng(1)
    weights, moments, gradients = {}, {}, {}
    for block in range(4):
        for kind, (rows, inputs) in SHAPES.items():
            name = f"blocks.{block}.{kind}.weight"
            weights[name] = ((1 + block) * rng.standard_normal((rows, inputs))).astype(np.float32)
            moments[name] = moment_of(inputs, rng, np.linspace(0.1, 2, inputs))
            gradients[name] = rng.uniform(0.1, 1, rows)
    return weights, moments, gradients


def needs_of(method, known):
    """The arguments of `share_out` that a method needs."""
    _, moments, gradients = known
    offered = {"moments": moments, "gradients": gradients}
    return {need: offered[need] for need in METHODS[method].needs if need in offered}


@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.6, 0.95, 1.0])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:.*nothing is left of")
def test_every_budget_is_exact_and_within_the_usual_ceiling(method, sparsity, known):
    budget = share_out(known[0], sparsity, method=method, progress=False, **needs_of(method, known))
    assert isinstance(budget, Budget)
    assert budget.method == method
    assert budget.pruned == floor_count(sparsity, budget.entries)
    assert [row.name for row in budget] == list(known[0])
    assert max(row.sparsity for row in budget) <= max(0.9, (1 + sparsity) / 2)
    assert Budget.from_json(budget.to_json()) == budget


@pytest.mark.parametrize("method", METHODS)
def test_a_name_is_the_budget_that_it_makes(method, known):
    """`prune` by method, by the budget's name and by the budget itself takes the same number of every layer."""
    weights, moments, _ = known
    needs = needs_of(method, known)
    counts = [row.pruned for row in share_out(weights, 0.6, method=method, progress=False, **needs)]
    by_method = mpfast.prune(weights, sparsity=0.6, method=method, progress=False, **needs)
    by_name = mpfast.prune(weights, sparsity=0.6, budget=method, progress=False, **{"moments": moments, **needs})
    assert [row.pruned for row in by_method.budget] == counts
    assert [row.pruned for row in by_name.budget] == counts
    assert by_name.budget.method == method
    assert all(row.updated for row in by_name.budget)  # by optimal brain surgeon, with these shares
    for row, kept in zip(by_name.budget, by_name.masks.values(), strict=True):
        assert row.pruned == kept.size - np.count_nonzero(kept)


@pytest.mark.parametrize("method", METHODS)
def test_one_layer_gets_it_all(method):
    rng = np.random.default_rng(2)
    name, weights = "fc.weight", rng.standard_normal((24, 16))
    one = ({name: weights}, {name: moment_of(16, rng)}, {name: np.ones(24)})
    budget = share_out(one[0], 0.45, method=method, progress=False, **needs_of(method, one))
    assert budget.pruned == floor_count(0.45, 24 * 16)


@pytest.mark.parametrize("method", METHODS)
def test_a_layer_of_zeros_is_no_obstacle(method):
    rng = np.random.default_rng(3)
    weights = {f"layers.{i}.fc.weight": rng.standard_normal((24, 16)) * (i != 1) for i in range(3)}
    zero = (weights, dict.fromkeys(weights, moment_of(16, rng)), dict.fromkeys(weights, np.ones(24)))
    budget = share_out(weights, 0.5, method=method, progress=False, **needs_of(method, zero))
    assert budget.pruned == floor_count(0.5, 3 * 24 * 16)


@pytest.mark.parametrize("method", METHODS)
def test_bounds_and_groups_hold_whatever_the_method(method, known):
    budget = share_out(
        known[0],
        0.5,
        method=method,
        floor={"*.0.*": 0.4},
        ceiling=0.6,
        groups={"q": "*attn*"},
        exclude="*.3.mlp.down.weight",
        progress=False,
        **needs_of(method, known),
    )
    shares = {row.name: row.sparsity for row in budget}
    assert "blocks.3.mlp.down.weight" not in shares
    assert budget.pruned == floor_count(0.5, budget.entries)
    assert max(shares.values()) <= 0.6
    assert min(share for name, share in shares.items() if ".0." in name) >= 0.4
    # Equal up to the rounding to whole entries.
    assert np.ptp([share for name, share in shares.items() if "attn" in name]) <= 2 / (48 * 32)


def shares_of(method, layers, values, sparsity, low=0.0, high=1.0):
    from mpfast.models.layer_data import Target

    count = sum(layer.size for layer in layers)
    bounds = (np.broadcast_to(np.asarray(bound, float), len(layers)) for bound in (low, high))
    return METHODS[method].rule(layers, values, Target(sparsity, floor_count(sparsity, count), *bounds))


def blocks(count, size=100):
    return [LayerData(f"h.{i}.fc.weight", size) for i in range(count)]


class TestExamplesByHand:
    def test_by_depth_is_an_arithmetic_progression(self):
        names = ["embed.fc.weight", *(f"h.{i}.{kind}.weight" for i in (10, 2, 6) for kind in "ab")]
        found = shares_of("by_depth", [LayerData(name, 10) for name in names], [], 0.5)
        np.testing.assert_allclose(found, [0.5, 0.6, 0.6, 0.4, 0.4, 0.5, 0.5])

    def test_each_stack_has_its_own_depths(self):
        names = ["encoder.h.0.a.weight", "decoder.h.0.a.weight", "encoder.h.1.a.weight"]
        np.testing.assert_array_equal(depths_of(names), [-1, 0, 1])
        assert [block_of(name) for name in names] == ["encoder.h.0", "decoder.h.0", "encoder.h.1"]
        assert block_of("0.down.weight") == "0"
        assert block_of("fc1.weight") == "fc1.weight"  # a number in a word is no block

    @pytest.mark.parametrize("method", ["alphapruning", "farms"])
    def test_hill_exponents_of_blocks_map_linearly(self, method):
        """With epsilon 0.3: exponents 2, 4, 6 of equal layers give 0.7, 1 and 1.3 of the target."""
        layers = [LayerData(f"h.{i}.{kind}.weight", 100) for i in range(3) for kind in "ab"]
        found = shares_of(method, layers, [1.0, 3.0, 4.0, 4.0, 5.0, 7.0], 0.5)
        np.testing.assert_allclose(found, [0.35, 0.35, 0.5, 0.5, 0.65, 0.65])
        # What has no exponent is taken for the mean.
        np.testing.assert_allclose(shares_of(method, blocks(3), [2.0, math.nan, 6.0], 0.5), [0.35, 0.5, 0.65])

    def test_alphapruning_reads_the_exponent_of_the_larger_half(self, known):
        analysis = mpfast.analyze(known[0])
        exponents = [row.metrics["hill_alpha_half"] for row in analysis]
        means = np.repeat(np.reshape(exponents, (4, 3)).mean(axis=1), 3)
        wishes = mapped_shares(means, [math.prod(row.shape) for row in analysis], 0.6)
        found = [row.sparsity for row in analysis.budget(0.6, method="alphapruning", ceiling=1)]
        np.testing.assert_allclose(found, wishes, atol=1e-3)

    def test_owl_counts_what_is_five_times_the_mean(self):
        """Blocks of 100 scores, of which 0, 2 and 4 are outliers: 0.08 above the target, on it, 0.08 below."""
        scores = [ScoreCounts.of(np.r_[np.ones(100 - n), np.full(n, 40.0)]) for n in (0, 2, 4)]
        found = shares_of("owl", blocks(3), scores, 0.6)
        np.testing.assert_allclose(found, [0.68, 0.6, 0.52])

    def test_owl_takes_the_mean_over_a_block(self):
        """A layer of large scores beside one of small: of their common mean, 2.5, it is no multiple of five."""
        layers = [LayerData("h.0.a.weight", 100), LayerData("h.0.b.weight", 100), LayerData("h.1.a.weight", 100)]
        scores = [ScoreCounts.of(np.full(100, v)) for v in (1.0, 4.0)]
        scores.append(ScoreCounts.of(np.r_[np.ones(99), 90.0]))
        np.testing.assert_allclose(shares_of("owl", layers, scores, 0.5), [0.58, 0.58, 0.42])

    def test_entropy_ranks_map_linearly(self):
        np.testing.assert_allclose(shares_of("entropy_rank", blocks(3), [0.2, 0.3, 0.4], 0.6), [0.7, 0.6, 0.5])

    def test_the_entropy_rank_of_equal_energies_is_their_number(self):
        """W H^(1/2) with two equal singular values and none besides: rank 2 of 4."""
        weights = np.diag([1.0, 0.5, 0.0, 0.0])
        factor = reconstruct.Factor(np.diag([1.0, 4.0, 1.0, 1.0]), damping=0)
        assert METHODS["entropy_rank"].measure(LayerData("a", 16, None, weights, factor), 0.5) == pytest.approx(0.5)

    def test_gauss_newton_cuts_by_the_change_of_the_loss(self):
        """Against all scores w^2 C_jj G_i sorted, within one bin of 0.8 % in the root."""
        rng = np.random.default_rng(4)
        weights = {f"h.{i}.fc.weight": rng.standard_normal((40, 30)) for i in range(3)}
        moments = {name: np.diag(rng.uniform(0.5, 2, 30)) for name in weights}
        gradients = {name: rng.uniform(0.5, 1, 40) for name in weights}
        scores = {name: w**2 * np.diagonal(moments[name]) * gradients[name][:, None] for name, w in weights.items()}
        cut = np.sort(np.concatenate([s.ravel() for s in scores.values()]))[floor_count(0.5, 3600)]
        budget = share_out(weights, 0.5, method="gauss_newton", moments=moments, gradients=gradients)
        near = [np.count_nonzero(np.abs(np.log(s / cut)) < 2 * 2**-7) for s in scores.values()]
        for row, slack in zip(budget, near, strict=True):
            assert abs(row.pruned - np.count_nonzero(scores[row.name] < cut)) <= slack + 1

    def test_gauss_newton_goes_no_further_than_a_quarter(self):
        weights = {"h.0.fc.weight": np.full((10, 10), 1e-3), "h.1.fc.weight": np.ones((10, 10))}
        same = {"moments": dict.fromkeys(weights, np.eye(10)), "gradients": dict.fromkeys(weights, np.ones(10))}
        assert [row.pruned for row in share_out(weights, 0.5, method="gauss_newton", **same)] == [75, 25]

    def test_output_error_equalises_what_one_more_entry_costs(self):
        """Errors a e^(b s): the marginal cost of an entry, a b e^(b s) / n, is the same in both layers."""
        layers = [LayerData("h.0.fc.weight", 100), LayerData("h.1.fc.weight", 300)]
        at = np.array([0.375, 0.5, 0.625])
        curves = [(at, 0.001 * np.exp(6 * at)), (at, 0.002 * np.exp(5 * at))]
        first, second = shares_of("output_error", layers, curves, 0.5, 0.25, 0.75)
        assert 100 * first + 300 * second == pytest.approx(200, abs=0.5)
        costs = [0.006 * math.exp(6 * first) / 100, 0.01 * math.exp(5 * second) / 300]
        # Shares are interpolated on a grid of 256 in costs of up to e^3.
        assert costs[0] == pytest.approx(costs[1], rel=0.01)

    def test_output_error_measures_what_optimal_brain_surgeon_leaves(self):
        rng = np.random.default_rng(5)
        weights, factor = rng.standard_normal((16, 24)), reconstruct.Factor(moment_of(24, rng))
        shares, errors = METHODS["output_error"].measure(LayerData("a", 384, None, weights, factor), 0.6)
        np.testing.assert_allclose(shares, [0.45, 0.6, 0.7])
        assert errors[1] == reconstruct.prune(weights, factor, sparsity=0.6, refit=0).error
        assert (np.diff(errors) > 0).all()

    def test_rows_lose_as_many_as_each_other(self, known):
        result = mpfast.prune(known[0], sparsity=0.37, method="row", progress=False)
        assert result.budget.pruned == floor_count(0.37, result.budget.entries)
        for name, kept in result.masks.items():
            gone = np.count_nonzero(~kept, axis=1)
            assert np.ptp(gone) <= 1
            for row, keep, count in zip(np.abs(known[0][name]), kept, gone, strict=True):
                assert count in (0, len(row)) or row[~keep].max() <= row[keep].min()

    def test_a_budget_by_row_prunes_by_row(self, known):
        by_name = mpfast.prune(known[0], sparsity=0.5, progress=False)
        budget = share_out(known[0], 0.5)
        assert by_name.budget.method == budget.method == "row"  # what is done where nothing is asked for
        for name, kept in mpfast.prune(known[0], budget=budget, progress=False).masks.items():
            np.testing.assert_array_equal(kept, by_name.masks[name])


class TestRefusals:
    def test_an_unknown_method_lists_those_that_there_are(self, known):
        with pytest.raises(InvalidValueError) as caught:
            share_out(known[0], 0.5, method="guess")
        assert caught.value.fact == f"must be one of {', '.join(METHODS)}, not 'guess'"
        with pytest.raises(InvalidValueError) as caught:
            mpfast.prune(known[0], sparsity=0.5, budget="guess")
        assert caught.value.argument == "budget"
        assert caught.value.fact.startswith(f"must be one of {', '.join(METHODS)} or a Budget")

    @pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if "moments" in entry.needs])
    def test_a_method_says_what_it_lacks(self, method, known):
        with pytest.raises(ValueError, match=rf"share_out\(\): method {method} needs moments; collect them"):
            share_out(known[0], 0.5, method=method)
        with pytest.raises(ValueError, match=rf"budget\(\): method {method} needs weights.*share_out"):
            mpfast.analyze(known[0]).budget(0.5, method=method)
        with pytest.raises(ValueError, match=rf"prune\(\): budget {method} needs moments"):
            mpfast.prune(known[0], sparsity=0.5, budget=method)

    def test_gradients(self, known):
        weights, moments, gradients = known
        options = {"method": "gauss_newton", "moments": moments}
        with pytest.raises(ValueError, match=r"needs gradients; mpfast\.integrations\.torch\.output_gradients"):
            share_out(weights, 0.5, **options)
        lacking = {name: values for name, values in gradients.items() if ".2." not in name}
        with pytest.raises(ValueError, match=r"gradients lack blocks\.2\.attn\.q\.weight: the gradients hold none"):
            share_out(weights, 0.5, gradients=lacking, **options)
        with pytest.raises(ValueError, match=r"gradients\['blocks\.0\.attn\.q\.weight'\] must be finite"):
            share_out(weights, 0.5, gradients={name: np.ones(3) for name in weights}, **options)
        with pytest.raises(TypeError, match="gradients must be a file or a mapping, not float"):
            share_out(weights, 0.5, gradients=1.0, **options)
        with pytest.raises(ValueError, match="gradients go with sparsity and a budget that needs them"):
            mpfast.prune(weights, sparsity=0.5, moments=moments, gradients=gradients, budget="owl")
        with pytest.raises(ValueError, match="gradients go with sparsity and a budget that needs them"):
            mpfast.prune(weights, pattern="2:4", moments=moments, gradients=gradients)
        with pytest.raises(ValueError, match="gradients go with sparsity and a budget that needs them"):
            mpfast.prune(weights, sparsity=0.5, gradients=gradients)

    def test_what_a_method_would_not_look_at_is_refused(self, known):
        weights, moments, gradients = known
        with pytest.raises(ValueError, match=r"method row does not look at moments; .* one of owl, "):
            share_out(weights, 0.5, moments=moments)
        with pytest.raises(ValueError, match=r"method owl does not look at gradients; .* one of gauss_newton"):
            share_out(weights, 0.5, method="owl", moments=moments, gradients=gradients)

    def test_two_ways_at_once(self, known):
        weights, moments, _ = known
        with pytest.raises(ValueError, match="budget='owl' and method='hill' both share it out"):
            mpfast.prune(weights, sparsity=0.5, budget="owl", method="hill", moments=moments)
        with pytest.raises(ValueError, match="budget 'owl' shares out a sparsity, which is not given"):
            mpfast.prune(weights, budget="owl", moments=moments)
        with pytest.raises(ValueError, match="ceiling goes with sparsity and a method that takes more of one layer"):
            mpfast.prune(weights, sparsity=0.5, method="uniform", ceiling=0.7)

    def test_layers_that_are_not_finite_are_named(self):
        weights = {"h.0.fc.weight": np.ones((10, 10)), "h.1.fc.weight": np.full((10, 10), np.nan)}
        with pytest.raises(ValueError, match=r"share_out\(\): h\.1\.fc\.weight has 100 non-finite entries"):
            share_out(weights, 0.5, method="farms")


def test_gradients_are_found_by_module_and_in_files(known, tmp_path):
    from safetensors.numpy import save_file

    weights, moments, gradients = known
    options = {"method": "gauss_newton", "moments": moments}
    wanted = share_out(weights, 0.5, gradients=gradients, **options)
    by_module = {f"model.{name.removesuffix('.weight')}": values for name, values in gradients.items()}
    save_file(by_module, tmp_path / "gradients.safetensors")
    assert share_out(weights, 0.5, gradients=by_module, **options) == wanted
    assert share_out(weights, 0.5, gradients=tmp_path / "gradients.safetensors", **options) == wanted


def test_gradients_beside_moments_share_out_by_gauss_newton(known):
    weights, moments, gradients = known
    options = {"sparsity": 0.5, "moments": moments, "gradients": gradients, "progress": False}
    assert mpfast.prune(weights, **options).budget == mpfast.prune(weights, budget="gauss_newton", **options).budget


def test_layers_without_a_moment_stay_dense(known):
    weights, moments, _ = known
    some = {name: moment for name, moment in moments.items() if ".1." not in name}
    budget = share_out(weights, 0.5, method="owl", moments=some)
    assert [row.name for row in budget] == list(some)
    assert {name for name, _ in budget.dense} == set(weights) - set(some)
    pruned = mpfast.prune(weights, sparsity=0.5, budget="owl", moments=some, progress=False)
    assert [row.name for row in pruned.budget] == list(some)


class TestScores:
    @given(st.lists(st.floats(0, 1e30), min_size=1, max_size=60), st.floats(0, 1e30))
    def test_shares_above_a_level_are_within_a_bin(self, scores, level):
        found = ScoreCounts.of(scores)
        assert found.size == len(scores)
        width = 2.0**-7
        zero = 2.0**-149  # the smallest float32: what is less counts as that
        most = np.mean(np.array(scores) >= level * (1 - width) - zero)
        least = np.mean(np.array(scores) > level * (1 + width) + zero)
        assert least - 1e-12 <= found.share_above(level) <= most + 1e-12

    @given(st.integers(0, 60), st.integers(0, 2**32 - 1))
    def test_cuts_prune_what_they_are_asked_to(self, pruned, seed):
        rng = np.random.default_rng(seed)
        layers = [ScoreCounts.of(np.exp(rng.standard_normal(n))) for n in (10, 20, 30)]
        shares = cut_shares(layers, pruned, 0, 1)
        assert float(shares @ [10, 20, 30]) == pytest.approx(pruned, abs=1e-9)
        assert ((shares >= 0) & (shares <= 1)).all()

    def test_bounds_of_cuts(self):
        layers = [ScoreCounts.of(np.full(10, 1.0)), ScoreCounts.of(np.full(10, 2.0))]
        np.testing.assert_allclose(cut_shares(layers, 10, 0.2, 0.7), [0.7, 0.3])
        np.testing.assert_allclose(cut_shares(layers, 20, 0.0, 0.7), [0.7, 0.7])

    def test_sums(self):
        whole = ScoreCounts.of([1.0, 2.0]) + ScoreCounts.of([[3.0], [0.0]])
        assert (whole.size, whole.total) == (4, 6.0)

    def test_spread(self):
        np.testing.assert_allclose(spread([3, 1, 2], 0.1), [0.1, -0.1, 0])
        np.testing.assert_array_equal(spread([5, 5], 0.1), [0, 0])

    @given(st.integers(1, 50), st.integers(0, 2000))
    def test_row_counts(self, rows, pruned):
        counts = row_counts(pruned, rows)
        assert counts.sum() == pruned
        assert np.ptp(counts) <= 1


class TestRowScope:
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
    def test_the_smallest_of_each_row_go(self, dtype):
        W = np.random.default_rng(6).standard_normal((7, 10)).astype(dtype)
        keep = masks.magnitude(W, 0.55, scope="row")
        gone = np.count_nonzero(~keep, axis=1)
        assert gone.sum() == floor_count(0.55, 70)
        for row, kept, count in zip(np.abs(W), keep, gone, strict=True):
            assert set(np.argsort(row, kind="stable")[:count]) == set(np.flatnonzero(~kept))

    def test_rows_of_convolutions_are_their_outputs(self):
        W = np.random.default_rng(7).standard_normal((4, 3, 2, 2))
        assert (masks.magnitude(W, 0.5, scope="row").reshape(4, -1).sum(axis=1) == 6).all()

    def test_columns_in_memory_are_rows_all_the_same(self):
        W = np.random.default_rng(8).standard_normal((10, 6))
        np.testing.assert_array_equal(
            masks.magnitude(W.T, 0.5, scope="row"), masks.magnitude(np.ascontiguousarray(W.T), 0.5, scope="row")
        )

    def test_nested(self):
        W = {"a": np.random.default_rng(9).standard_normal((5, 12))}
        first = masks.magnitude(W, 0.3, scope="row")
        second = masks.magnitude(W, 0.8, scope="row", within=first)
        assert not (second["a"] & ~first["a"]).any()
        np.testing.assert_array_equal(second["a"], masks.magnitude(W, 0.8, scope="row")["a"])
        with pytest.raises(ValueError, match=r"entries of row \d are pruned already"):
            masks.magnitude(W, 0.1, scope="row", within=second)

    def test_wanda_is_the_weight_times_the_input_norm_by_row(self):
        rng = np.random.default_rng(10)
        W, C = rng.standard_normal((6, 8)), moment_of(8, rng)
        keep = masks.magnitude(masks.input_norm_saliency(W, C), 0.5, scope="row")
        order = np.argsort(np.abs(W) * np.sqrt(np.diagonal(C)), axis=1)
        expected = np.ones((6, 8), bool)
        np.put_along_axis(expected, order[:, :4], False, axis=1)
        np.testing.assert_array_equal(keep, expected)

    def test_what_is_not_finite_is_located(self):
        W = np.ones((4, 5))
        W[2, 3] = np.inf
        with pytest.raises(ValueError, match=r"1 non-finite entry .* at \(2, 3\)"):
            masks.magnitude(W, 0.5, scope="row")
        with pytest.raises(ValueError, match="scope must be 'global', 'layer' or 'row'"):
            masks.magnitude(np.ones((4, 5)), 0.5, scope="column")


class TestFixedAspectHill:
    def test_one_window_is_the_hill_exponent_of_its_larger_half(self):
        """A 4 x 4 matrix of equal 2 x 2 blocks: each window inside a block row is found by NumPy."""
        rng = np.random.default_rng(11)
        W = rng.standard_normal((4, 4))
        squares = [np.linalg.svd(W[i : i + 2, j : j + 2], compute_uv=False) ** 2 for i in range(3) for j in range(3)]
        upper = np.sort(np.concatenate(squares))[9:]
        expected = 1 + 1 / np.mean(np.log(upper / upper[0]))
        # Eigenvalues of the product lose the squares of what singular values lose.
        assert fixed_aspect_hill(W) == pytest.approx(expected, rel=1e-6)

    def test_it_does_not_depend_on_scale_and_aspect(self):
        rng = np.random.default_rng(12)
        W = rng.standard_normal((64, 64))
        assert fixed_aspect_hill(W) == pytest.approx(fixed_aspect_hill(1e200 * W), rel=1e-9)
        # Of noise, 25 and 80 windows of 32 x 32: three standard errors of the smaller sample.
        long = rng.standard_normal((64, 512))
        assert fixed_aspect_hill(W) == pytest.approx(fixed_aspect_hill(long), abs=0.15)

    def test_degenerate(self):
        assert math.isnan(fixed_aspect_hill(np.zeros((8, 8))))
        assert math.isnan(fixed_aspect_hill(np.ones((1, 8))))
        assert fixed_aspect_hill(np.ones((8, 8))) == 1.0
        with pytest.raises(ValueError, match="1 non-finite entry"):
            fixed_aspect_hill(np.array([[1.0, np.nan], [1.0, 2.0]]))


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_output_energies_are_squared_singular_values(shape):
    rng = np.random.default_rng(13)
    W, factor = rng.standard_normal(shape), reconstruct.Factor(moment_of(shape[1], rng))
    root = np.linalg.cholesky(factor.damped())
    expected = np.linalg.svd(W @ root, compute_uv=False) ** 2
    np.testing.assert_allclose(reconstruct.output_energies(W, factor), expected, rtol=1e-9, atol=1e-12 * expected[0])
