"""report as a container component."""

from typing import List  # noqa: UP035, required by kfp

from kfp import dsl

from ..image import launch


@dsl.container_component
def report(
    report: dsl.Output[dsl.HTML],
    first: dsl.Input[dsl.Metrics] = None,
    second: dsl.Input[dsl.Metrics] = None,
    third: dsl.Input[dsl.Metrics] = None,
    fourth: dsl.Input[dsl.Metrics] = None,
    many: dsl.Input[List[dsl.Metrics]] = None,  # noqa: UP006
    names: list = [],  # noqa: B006
    title: str = "Comparison",
):
    """Compare up to four evaluations, or those of a loop: accuracy, latency, size.

    Args:
        first: Metrics of `evaluate` or `trt_evaluate`; the others are compared with it.
        second: Metrics of another evaluation.
        third: Metrics of another evaluation.
        fourth: Metrics of another evaluation.
        many: Metrics collected from a loop (dsl.Collected); they come after the others.
        names: A name for each evaluation, in this order. For a mapping its title counts, or its uri.
        title: Title of the page.

    Returns:
        report: A page with the metrics side by side, and their differences to the first.
    """
    return launch("report")
