import numpy as np
import pytest
from scipy import optimize

from research.scaling.constrained import DataConstrained
from research.scaling.fit import HUBER, fit, huber, minimise
from research.scaling.forms import Chinchilla, Form, Kaplan, Ladder, Points
from tests.scaling import laws

FORMS = {
    "chinchilla": (Chinchilla(), [-1.0, -0.5, 0.5, 0.3, 0.4]),
    "kaplan": (Kaplan(), [0.5, 0.6, -2.0, -2.5]),
    "ladder": (Ladder(), [0.3, 0.5, 0.2]),
    "data": (DataConstrained(), [-1.0, -0.5, 0.5, 0.3, 0.4, 1.5, 1.0]),
    "data without excess": (DataConstrained(excess=False), [-1.0, -0.5, 0.5, 0.3, 0.4, 1.5]),
}


def some_points() -> Points:
    generator = np.random.default_rng(0)
    parameters, unique = np.exp(generator.uniform(15, 20, 30)), np.exp(generator.uniform(17, 20, 30))
    return Points.of(parameters, unique * np.exp(generator.uniform(-0.5, 3, 30)), unique)


@pytest.mark.parametrize("name", FORMS)
def test_derivatives_are_those_of_the_law(name: str) -> None:
    form, coefficients = FORMS[name]
    theta, points = np.array([coefficients]), some_points()
    _, gradient = form.predict(theta, points)
    for place in range(form.num_coefficients):
        step = np.zeros_like(theta)
        step[0, place] = 1e-6
        around = [form.predict(theta + sign * step, points)[0] for sign in (1, -1)]
        np.testing.assert_allclose(gradient[..., place], (around[0] - around[1]) / 2e-6, atol=1e-8)


@pytest.mark.parametrize("name", FORMS)
def test_exact_losses_give_the_coefficients_back(name: str) -> None:
    form, coefficients = FORMS[name]
    points = some_points()
    theta = np.array([coefficients])
    found = fit(form, points, form.predict(theta, points)[0][0])
    expected, got = form.natural(theta, points), form.natural(found[None], points)
    for key in expected:
        np.testing.assert_allclose(got[key], expected[key], rtol=1e-4, err_msg=key)


@pytest.mark.parametrize("name", ["chinchilla", "kaplan"])
def test_the_closed_optimum_is_the_swept_one(name: str) -> None:
    form, coefficients = FORMS[name]
    theta, points = np.array([coefficients]), some_points()
    for closed, swept in zip(
        form.optimum(theta, points, 1e19, 6.0), Form.optimum(form, theta, points, 1e19, 6.0), strict=True
    ):
        np.testing.assert_allclose(closed, swept, atol=1e-3)


@pytest.mark.parametrize(
    ("coefficients", "size", "ratio"),
    [
        # Hoffmann et al. 2022, section 3.4: 40 billion parameters for Gopher's budget, by unrounded coefficients.
        ((6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083), 40e9, 60),
        # Besiroglu et al. 2024: about 20 tokens a parameter there, as Chinchilla was trained.
        ((6.17795598, 7.64273236, 0.59711196, 0.34781303, 0.36585412), 70e9, 20),
    ],
)
def test_published_coefficients_give_the_published_optimum(
    coefficients: tuple[float, ...], size: float, ratio: float
) -> None:
    log_a, log_b, log_e, alpha, beta = coefficients
    points = Points.of(np.array([1e8, 1e9]), np.array([1e9, 1e10]))
    centred = [log_a - alpha * points.centre_parameters, log_b - beta * points.centre_tokens, log_e, alpha, beta]
    log_n, log_loss = Chinchilla().optimum(np.array([centred]), points, 5.76e23, 6.0)
    assert np.exp(log_n[0]) == pytest.approx(size, rel=0.05)
    assert 5.76e23 / 6 / np.exp(2 * log_n[0]) == pytest.approx(ratio, rel=0.1)
    assert 1.9 < np.exp(log_loss[0]) < 2.0


def test_chinchillas_law_is_left_where_nothing_repeats() -> None:
    """With one epoch and no excess the data-constrained law is Chinchilla's."""
    runs = laws.isoflop()
    points = Points.of(runs.parameters, runs.tokens, 2 * runs.tokens)
    plain = np.array([[-1.0, -0.5, 0.5, 0.3, 0.4]])
    constrained = DataConstrained(excess=False).predict(np.append(plain, [[1.0]], axis=1), points)[0]
    np.testing.assert_allclose(constrained, Chinchilla().predict(plain, points)[0], rtol=1e-12)


def test_the_data_constrained_law_is_the_published_one() -> None:
    generator = np.random.default_rng(3)
    unique = np.exp(generator.uniform(18, 22, 40))
    parameters, tokens = np.exp(generator.uniform(16, 21, 40)), unique * np.exp(generator.uniform(-0.5, 4, 40))
    points = Points.of(parameters, tokens, unique)
    log_a = np.log(laws.A) - laws.ALPHA * points.centre_parameters
    log_b = np.log(laws.B) - laws.BETA * points.centre_tokens
    theta = [log_a, log_b, np.log(laws.E), laws.ALPHA, laws.BETA, np.log(laws.R_D), np.log(laws.R_N)]
    predicted, _ = DataConstrained().predict(np.array([theta]), points)
    np.testing.assert_allclose(np.exp(predicted[0]), laws.repeated_loss(parameters, tokens, unique), rtol=1e-10)


def test_no_lower_minimum_is_found_by_scipy() -> None:
    """L-BFGS-B from the best of the published kind of grid, at a tolerance that a sum of 1e-3 needs."""
    runs = laws.isoflop(noise=0.01)
    form, points, log_loss = Chinchilla(), Points.of(runs.parameters, runs.tokens), np.log(runs.loss)

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        predicted, gradient = form.predict(theta[None], points)
        cost, slope = huber(predicted[0] - log_loss, HUBER)
        return cost.sum(), slope @ gradient[0]

    ours = objective(fit(form, points, log_loss))[0]
    for start in form.starts(points, log_loss)[::16]:
        theirs = optimize.minimize(
            objective, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-12}
        )
        assert ours <= theirs.fun * (1 + 1e-6)


def test_a_weight_is_a_number_of_equal_runs() -> None:
    runs = laws.isoflop(noise=0.01)
    form, log_loss = Chinchilla(), np.log(runs.loss)
    counts = np.random.default_rng(0).integers(1, 3, len(runs))
    places = np.repeat(np.arange(len(runs)), counts)
    points = Points.of(runs.parameters, runs.tokens)
    copies = points.at(points.log_parameters[places], points.log_tokens[places])
    start = fit(form, points, log_loss)[None]
    weighted = minimise(form, points, start, log_loss[None], counts[None].astype(float))
    copied = minimise(form, copies, start, log_loss[None, places])
    np.testing.assert_allclose(weighted.objective, copied.objective, rtol=1e-9)


def test_huber_is_quadratic_within_delta_and_straight_beyond() -> None:
    cost, slope = huber(np.array([-3.0, -0.5, 0.0, 0.5, 3.0]), 1.0)
    np.testing.assert_allclose(cost, [2.5, 0.125, 0.0, 0.125, 2.5])
    np.testing.assert_allclose(slope, [-1.0, -0.5, 0.0, 0.5, 1.0])
    np.testing.assert_allclose(huber(np.array([3.0]), np.inf)[0], [4.5])
