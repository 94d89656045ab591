"""report as a container component."""

from typing import List  # noqa: UP035, as kfp wants it

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
    """Put the metrics of up to four evaluations, or those of a loop, side by side: accuracy, latency, size.

    Args:
        first: Metrics of `evaluate` or `trt_evaluate`; the others are compared with it.
        second: Metrics of another evaluation.
        third: Metrics of another evaluation.
        fourth: Metrics of another evaluation.
        many: Metrics that a loop has collected (dsl.Collected), after those.
        names: A name for each of them, in that order; of a mapping its title, without one its uri.
        title: Title of the page.

    Returns:
        report: The figures side by side, and their difference to the first, as a page.
    """
    return launch("report")
