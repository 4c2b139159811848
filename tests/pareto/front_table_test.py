"""The table at a run's end."""

from meal_jax.pareto.front_table import front_table

FRONT = {
    "method": "Meal", "hypervolume": 0.51234, "hypervolume_interval": [0.4, 0.6], "mean_inner_product": 0.3,
    "monotonicity": [0.987, 0.5], "repetitive": 0.0,
}  # fmt: skip


def test_every_front_has_a_line_and_what_is_not_known_a_dash():
    more = {"method": "before training", "log_likelihood": -1.234, "distinct_2": 0.4, "share_of_true_hypervolume": 0.9}
    lines = front_table([FRONT, FRONT | more]).splitlines()
    assert "pairs in order" in lines[0] and len({len(line) for line in lines}) == 1
    assert lines[1].split() == [
        "Meal",
        "0.5123",
        "0.400",
        "…",
        "0.600",
        "–",
        "0.3000",
        "0.99,",
        "0.50",
        "–",
        "0.00",
        "–",
    ]
    assert lines[2].endswith("0.99, 0.50        -1.23        0.00        0.40") and " 0.900 " in lines[2]
