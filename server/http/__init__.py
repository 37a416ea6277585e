"""HTTP front end: `/predict`, the page, the admin port, the OpenAPI document. Translates; decides nothing."""
