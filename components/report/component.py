"""report as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def report(
    first: dsl.Input[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    second: dsl.Input[dsl.Metrics] = None,
    third: dsl.Input[dsl.Metrics] = None,
    fourth: dsl.Input[dsl.Metrics] = None,
    names: list = [],  # noqa: B006
    title: str = "Comparison",
):
    """Put the metrics of up to four evaluations side by side: accuracy, latency, size.

    Args:
        first: Metrics of `evaluate` or `trt_evaluate`; the others are compared with it.
        second: Metrics of another evaluation.
        third: Metrics of another evaluation.
        fourth: Metrics of another evaluation.
        names: A name for each of them, in that order.
        title: Title of the page.

    Returns:
        report: The figures side by side, and their difference to the first, as a page.
    """
    return launch("report")
