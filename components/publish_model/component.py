"""publish_model as a container component."""

from kfp import dsl

from ..image import launch


@dsl.container_component
def publish_model(
    model: dsl.Input[dsl.Model],
    card: dsl.Output[dsl.Markdown],
    metrics: dsl.Input[dsl.Metrics] = None,
    uri: str = "",
    title: str = "",
    existing: str = "refuse",
    max_epe_increase: float = 0.0,
):
    """Publish a model with its companion files, metrics and a model card.

    Args:
        model: A checkpoint, an ONNX file or an engine.
        metrics: Metrics of the model's evaluation.
        uri: Where to publish: a folder, or s3://bucket/prefix.
        title: Title of the model card; empty: the file name.
        existing: If another model is already published there. refuse: fail; replace: replace it; compare: replace it,
            but fail if the new epe is higher by more than max_epe_increase.
        max_epe_increase: Largest allowed increase of epe in px, with existing=compare.

    Returns:
        card: The model card: a description, the metrics, and those of the previous model.
    """
    return launch("publish_model")
