"""Conversions on a Ray cluster: many models at once, or many layers of one (extra ``[ray]``; docs/ray.md).

Example::

    from convert_to_quant import convert_many
    from convert_to_quant.ray import RayExecutor

    with RayExecutor("auto") as executor:
        report = convert_many(["models"], "int8", pattern="*.safetensors", executor=executor)
    print(report.summary())
"""

from .converter.cluster.ray_executor import RayExecutor

__all__ = ["RayExecutor"]
