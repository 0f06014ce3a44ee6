"""Whatever our own OpenAPI document allows or forbids: no 5xx, no status it does not announce."""

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from turbosparse.server.app import describe

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


schema = schemathesis.openapi.from_dict(describe().openapi())


@schema.parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_surprise(case, server):
    """The examples are the same every time, so that this cannot fail by chance."""
    case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=30)
