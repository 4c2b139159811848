"""The least time on a chip against numbers small enough to see."""

from meal_jax import cost, roofline
from meal_jax.chips import Chip


def test_each_resource_bounds_the_time_of_a_part():
    chip = Chip("round", flops=100.0, memory=1.0, bandwidth=10.0, link=2.0, links=2)
    work = cost.Cost(flops=800.0, weights=20.0, activations=40.0)
    assert roofline.bound(work, chip) == roofline.Bound(8.0, 6.0, 0.0)
    # The batch in 4 parts: the weights are read on every chip.
    target = roofline.bound(work, chip, {"data": 2, "fsdp": 2, "tensor": 1}, received=16.0)
    assert target == roofline.Bound(2.0, 3.0, 4.0)
    assert target.seconds == 4.0 and target.by == "network"
    assert roofline.bound(work, chip, {"tensor": 4}) == roofline.Bound(2.0, 1.5, 0.0)
    assert roofline.gathered(work, {"fsdp": 4, "tensor": 2}) == 7.5
