"""Checks for those who extend pgnas: that a layer's channel rule and its cut are right."""

from pgnas.nn.channels import temporary_rules
from pgnas.testing.checking import LayerReport, check_layer

__all__ = ["LayerReport", "check_layer", "temporary_rules"]
